"""params `download` -> data/raw: the files as delivered, and a manifest of their checksums."""

import shutil

from filelock import FileLock

from reparam import tracking
from reparam.config import Config, flatten
from reparam.data import sources
from reparam.files import dvc_hash, whole_directory
from reparam.paths import Paths


def run(config: Config, paths: Paths) -> None:
    """Fetch the raw data and verify every file."""
    sources.find(config.download)
    tracker = tracking.connect(paths)
    # Fetched into a folder that outlives a killed run, so that the next one goes on where this one stopped.
    arriving = paths.downloads / config.download.source
    arriving.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{arriving}.lock"), whole_directory(paths.raw) as directory:
        sources.download(config.download, paths.shared, arriving)
        shutil.copytree(arriving, directory, dirs_exist_ok=True)
        manifest = sources.write_manifest(config.download, directory)
        shutil.rmtree(arriving)
    with tracker.data_run("download", dvc_hash(paths.raw)) as run:
        run.log_params(flatten(config.download, "download."))
        sizes = [file["bytes"] for file in manifest["files"].values()]
        run.log_metrics({"files": len(sizes), "bytes": sum(sizes)})
        run.log_files([paths.raw / sources.MANIFEST])
