import base64
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from policy import Policy
from ruamel.yaml import YAML

from reparam import cli, track
from reparam.compare import page, side_by_side, sources
from reparam.compare.differences import DISCRETE, Cell, Difference, compare, judge, spell
from reparam.compare.experiment import Experiment, spread
from reparam.config import flatten, load_config, params_hash
from reparam.errors import TrackingError, UserError
from reparam.models.likelihoods import LIKELIHOODS
from reparam.paths import Paths

PICTURE = b"\x89PNG of "
CONDITIONS = {"data": "hash.dir", "images": 359, "binarization": "dynamic", "nll_samples": 100}
METRICS = {"elbo": -20.0, "elbo_se": 0.3, "nll": 19.0, "nll_se": 0.3, "active_units": 9.0}


def experiment(name: str = "first", **changes: Any) -> Experiment:
    """An experiment of which all is known."""
    known = Experiment(
        name=name,
        origin="somewhere",
        params={"model.latent": 12, "train.seed": 0},
        metrics=METRICS,
        conditions=CONDITIONS,
        losses={1: 30.0, 2: 25.0},
        loss_split="validation",
        samples=PICTURE,
        notes=(),
    )
    return replace(known, **changes)


# ---- verdicts


@pytest.mark.parametrize(
    ("metric", "when_larger"),
    [
        ("elbo", "better"),
        ("probe_accuracy", "better"),
        ("precision", "better"),
        ("recall", "better"),
        ("density", "better"),
        ("coverage", "better"),
        ("nll", "worse"),
        ("reconstruction", "worse"),
        ("bce", "worse"),
        ("bits_per_dim", "worse"),
        ("frechet_distance", "worse"),
        ("served_elbo_loss", "worse"),
        ("auroc", "better"),
        ("nll_effective_samples", "better"),
        ("ais_nll", "worse"),
        ("ais_gap", "worse"),
        ("ais_minus_nll", "differs"),
        ("kl", "differs"),
        ("something_new", "differs"),
    ],
)
def test_a_verdict_knows_which_way_is_better(metric: str, when_larger: str) -> None:
    opposite = {"better": "worse", "worse": "better", "differs": "differs"}[when_larger]
    assert (judge(metric, 1.0, 0.4), judge(metric, -1.0, 0.4)) == (when_larger, opposite)


@pytest.mark.parametrize("metric", ["elbo", "nll", "kl"])
def test_a_difference_of_two_standard_errors_is_within_noise_and_a_larger_one_is_not(metric: str) -> None:
    assert {judge(metric, sign * 0.5, 0.25) for sign in (1, -1)} == {"within noise"}
    assert "within noise" not in {judge(metric, sign * 0.5001, 0.25) for sign in (1, -1)}


def test_the_error_of_a_difference_is_the_root_of_the_sum_of_squares() -> None:
    other = experiment(metrics={"elbo": -18.0, "elbo_se": 0.4})
    first_cell, cell = compare([experiment(), other]).metrics["elbo"]
    assert first_cell == Cell(-20.0, 0.3, None)
    assert cell == Cell(-18.0, 0.4, Difference(2.0, pytest.approx(0.5), "better"))


@pytest.mark.parametrize("error", [None, 0.0, math.nan])
def test_without_a_known_error_there_is_a_difference_and_no_verdict(error: float | None) -> None:
    given = {} if error is None else {"elbo_se": error}
    one, other = (experiment(metrics={"elbo": value, **given}) for value in (-20.0, -10.0))
    found = compare([one, other]).metrics["elbo"][1].difference
    assert found is not None
    assert (found.value, found.verdict) == (10.0, "")


def test_a_metric_that_one_of_the_two_does_not_have_has_no_difference() -> None:
    other = experiment(metrics={"kl": 5.0, "kl_se": 0.1})
    metrics = compare([experiment(), other]).metrics
    assert list(metrics) == ["elbo", "nll", "active_units", "kl"]
    assert metrics["elbo"][1] == Cell(None, None, None)
    assert metrics["kl"] == [Cell(None, None, None), Cell(5.0, 0.1, None)]


