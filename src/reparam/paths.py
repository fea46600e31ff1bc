"""Every file that a stage reads or writes, named once."""

import os
from dataclasses import dataclass
from pathlib import Path


def anchored(path: str, base: Path) -> Path:
    """Return where a path of params.yaml leads: a relative one starts at `base`."""
    return base / os.path.expanduser(path)  # noqa: PTH111  # Path's own raises if there is no such user


@dataclass(frozen=True)
class Paths:
    """Stage files below `root`, the working copy; state shared by all working copies below `shared`.

    `dvc exp run --temp` and queued experiments run in a scratch copy that DVC deletes afterwards, so whatever must
    outlive an experiment (the tracking database, its artifacts) is in the real repository, which DVC names in
    `DVC_ROOT`.
    """

    root: Path
    shared: Path

    @classmethod
    def here(cls) -> "Paths":
        """Take the current directory as the working copy."""
        root = Path.cwd()
        return cls(root, Path(os.environ.get("DVC_ROOT", root)))

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def pipeline(self) -> Path:
        return self.root / "dvc.yaml"

    @property
    def installation(self) -> Path:
        return self.root / ".reparam.yaml"

    @property
    def locks(self) -> Path:
        return self.root / ".locks"

    @property
    def recipes(self) -> Path:
        return self.root / "recipes"

    # download
    @property
    def raw(self) -> Path:
        return self.root / "data/raw"

    @property
    def downloads(self) -> Path:
        return self.shared / "data/.downloads"

    # preprocess
    @property
    def processed(self) -> Path:
        return self.root / "data/processed"

    @property
    def data_metrics(self) -> Path:
        return self.root / "reports/data/metrics.json"

    # train
    @property
    def model(self) -> Path:
        return self.root / "models/vae"

    @property
    def history(self) -> Path:
        return self.root / "reports/training/history.csv"

    @property
    def training_metrics(self) -> Path:
        return self.root / "reports/training/metrics.json"

    @property
    def resume(self) -> Path:
        return self.shared / (os.environ.get("REPARAM_RESUME_DIR") or ".resume")

    # evaluate
    @property
    def evaluation_metrics(self) -> Path:
        return self.root / "reports/evaluation/metrics.json"

    @property
    def headline(self) -> Path:
        return self.root / "reports/evaluation/headline.json"

    @property
    def evaluation_card(self) -> Path:
        return self.root / "reports/evaluation/card.json"

    @property
    def scores(self) -> Path:
        return self.root / "reports/evaluation/scores.npz"

    @property
    def latents(self) -> Path:
        return self.root / "reports/evaluation/latents.csv"

    @property
    def figures(self) -> Path:
        return self.root / "reports/evaluation/figures"

    # export
    @property
    def onnx(self) -> Path:
        return self.root / "models/onnx"

    @property
    def export_metrics(self) -> Path:
        return self.root / "reports/export/metrics.json"

    # report
    @property
    def report(self) -> Path:
        return self.root / "reports/index.html"

    @property
    def speed(self) -> Path:
        """Times on this machine, so DVC does not keep them."""
        return self.root / "reports/speed.html"

    # gradients, outside the pipeline
    @property
    def gradients(self) -> Path:
        return self.root / "reports/gradients"

    # compare, outside the pipeline
    @property
    def comparison(self) -> Path:
        return self.root / "reports/compare.html"

    # sweep, outside the pipeline
    @property
    def sweeps(self) -> Path:
        return self.shared / ".sweeps"

    @property
    def sweep_reports(self) -> Path:
        return self.root / "reports/sweeps"

    # tracking
    @property
    def tracking_database(self) -> Path:
        return self.shared / "mlflow.db"

    @property
    def tracking_artifacts(self) -> Path:
        return self.shared / "mlartifacts"

    @property
    def tracking_spool(self) -> Path:
        return self.shared / ".tracking"

    def relative(self, path: Path) -> str:
        """Name a path as the user would type it in the working copy."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
