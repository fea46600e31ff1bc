"""Every earlier stage's reports, all params -> reports/index.html: one page that needs no network.

Beside it, for a model with variants: reports/speed.html.
"""

from collections.abc import Sequence

from reparam import logged, track
from reparam.cards.card import CARD
from reparam.cards.model import ModelCard, TrainedParams
from reparam.cards.results import Evaluated, Exported, read_training
from reparam.config import Config, flatten
from reparam.data import store
from reparam.data.store import SPLITS
from reparam.errors import DamagedInputError, StaleInputError
from reparam.figures.curves import SCHEDULES, plot_training
from reparam.figures.images import plot_contact_sheet
from reparam.figures.style import png
from reparam.files import parse_table, require, rerun, whole_file
from reparam.paths import Paths
from reparam.report import speed
from reparam.report.page import Page, render, title


def run(config: Config, paths: Paths, tracker: track.Tracker | None = None) -> None:
    """Bring numbers, figures, parameters and lineage together on one page.

    Raises: StaleInputError if some are of another model.
    """
    tracker = tracker or track.connect(paths)
    model = ModelCard.read(paths.model / CARD, "train")
    data = store.read_card_of(paths.processed, model.data, model.lineage.data_card_sha256)
    read_training(model, paths)
    evaluated, exported = Evaluated.read(model, paths), Exported.read(model, paths)
    filled = [name for name in SPLITS if data.splits[name].count]  # there may be no validation split
    history = _read_history(paths, [name for name in filled if name != "test"])
    pictures = {path.stem: path.read_bytes() for path in evaluated.figures(paths)}
    sheet = plot_contact_sheet({name: store.read_split(paths.processed, name).images for name in filled})
    pictures["contact_sheet"] = png(sheet)
    pictures["training_curves"] = png(plot_training(history, model.best_epoch))
    page = Page(
        config=config,
        data=data,
        model=model,
        evaluation=evaluated.card,
        metrics=evaluated.metrics,
        exported=exported.card,
        parity=exported.parity,
        pictures=pictures,
    )
    _check_params(config, page)
    tracker.ready()
    with whole_file(paths.report) as partial:
        partial.write_text(render(page), encoding="utf-8")
    _write_speed(page, paths)
    with tracker.child_run("report", dict(model.lineage)) as run:
        run.log_params(flatten(config.report, "report."))
        logged.report(run, model, paths)


def _write_speed(page: Page, paths: Paths) -> None:
    """Measure a model that has variants. An older page goes: it is of another model, or of another day."""
    paths.speed.unlink(missing_ok=True)
    if page.exported.variants:
        with whole_file(paths.speed) as partial:
            partial.write_text(speed.render(paths.onnx, title(page), page.exported.digest), encoding="utf-8")


def _check_params(config: Config, page: Page) -> None:
    """Check that the results are those of params.yaml. Raises: StaleInputError."""
    for sections, is_of in (
        ("model, objective, train", TrainedParams.of(config).hash == page.model.hash),
        ("evaluate", config.evaluate == page.evaluation.settings),
        ("export", page.exported.is_with(config.export)),
    ):
        if not is_of:
            raise StaleInputError(
                f"params.yaml: {sections}: wanted the parameters of the results that are there, found others; run "
                "`dvc repro`, which brings the results up to date"
            )


def _read_history(paths: Paths, splits: Sequence[str]) -> dict[str, list[float]]:
    require(paths.history, made_by="train")
    wanted = ["epoch", *(f"{split}_{term}" for split in splits for term in ("loss", "reconstruction", "kl"))]
    try:
        rows = parse_table(paths.history.read_text(encoding="utf-8"), *wanted)
        schedules = [name for name in SCHEDULES if name in rows[0]]
        return {name: [row[name] for row in rows] for name in (*wanted, *schedules)}
    except ValueError:
        raise DamagedInputError(
            f"{paths.history}: wanted a table of {', '.join(wanted)}, found a damaged one; {rerun('train')}"
        ) from None