@pytest.mark.parametrize(
    ("changes", "reason", "barred"),
    [
        ({"data": "other.dir"}, "the processed data are other.dir, of first hash.dir", ["elbo", "nll"]),
        ({"images": 100}, "the number of test images is 100, of first 359", ["elbo", "nll"]),
        ({"binarization": "static"}, "the binarization of test images is static, of first dynamic", ["elbo", "nll"]),
        ({"nll_samples": 5}, "the number K of importance samples is 5, of first 100", ["nll"]),
        ({"nll_samples": None}, "the number K of importance samples is not known, of first 100", ["nll"]),
    ],
)
def test_other_conditions_are_told_and_give_no_verdict(changes: dict[str, Any], reason: str, barred: list[str]) -> None:
    conditions = {name: value for name, value in (CONDITIONS | changes).items() if value is not None}
    other = experiment("other", metrics=METRICS | {"elbo": -10.0, "nll": 9.0}, conditions=conditions)
    found = compare([experiment(), other])
    assert found.obstacles == [f"other: {reason}; no verdict on {', '.join(barred)}"]
    verdicts = {name: cells[1].difference.verdict for name, cells in found.metrics.items() if cells[1].difference}
    assert verdicts == {
        "elbo": "" if "elbo" in barred else "better",
        "nll": "" if "nll" in barred else "better",
        "active_units": "",
    }


SETTINGS = {
    "split": "test",
    "outliers": "data/letters",
    "annealing.images": 100,
    "annealing.chains": 16,
    "annealing.steps": 1000,
    "generated.images": 10_000,
    "generated.components": 64,
    "neighbours": 5,
}
ASSESSED = ("elbo", "auroc", "ais_nll", "ais_minus_nll", "ais_gap", "knn_accuracy")
UNJUDGED = ("pca_precision", "pca_frechet")  # without an error


@pytest.mark.parametrize(
    ("setting", "value", "barred"),
    [
        ("split", "validation", ASSESSED),
        ("split", None, ASSESSED),
        ("outliers", "data/noise", ["auroc"]),
        ("annealing.images", 10, ["ais_nll", "ais_minus_nll", "ais_gap"]),
        ("annealing.chains", 2, ["ais_nll", "ais_minus_nll", "ais_gap"]),
        ("annealing.steps", 9, ["ais_nll", "ais_minus_nll", "ais_gap"]),
        ("generated.images", 50, list(UNJUDGED)),
        ("generated.components", 8, list(UNJUDGED)),
        ("neighbours", 3, ["knn_accuracy", "pca_precision", "pca_frechet"]),
        ("nll_samples", 5, ["auroc", "ais_minus_nll"]),
    ],
)
def test_settings_of_the_evaluation_bar_the_metrics_that_depend_on_them(
    setting: str, value: object, barred: list[str]
) -> None:
    metrics = dict.fromkeys((*ASSESSED, *UNJUDGED), 1.0) | {f"{name}_se": 0.1 for name in ASSESSED}
    known = CONDITIONS | SETTINGS
    changed = {name: value for name, value in (known | {setting: value}).items() if value is not None}
    first = experiment(metrics=metrics, conditions=known)
    other = experiment("other", metrics={name: 9 * number for name, number in metrics.items()}, conditions=changed)
    found = compare([first, replace(other, conditions=known), other])
    [told] = found.obstacles
    spelled = "not known" if value is None else value
    assert told.startswith("other: ")
    assert told.endswith(f" {spelled}, of first {known[setting]}; no verdict on {', '.join(barred)}")
    for name in ASSESSED:
        _, alike, different = (cell.difference for cell in found.metrics[name])
        assert alike is not None
        assert different is not None
        assert alike.verdict != ""
        assert different.verdict == ("" if name in barred else alike.verdict)


def test_settings_that_old_evaluations_do_not_tell_bar_nothing() -> None:
    assert not SETTINGS.keys() & CONDITIONS.keys()
    assert compare([experiment(), experiment("other")]).obstacles == []


