"""Move the alias `champion` of the registered model, which apps load, to a version that is no worse."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reparam import track
from reparam.cards.card import MANIFEST
from reparam.cards.export import ExportCard
from reparam.compare.differences import compare, spell
from reparam.compare.runs import read_run
from reparam.errors import UserError
from reparam.metrics import describe
from reparam.paths import Paths
from reparam.shell.verify import verify

CHAMPION = "champion"


@dataclass(frozen=True)
class Candidates:
    """Versions of the registered model of the data in models/onnx."""

    store: track.Store
    name: str
    versions: dict[int, Any]

    def champion(self) -> int | None:
        """Return the version that is the champion now."""
        model = self.store.read(lambda client: client.get_registered_model(self.name))
        found = model.aliases.get(CHAMPION)
        return None if found is None else int(found)

    def weights(self, run: str) -> str:
        """Return the hash of the weights that a run trained; if it is not known, the run itself."""
        tags = self.store.read(lambda client: client.get_run(run).data.tags)
        return str(tags.get(track.WEIGHTS_TAG, run))

    def crown(self, version: int) -> None:
        self.store.read(lambda client: client.set_registered_model_alias(self.name, CHAMPION, str(version)))


def run(version: int | None, metric: str, paths: Paths) -> str:
    """Promote a version, by default the newest; return what was done.

    Raises: UserError if `metric` is no metric, or worse than the champion's beyond noise, if the two do not compare, or
    if the files of the version are not those of its export or do not compute what torch did.
    """
    if describe(metric) is None:
        raise UserError(f"--metric: wanted a metric, such as nll, found {metric!r}; docs/reference/metrics.md has all")
    candidates = _find(paths)
    wanted = max(candidates.versions) if version is None else version
    if wanted not in candidates.versions:
        known = ", ".join(map(str, sorted(candidates.versions)))
        raise UserError(f"{candidates.name}: wanted one of its versions, {known}, found {wanted}")
    champion = candidates.champion()
    if champion == wanted:
        return f"{candidates.name}: version {wanted} is the champion already"
    verdict = "the first champion" if champion is None else _verdict(candidates, champion, wanted, metric, paths)
    check_parity(candidates.store, candidates.versions[wanted])
    candidates.crown(wanted)
    return (
        f"{candidates.name}: version {wanted} is the champion: {verdict}; load it as models:/{candidates.name}@champion"
    )


def _find(paths: Paths) -> Candidates:
    source = ExportCard.read(paths.onnx / MANIFEST, "export").source
    store = track.connect_to_read(paths)
    name = "" if store is None else track.registered_name(store.experiment, source)
    found = store.read(lambda client: client.search_model_versions(f"name = '{name}'")) if store else []
    if store is None or not found:
        raise UserError(
            f"promote: wanted a registered model of {source!r}, found none; run `dvc repro` with tracking on"
        )
    return Candidates(store, name, {int(version.version): version for version in found})


def check_parity(store: track.Store, version: Any) -> None:
    """Check the files of a version, the parity that its export measured, and their answers on this machine.

    Raises: UserError.
    """
    with tempfile.TemporaryDirectory() as directory:
        try:
            for _ in verify(track.fetch_version(store, version, Path(directory)), whole=True):
                pass
        except UserError as error:
            problem = str(error).replace(f"{directory}/", "")
            raise UserError(f"promote: {version.name}, version {version.version}: {problem}") from None


def _verdict(candidates: Candidates, champion: int, wanted: int, metric: str, paths: Paths) -> str:
    """Compare two versions, image by image if their evaluations allow it. Raises: UserError."""
    runs = [candidates.versions[number].run_id for number in (champion, wanted)]
    first, other = (read_run(run, paths) for run in runs)
    if first is None or other is None:
        raise UserError(f"promote: wanted the runs {runs[0]} and {runs[1]} in MLflow, found one deleted")
    if len({candidates.weights(run) for run in runs}) == 1:
        return f"the same trained model as version {champion}"
    comparison = compare([first, other])
    cells = comparison.metrics.get(metric)
    difference = cells[1].difference if cells else None
    if difference is None or difference.verdict in {"", "differs"}:
        notes = "; ".join([*comparison.notes, *first.notes, *other.notes]) or "one of the two has no such metric"
        raise UserError(
            f"promote: wanted a verdict on {metric} of version {wanted} against {champion}, found none: {notes}"
        )
    spelled = f"{metric} {spell(difference.value, difference.error, '+')} against version {champion}"
    if difference.verdict == "worse":
        raise UserError(
            f"promote: wanted a {metric} no worse than the champion's, found {spelled}, worse beyond noise; version "
            f"{champion} stays the champion"
        )
    return f"{spelled}, {difference.verdict}"
