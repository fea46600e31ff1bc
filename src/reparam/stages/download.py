"""params `download` -> data/raw: the files as delivered, and a manifest of their checksums."""

from reparam import tracking
from reparam.config import Config, flatten
from reparam.data import sources
from reparam.files import dvc_hash, whole_directory
from reparam.paths import Paths


def run(config: Config, paths: Paths) -> None:
    """Fetch the raw data and verify every file."""
    tracker = tracking.connect(paths)
    with whole_directory(paths.raw) as directory:
        sources.download(config.download.source, directory)
    with tracker.data_run("download", dvc_hash(paths.raw)) as run:
        run.log_params(flatten(config.download, "download."))
        files = [path for path in paths.raw.iterdir() if path.name != sources.MANIFEST]
        run.log_metrics({"files": len(files), "bytes": sum(path.stat().st_size for path in files)})
        run.log_files([paths.raw / sources.MANIFEST])
