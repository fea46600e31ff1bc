"""params `download` -> data/raw: the files as delivered, and a manifest of their checksums."""

import os
import shutil
from pathlib import Path

from filelock import FileLock

from reparam import logged, track
from reparam.config import Config
from reparam.data.sources import registry as sources
from reparam.files import dvc_hash, whole_directory
from reparam.paths import Paths


def run(config: Config, paths: Paths, tracker: track.Tracker | None = None) -> None:
    """Fetch the raw data and verify every file."""
    sources.check(config.download)
    tracker = tracker or track.connect(paths)
    tracker.ready()
    # Fetched into a folder that outlives a killed run, so that the next one goes on where this one stopped.
    arriving = paths.downloads / config.download.source
    arriving.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{arriving}.lock"):
        with whole_directory(paths.raw) as directory:
            arriving.mkdir(exist_ok=True)  # not before the lock, whose last holder removed it
            mirrors = os.environ.get("REPARAM_MIRRORS", "").split()
            sources.download(config.download, paths.shared, arriving, mirrors)
            _put_files(arriving, directory)
            card = sources.write_manifest(config.download, directory)
        shutil.rmtree(arriving)
    with tracker.data_run("download", dvc_hash(paths.raw)) as run:
        logged.download(run, config, card, paths)


def _put_files(source: Path, target: Path) -> None:
    """Give all files a second name below `target`, or copy them where the file system has no hard links."""
    # Not by copytree, which goes on after a full disk, and raises a list of all that failed.
    for path in source.rglob("*"):
        other = target / path.relative_to(source)
        if path.is_dir():
            other.mkdir(parents=True, exist_ok=True)
        else:
            other.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, other)
            except OSError:
                shutil.copyfile(path, other)