def test_conditions_that_are_known_of_neither_give_no_verdict() -> None:
    unknown = [experiment(conditions={}), experiment("other", metrics=METRICS | {"elbo": -10.0}, conditions={})]
    assert compare(unknown).metrics["elbo"][1].difference == Difference(10.0, pytest.approx(0.3 * 2**0.5), "")


def test_a_density_and_a_probability_of_grey_values_give_no_verdict() -> None:
    params = [{"model.likelihood": name} for name in ("gaussian", "discretised_logistic")]
    metrics = {"elbo": -20.0, "elbo_se": 0.3, "ais_nll": 19.0, "ais_nll_se": 0.3, "kl": 5.0, "kl_se": 0.01}
    one, other = (
        experiment(name, params=given, metrics=metrics | {"kl": kl, "elbo": -kl})
        for name, given, kl in zip(("first", "other"), params, (5.0, 9.0), strict=True)
    )
    found = compare([one, other])
    assert found.obstacles == [
        "other: the likelihood is discretised_logistic, of first gaussian: one is a density, one is not; "
        "no verdict on elbo, ais_nll"
    ]
    assert [found.metrics[name][1].difference.verdict for name in ("elbo", "kl")] == ["", "differs"]


def test_the_discrete_likelihoods_are_those_that_say_so() -> None:
    config = load_config(Path(__file__).parents[2] / "params.yaml").model
    assert {name for name, make in LIKELIHOODS.items() if make(*config.arguments(name)).is_discrete} == DISCRETE


# ---- parameters


def test_parameters_that_differ_are_shown_and_equal_ones_are_counted() -> None:
    other = experiment(params={"model.latent": 20, "train.seed": 0})
    found = compare([experiment(), other, experiment()])
    assert (found.params, found.equal_params) == ({"model.latent": ["12", "20", "12"]}, 1)


def test_what_mlflow_keeps_as_text_equals_what_yaml_holds() -> None:
    values = {"a.list": [16, 8], "a.none": None, "a.rate": 1e-5, "a.yes": True, "a.one": 1, "a.name": "elbo"}
    texts = {"a.list": "(16, 8)", "a.none": "None", "a.rate": "1e-05", "a.yes": "True", "a.one": "1.0"}
    found = compare([experiment(params=values), experiment(params=texts | {"a.name": "elbo"})])
    assert (found.params, found.equal_params) == ({}, 6)


def test_values_are_spelled_as_in_params_yaml() -> None:
    values = {"a.list": [16, "relu"], "a.none": None, "a.yes": True, "a.rate": 1e-5, "a.word": "none"}
    other = {"a.list": [16], "a.none": 3, "a.yes": False, "a.rate": 2e-5, "a.word": "all"}
    found = compare([experiment(params=values), experiment(params=other)]).params
    assert [row[0] for row in found.values()] == ["[16, relu]", "null", "true", "1e-05", "none"]


def test_true_is_not_1() -> None:
    found = compare([experiment(params={"a.b": True}), experiment(params={"a.b": 1})])
    assert found.params == {"a.b": ["true", "1"]}


def test_a_section_that_is_not_known_does_not_differ_but_a_parameter_that_is_not_there_does() -> None:
    other = experiment(params={"model.latent": 12, "model.extra": 1})
    found = compare([experiment(), other])
    assert (found.params, found.equal_params) == ({"model.extra": ["—", "1"]}, 2)


@pytest.mark.parametrize(
    ("value", "error", "sign", "spelled"),
    [
        (-20.1264, 0.3, "", "-20.13 ± 0.30"),
        (3.76813, 0.0387, "+", "+3.768 ± 0.039"),
        (1234.5, 12.0, "", "1234 ± 12"),
        (-0.0001, 0.2, "+", "+0.00 ± 0.20"),
        (0.72699999, None, "+", "+0.727"),
        (0.0, None, "+", "0"),
        (30.0, 0.0, "", "30"),
    ],
)
def test_a_number_has_the_places_of_its_error(value: float, error: float | None, sign: str, spelled: str) -> None:
    assert spell(value, error, sign) == spelled


# ---- the page


class Outline(HTMLParser):
    """Tags, links and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attributes if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.text = re.sub(r"\s+", " ", f"{self.text} {data}")


def test_the_page_says_every_number_and_holds_every_picture() -> None:
    other = experiment(
        "other",
        params={"model.latent": 20, "train.seed": 0},
        metrics=METRICS | {"elbo": -18.0},
        samples=PICTURE + b"other",
        notes=("not found: something",),
    )
    html = page.render(compare([experiment(), other, experiment("third", conditions={})]))
    outline = Outline(html)
    for words in (
        "3 experiments side by side",
        "elbo -20.00 ± 0.30 -18.00 ± 0.30 +2.00 ± 0.42 better -20.00 ± 0.30 +0.00 ± 0.42",
        "nll 19.00 ± 0.30 19.00 ± 0.30 +0.00 ± 0.42 within noise",
        "model.latent 12 20 12",
        "1 differ, 1 are equal",
        "third: the processed data are not known, of first hash.dir; no verdict on elbo, nll",
        "other : not found: something",
    ):
        assert words in outline.text
    _, curves, *samples = [link.removeprefix("data:image/png;base64,") for link in outline.links]
    assert base64.b64decode(curves).startswith(b"\x89PNG\r\n")
    assert [base64.b64decode(picture) for picture in samples] == [PICTURE, PICTURE + b"other", PICTURE]


def test_the_page_is_self_contained_and_shares_the_style_of_the_report() -> None:
    html = page.render(compare([experiment(), experiment()]))
    outline = Outline(html)
    assert [link for link in outline.links if not link.startswith("data:")] == []
    assert not {"script", "iframe", "object", "embed", "base"} & set(outline.tags)
    assert not re.search(r"https?:|@import|url\(", html)
    assert html.count("prefers-color-scheme: dark") == 2
    assert html.count("<style>") == 1
    assert "--paper: #0d1117" in html
    assert html.count("<table>") == html.count('<div class="card scroll">\n    <table>')


def test_the_browser_is_told_to_allow_what_the_page_holds_and_nothing_else() -> None:
    policy = Policy(page.render(compare([experiment(), experiment()])))
    assert [len(hashes) for hashes in policy.hashes.values()] == [1, 0]
    assert policy.allows_exactly_what_is_there, policy.rules


def test_everything_on_the_page_is_escaped() -> None:
    evil = '<script>alert("x")</script>'
    poisoned = experiment(
        evil,
        origin=evil,
        params={f"model.{evil}": evil},
        metrics={evil: 1.0, "elbo": -20.0, "elbo_se": 0.3},
        conditions={"data": evil},
        notes=(evil,),
    )
    html = page.render(compare([experiment(), poisoned]))
    assert "script" not in Outline(html).tags
    assert evil not in html


def test_a_page_of_experiments_without_results_says_so() -> None:
    bare = experiment(metrics={}, losses={}, samples=None)
    text = Outline(page.render(compare([bare, bare]))).text
    for words in ("None could be read.", "No curves could be read.", "Not found."):
        assert words in text


def test_curves_have_a_line_each_and_name_the_split_where_it_is_not_the_same() -> None:
    def labels(*experiments: Experiment) -> list[str]:
        (axes,) = page.loss_curves(list(experiments)).axes
        return [text.get_text() for text in axes.get_legend().get_texts()]

    first, second = experiment("_a$b"), experiment("c", losses={1: 9.0})
    assert labels(first, second) == [r"a\$b", "c"]
    assert labels(first, replace(second, loss_split="train")) == [r"a\$b (validation)", "c (train)"]
    (axes,) = page.loss_curves([experiment(str(number)) for number in range(12)]).axes
    drawn = {(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}
    assert len(drawn) == 12
    assert list(axes.get_lines()[3].get_ydata()) == [30.0, 25.0]


def test_losses_that_are_no_numbers_leave_room_for_the_others() -> None:
    (axes,) = page.loss_curves([experiment(losses={1: math.nan, 2: math.inf}), experiment()]).axes
    assert axes.get_ylim() == pytest.approx((25.0 - 0.3, 30.0 + 0.3))


# ---- files of the working copy and of revisions


def write_results(paths: Paths, params: dict[str, Any], elbo: float, **card: Any) -> None:
    """What the stages leave, of a model with these parameters."""

    def write(path: Path, content: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")

    with paths.params.open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
    config = load_config(paths.params)
    trained = params_hash(
        {name: getattr(config, name).model_dump(mode="json") for name in ("model", "objective", "train")}
    )
    lineage = {"data": "hash.dir", "params_sha256": trained}
    write(paths.training_metrics, json.dumps({"best_epoch": 2, "epochs": 2}))
    write(paths.evaluation_metrics, json.dumps({"elbo": elbo, "elbo_se": 0.25, "images": 359}))
    write(paths.evaluation_card, json.dumps({**CONDITIONS, "seed": 0, **card, "lineage": lineage}))
    write(paths.history, f"epoch,train_loss,validation_loss\n1,31,30\n2,27,{-elbo}\n")
    paths.figures.mkdir(parents=True, exist_ok=True)
    (paths.figures / "samples.png").write_bytes(PICTURE + str(elbo).encode())


def test_the_working_copy_is_read_as_it_lies_there(project: Paths, params: dict[str, Any]) -> None:
    write_results(project, params, -20.0)
    found = sources.find("workspace", project)
    assert found.params == spread(params)
    assert found.params["model.latent"] == 3
    assert found.metrics == {"best_epoch": 2, "epochs": 2, "elbo": -20.0, "elbo_se": 0.25, "images": 359}
    assert found.conditions == CONDITIONS
    assert (found.loss_split, found.losses) == ("validation", {1: 30.0, 2: 20.0})
    assert (found.samples, found.notes) == (PICTURE + b"-20.0", ())


def test_the_card_tells_the_settings_of_the_evaluation(project: Paths, params: dict[str, Any]) -> None:
    write_results(project, params, -20.0, **{**SETTINGS, "outliers": None})
    wanted = {name: value for name, value in SETTINGS.items() if name != "outliers"}
    assert sources.find("workspace", project).conditions == CONDITIONS | wanted


def test_without_validation_the_curve_is_that_of_training(project: Paths, params: dict[str, Any]) -> None:
    write_results(project, params, -20.0)
    project.history.write_text("epoch,train_loss\n1,31\n2,27\n")
    found = sources.find("workspace", project)
    assert (found.loss_split, found.losses) == ("train", {1: 31.0, 2: 27.0})


def test_parameters_that_were_changed_after_training_are_told(
    project: Paths, params: dict[str, Any], write_params: Callable[[dict[str, Any]], None]
) -> None:
    write_results(project, params, -20.0)
    params["model"]["latent"] = 7
    write_params(params)
    (note,) = sources.find("workspace", project).notes
    assert note.startswith("params.yaml was changed after training")


@pytest.mark.parametrize("content", ["", "{", "[]", "epoch\n1\n", "epoch,validation_loss\n1,many\n"])
def test_damaged_files_are_told_and_the_rest_is_read(content: str, project: Paths, params: dict[str, Any]) -> None:
    write_results(project, params, -20.0)
    project.history.write_text(content)
    project.evaluation_card.write_text("{")
    found = sources.find("workspace", project)
    assert found.notes == ("reports/evaluation/card.json: damaged", "reports/training/history.csv: damaged")
    assert found.metrics["elbo"] == -20.0


def test_an_empty_working_copy_holds_no_experiment(project: Paths) -> None:
    project.params.unlink()
    with pytest.raises(UserError) as caught:
        sources.find("workspace", project)
    assert str(caught.value) == (
        "workspace (working copy): wanted an experiment, found none of its files; run `dvc repro`"
    )


PIPELINE = """
stages:
  all:
    cmd: this is never run
    outs: [reports/training/history.csv, reports/evaluation/card.json, reports/evaluation/figures]
    metrics: [{reports/training/metrics.json: {cache: false}}, {reports/evaluation/metrics.json: {cache: false}}]
"""


def type_in(root: Path, *command: str) -> str:
    identity = {f"GIT_{who}_{what}": "n@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {
        **os.environ,
        **identity,
        "DVC_NO_ANALYTICS": "true",
        "DVC_SITE_CACHE_DIR": str(root.parent / "site"),
    }
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def repository_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A commit without results, then `main` with some, and the experiment `wide`."""
    root = tmp_path_factory.mktemp("dvc") / "repository"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc/config").write_text("[core]\n    analytics = false\n")
    (root / ".dvc/.gitignore").write_text("/cache\n/tmp\n/config.local\n")
    (root / "dvc.yaml").write_text(PIPELINE)
    shipped = YAML(typ="safe").load(Path(__file__).parents[2] / "params.yaml")
    paths = Paths(root, root)
    shutil.copy(Path(__file__).parents[2] / "params.yaml", paths.params)
    dvc = (sys.executable, "-m", "dvc")
    type_in(root, "git", "init", "--quiet", "--initial-branch", "main")
    type_in(root, "git", "add", "--all")
    type_in(root, "git", "commit", "--quiet", "--message", "start")
    write_results(paths, shipped, -20.0)
    type_in(root, *dvc, "commit", "--quiet", "--force")
    type_in(root, "git", "add", "--all")
    type_in(root, "git", "commit", "--quiet", "--message", "finished")
    shipped["model"]["latent"] = 20
    write_results(paths, shipped, -18.0, nll_samples=5)
    type_in(root, *dvc, "commit", "--quiet", "--force")
    type_in(root, *dvc, "exp", "save", "--quiet", "--name", "wide")
    return root


@pytest.fixture
def repository(
    project: Paths, repository_once: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Paths:
    """The repository as the working copy; nobody changes it."""
    monkeypatch.chdir(repository_once)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(repository_once.parent / "site"))
    return Paths.here()


def test_revisions_and_experiments_are_read_through_the_cache_of_dvc(repository: Paths) -> None:
    commit = type_in(repository.root, "git", "rev-parse", "HEAD")
    for name in ("main", commit, commit[:7], "HEAD"):
        found = sources.find(name, repository)
        assert found.name == (commit[:7] if commit.startswith(name) else name)
        assert found.origin == f"revision {commit[:7]}"
        assert found.params["model.latent"] == 12
        assert (found.metrics["elbo"], found.samples) == (-20.0, PICTURE + b"-20.0")
        assert (found.losses, found.conditions, found.notes) == ({1: 30.0, 2: 20.0}, CONDITIONS, ())
    wide = sources.find("wide", repository)
    assert (wide.params["model.latent"], wide.metrics["elbo"], wide.losses[2]) == (20, -18.0, 18.0)
    assert wide.conditions["nll_samples"] == 5


def test_a_revision_that_was_never_run_has_parameters_alone_and_says_what_to_do(repository: Paths) -> None:
    found = sources.find("HEAD~1", repository)
    assert found.params["model.latent"] == 12
    assert (found.metrics, found.losses, found.samples) == ({}, {}, None)
    assert found.notes == (
        "not found: reports/training/metrics.json, reports/evaluation/metrics.json, reports/evaluation/card.json, "
        "reports/training/history.csv, reports/evaluation/figures/samples.png; it was not run at this revision: run "
        "`dvc exp run`, and compare that experiment",
    )


def test_what_the_cache_does_not_have_is_told_with_the_command_that_gets_it(
    repository: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = repository.root / ".dvc/cache"
    cache.rename(cache.with_name("tmp-away"))
    try:
        found = sources.find("wide", repository)
    finally:
        cache.with_name("tmp-away").rename(cache)
    assert (found.metrics["elbo"], found.losses) == (-18.0, {})
    (note,) = found.notes
    assert note.startswith("not found: reports/evaluation/card.json, reports/training/history.csv, reports/")
    assert "`dvc fetch` gets it from a remote, or `dvc exp apply wide` " in note


def test_an_unknown_name_says_what_was_wanted_and_what_lists_it(repository: Paths) -> None:
    for name in ("nonesuch", "abc123", "it's", "a b", "main:params.yaml"):
        with pytest.raises(UserError) as caught:
            sources.find(name, repository)
        assert str(caught.value) == (
            f"{name}: wanted `workspace`, a revision of git, an experiment of DVC, or a run of MLflow (an id, 6 or "
            "more digits of it, or a name), found none; `dvc exp show` lists experiments, `mlflow ui` (with "
            "--backend-store-uri as `reparam summary` prints it) lists runs"
        )
    with pytest.raises(UserError, match="found an empty name"):
        sources.find("", repository)


def test_where_there_is_no_repository_a_name_is_unknown(project: Paths) -> None:
    with pytest.raises(UserError, match=r"^main: wanted `workspace`, a revision of git"):
        sources.find("main", project)


# ---- runs of MLflow


@pytest.fixture(scope="module")
def store_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A store with a run that was evaluated, and one that was interrupted; their ids."""
    root = tmp_path_factory.mktemp("store")
    (root / "samples.png").write_bytes(PICTURE)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
            patch.delenv(name)
        patch.setenv("DVC_EXP_NAME", "bonny-bream")
        tracker = track.connect(Paths(root, root))
        with tracker.training_run("hash.dir") as run:
            run.log_params({"model.latent": 12, "model.hidden": [16, 8], "preprocess.binarization": "dynamic"})
            for epoch, loss in enumerate((30.0, 20.0), start=1):
                run.log_metrics({"train_loss": loss + 1, "validation_loss": loss, "images_per_second": 9.0}, epoch)
            run.log_metrics({"best_epoch": 2, "best_validation_loss": 20.0})
            run.set_tags({track.WEIGHTS_TAG: "weights"})
        with tracker.child_run("evaluate", {"weights_sha256": "weights"}) as child:
            child.log_params({"evaluate.nll_samples": 100, "evaluate.split": "test", "evaluate.outliers": None})
            child.log_params({"evaluate.generated.images": 50})
            child.log_headline({"elbo": -20.0, "elbo_se": 0.25, "images": 359})
            child.log_metrics({"latent_kl.0": 1.0})
            child.log_files([root / "samples.png"], "evaluation")
        with suppress(KeyboardInterrupt), tracker.child_run("evaluate", {"weights_sha256": "weights"}) as child:
            child.log_params({"evaluate.nll_samples": 7})
            raise KeyboardInterrupt
        with tracker.child_run("export", {"weights_sha256": "weights"}) as child:
            child.log_headline({"encoder_max_error": 1e-7})
        patch.setenv("DVC_EXP_NAME", "dull-dace")
        tracker = track.connect(Paths(root, root))
        with suppress(KeyboardInterrupt), tracker.training_run("hash.dir") as other:
            other.log_metrics({"train_loss": 40.0}, 1)
            raise KeyboardInterrupt
        with tracker.training_run("hash.dir"):
            pass
    return root, run.run_id, other.run_id


@pytest.fixture
def store(project: Paths, store_once: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[Paths, str, str]:
    root, evaluated, interrupted = store_once
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    return Paths(project.root, root), evaluated, interrupted


def test_a_run_is_read_by_its_id_its_beginning_its_name_and_a_run_below_it(store: tuple[Paths, str, str]) -> None:
    paths, run, _ = store
    for name in (run, run[:6], "bonny-bream", "export"):
        found = sources.find(name, paths)
        assert found.name == (run[:8] if run.startswith(name) else name)
        assert found.origin == f"MLflow run {run[:8]} (bonny-bream)"
        assert found.params == {
            "model.latent": "12",
            "model.hidden": "[16, 8]",
            "preprocess.binarization": "dynamic",
            "evaluate.nll_samples": "100",
            "evaluate.split": "test",
            "evaluate.outliers": "None",
            "evaluate.generated.images": "50",
        }
        assert found.metrics == {
            "best_epoch": 2,
            "best_validation_loss": 20.0,
            "elbo": -20.0,
            "elbo_se": 0.25,
            "images": 359,
        }
        assert found.conditions == CONDITIONS | {"split": "test", "generated.images": 50}
        assert (found.loss_split, found.losses) == ("validation", {1: 30.0, 2: 20.0})
        assert (found.samples, found.notes) == (PICTURE, ())


def test_an_unfinished_run_shows_what_there_is(store: tuple[Paths, str, str]) -> None:
    paths, _, run = store
    found = sources.find(run, paths)
    assert (found.loss_split, found.losses, found.metrics, found.samples) == ("train", {1: 40.0}, {}, None)
    assert found.notes == (
        "the run is KILLED",
        "no evaluation was logged below this run: run `dvc repro` with its parameters",
        "not found: evaluation/samples.png among its artifacts",
    )


def test_a_name_of_several_runs_wants_an_id(store: tuple[Paths, str, str]) -> None:
    paths, _, run = store
    with pytest.raises(UserError, match=rf"^dull-dace: wanted one run of MLflow, found 2: .*{run}.*; give"):
        sources.find("dull-dace", paths)


def test_a_store_without_the_run_says_so(store: tuple[Paths, str, str]) -> None:
    paths, _, _ = store
    for name in ("nonesuch", "0" * 32, "000000", "bonny-bream' OR ''='"):
        with pytest.raises(UserError, match="found none; `dvc exp show` lists experiments, `mlflow ui`"):
            sources.find(name, paths)


@pytest.mark.parametrize("uri", ["", "sqlite:///{root}/other.db", "file://{root}/mlruns"])
def test_looking_for_a_run_makes_no_store(uri: str, project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(root=project.root))
    with pytest.raises(UserError, match=r"^nonesuch: wanted"):
        sources.find("nonesuch", project)
    assert [path.name for path in project.root.iterdir()] == ["params.yaml"]


def test_a_server_that_cannot_be_reached_is_told_at_once(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with pytest.raises(TrackingError, match=r"^nonesuch: no revision of git and no experiment of DVC; MLflow at http"):
        sources.find("nonesuch", project)


# ---- the command


def test_the_command_prints_plain_tables_and_writes_the_page(
    repository: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "page.html"
    monkeypatch.setattr(sys, "argv", ["reparam", "compare", "main", "wide", "workspace", "--output", str(target)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    lines = [re.sub(r" {2,}", " | ", line.strip()) for line in printed.splitlines()]
    assert [line for line in lines if line.startswith(("Param", "model.", "elbo", "best", "wide:"))] == [
        f"Parameters: 1 differ, {len(flatten(load_config(repository.params))) - 1} are equal",
        "model.latent | 12 | 20 | 20",
        "best_epoch | 2 | 2 | 2",
        "elbo | -20.00 ± 0.25 | -18.00 ± 0.25 | -18.00 ± 0.25",
        "best_epoch | 0 | 0",
        "elbo | +2.00 ± 0.35 | better | +2.00 ± 0.35 | better",
    ]
    assert not re.search(r"[│┃━─\x1b…]", printed)
    assert lines[-1] == f"{target}: written"
    assert "3 experiments side by side" in target.read_text(encoding="utf-8")


def test_the_page_stands_among_the_reports_unless_told_otherwise(project: Paths, params: dict[str, Any]) -> None:
    write_results(project, params, -20.0)
    side_by_side.run(["workspace", "workspace"], project)
    assert project.comparison == project.root / "reports/compare.html"
    assert "2 experiments side by side" in project.comparison.read_text(encoding="utf-8")


def test_one_experiment_is_not_enough(project: Paths) -> None:
    with pytest.raises(UserError, match=r"^compare: wanted two experiments or more, found only 'wide'; "):
        side_by_side.run(["wide"], project)
    assert not project.comparison.exists()


def test_a_comparison_of_files_loads_neither_torch_nor_mlflow_nor_dvc(project: Paths, params: dict[str, Any]) -> None:
    write_results(project, params, -20.0)
    code = (
        "import sys; from reparam.compare import side_by_side; from reparam.paths import Paths;"
        "side_by_side.run(['workspace', 'workspace'], Paths.here());"
        "assert not {'torch', 'mlflow', 'dvc'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
