"""`reparam experiments`: which parameters differ, and the headline metrics."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from experiments import CONDITIONS, experiment, type_in, write_results
from ruamel.yaml import YAML

from reparam.commands import experiments as table
from reparam.compare.experiment import Experiment
from reparam.errors import UserError
from reparam.paths import Paths

Command = Callable[..., tuple[int, str]]
LEGEND = "* best; `reparam compare A B` says whether two differ by more than noise"


@pytest.fixture
def printed(
    project: Paths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Return the lines of the table of these experiments, the first of which is the commit."""

    def show(*experiments: Experiment, sort: str = "") -> list[str]:
        monkeypatch.setattr(table, "_read", lambda _, **__: (list(experiments), []))
        table.run(project, sort)
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return show


def measured(name: str, elbo: float, latent: int = 12, **changes: object) -> Experiment:
    metrics = {"elbo": elbo, "elbo_se": 0.3, "kl": 8.0, "kl_se": 0.1}
    return experiment(name, params={"model.latent": latent, "train.seed": 0}, metrics=metrics, **changes)


def test_the_best_comes_first_and_is_marked(printed: Callable[..., list[str]]) -> None:
    assert printed(measured("first", -20.0), measured("wide", -18.0, latent=20), measured("narrow", -25.0, 2)) == [
        "        latent            ELBO            KL",
        "wide    20      -18.00 ± 0.30*   8.00 ± 0.10",
        "first   12       -20.00 ± 0.30   8.00 ± 0.10",
        "narrow  2        -25.00 ± 0.30   8.00 ± 0.10",
        LEGEND,
    ]


@pytest.mark.parametrize("sort", ["latent", "model.latent"])
def test_they_are_sorted_by_a_parameter_on_request(sort: str, printed: Callable[..., list[str]]) -> None:
    lines = printed(measured("first", -20.0), measured("wide", -18.0, 20), measured("narrow", -25.0, 2), sort=sort)
    assert [line.split()[0] for line in lines[1:4]] == ["narrow", "first", "wide"]


def test_the_validation_split_sorts_and_comes_first(printed: Callable[..., list[str]]) -> None:
    found = [measured("first", -20.0), measured("wide", -18.0, 20)]
    chosen = [
        replace(one, metrics={**one.metrics, "elbo_validation": elbo, "elbo_validation_se": 0.5})
        for one, elbo in zip(found, (-19.0, -22.0), strict=True)
    ]
    assert printed(*chosen)[:3] == [
        "       latent   ELBO, validation            ELBO            KL",
        "first  12         -19.00 ± 0.50*   -20.00 ± 0.30   8.00 ± 0.10",
        "wide   20          -22.00 ± 0.50  -18.00 ± 0.30*   8.00 ± 0.10",
    ]
    assert [line.split()[0] for line in printed(*chosen, sort="elbo")[1:3]] == ["wide", "first"]


def test_the_metric_that_sorts_is_shown_also_where_it_is_no_headline(printed: Callable[..., list[str]]) -> None:
    found = [replace(one, metrics={**one.metrics, "psnr": 9.5}) for one in (measured("a", -20.0), measured("b", -18.0))]
    assert printed(*found, sort="psnr")[0].split() == ["ELBO", "KL", "PSNR"]


def test_models_that_were_only_trained_are_sorted_by_their_validation_loss(printed: Callable[..., list[str]]) -> None:
    trained = {name: {"best_validation_loss": loss} for name, loss in {"a": 30.25, "b": 28.5, "c": 31.0}.items()}
    found = [experiment(name, params={"train.seed": 0}, metrics=metrics) for name, metrics in trained.items()]
    head, *lines = printed(*found)[:4]
    assert head.split() == ["Validation", "loss"]
    assert [line.split() for line in lines] == [["b", "28.5*"], ["a", "30.25"], ["c", "31"]]


def test_a_note_that_many_share_is_said_once_and_names_them(
    project: Paths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [table.Row(name, name * 40, is_commit=False) for name in ("a", "b", "c")]
    read = {
        row.revision: experiment(
            row.name,
            params={"train.seed": seed},
            notes=(f"apply {row.revision}", *(["alone: apply " + row.revision] if seed == 2 else [])),
        )
        for seed, row in enumerate(rows)
    }
    monkeypatch.setattr(table, "_names", lambda _, **__: iter(rows))
    monkeypatch.setattr(table.revisions, "read_revision", lambda revision, _: read[revision])
    table.run(project)
    lines = capsys.readouterr().out.splitlines()
    assert "a, b, c: apply NAME (NAME is one of these)" in lines
    assert "c: alone: apply c" in lines


def test_an_experiment_whose_name_is_not_its_own_is_named_by_its_revision() -> None:
    assert table._shared_note("apply NAME", [("a (2222222)", "2" * 40)]) == f"a (2222222): apply {'2' * 40}"


def test_what_has_no_value_comes_last(printed: Callable[..., list[str]]) -> None:
    lines = printed(experiment("failed", params={"model.latent": 3}, metrics={}), measured("first", -20.0))
    assert [line.split() for line in lines[1:3]] == [
        ["first", "12", "-20.00", "±", "0.30", "8.00", "±", "0.10"],
        ["failed", "3", "—", "—"],
    ]


def test_a_metric_of_other_images_is_in_brackets_and_no_rival(printed: Callable[..., list[str]]) -> None:
    elsewhere = {"binarization": "none", "images_sha256": "5" * 64, "test_sha256": "5" * 64}
    other = measured("other", -1.0, conditions=CONDITIONS | elsewhere)
    lines = printed(measured("first", -20.0), other, measured("worse", -21.0, 3))
    assert [line.split()[:5] for line in lines[1:4]] == [
        ["first", "12", "-20.00", "±", "0.30*"],
        ["worse", "3", "-21.00", "±", "0.30"],
        ["other", "12", "(-1.00", "±", "0.30)"],
    ]
    assert lines[-2] == "other: in brackets, not comparable with first: other images, binarization is none"


def test_what_differs_between_comparable_experiments_comes_first(printed: Callable[..., list[str]]) -> None:
    other = measured("other", -1.0, conditions=CONDITIONS | {"binarization": "none"})
    found = [
        replace(one, params={**one.params, "download.source": source, "train.epochs": epochs})
        for one, source, epochs in (
            (measured("first", -20.0), "digits", 5),
            (other, "mnist", 5),
            (measured("longer", -21.0), "digits", 9),
        )
    ]
    assert printed(*found)[0].split()[:2] == ["epochs", "source"]


def test_two_parameters_of_one_name_are_written_in_full(printed: Callable[..., list[str]]) -> None:
    ours, theirs = ({"train.seed": seed, "evaluate.seed": seed} for seed in (0, 1))
    lines = printed(experiment("a", params=ours), experiment("b", params=theirs))
    assert lines[0].split()[:2] == ["train.seed", "evaluate.seed"]


def test_parameters_for_which_there_is_no_space_are_named_below(printed: Callable[..., list[str]]) -> None:
    ours, theirs = ({f"model.parameter_{i}_of_many": i + change for i in range(12)} for change in (0, 1))
    lines = printed(experiment("a", params=ours), experiment("b", params=theirs))
    assert max(map(len, lines[:3])) <= 160
    assert "parameter_0_of_many" in lines[0]
    assert lines[-2].endswith(
        "model.parameter_11_of_many: not shown, because the line is full; `reparam compare A B` shows all that differ"
    )


def test_what_there_is_not_cannot_sort(printed: Callable[..., list[str]]) -> None:
    with pytest.raises(UserError, match=r"^--sort xyz: wanted a parameter or metric, found none of that name; metrics"):
        printed(experiment("a"), sort="xyz")


def test_commits_and_experiments_of_a_repository_are_read(repository: Paths, reparam: Command) -> None:
    code, out = reparam("experiments")
    head, *lines = [line.split() for line in out.splitlines()]
    assert (code, head) == (0, ["latent", "nll_samples", "ELBO"])
    assert [line[:3] for line in lines[:2]] == [["wide", "20", "5"], ["main", "8", "100"]]
    assert [line[3:] for line in lines[:2]] == [["-18.00", "±", "0.25*"], ["-20.00", "±", "0.25"]]
    # The working copy is that of the experiment, and is not shown twice.
    assert len(out.splitlines()) == 4


def test_experiments_of_earlier_commits_are_listed_and_a_commit_that_changed_nothing_is_not(
    repository: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reparam: Command
) -> None:
    root = tmp_path / "later"
    shutil.copytree(repository.root, root)
    monkeypatch.chdir(root)
    dvc = (sys.executable, "-m", "dvc")
    (earlier,) = [
        line[:7] for line in type_in(root, "git", "for-each-ref", "refs/exps").splitlines() if "/wide" in line
    ]
    for command in (("git", "checkout", "--force", "main"), (*dvc, "checkout", "--force")):
        type_in(root, *command)
    type_in(root, "git", "commit", "--allow-empty", "--message", "later")

    def names(*options: str) -> list[str]:
        return [line.partition("  ")[0] for line in reparam("experiments", *options)[1].splitlines()[1:-1]]

    assert (names(), names("--this-commit")) == (["wide", "main"], ["main"])
    write_results(Paths.here(), YAML(typ="safe").load(root / "params.yaml"), -17.0)
    type_in(root, *dvc, "commit", "--force")
    type_in(root, *dvc, "exp", "save", "--name", "wide")
    assert names() == ["wide", f"wide ({earlier})", "main"]
    assert names("--all-commits") == names()
    assert names("--this-commit") == ["wide", "main"]


def test_without_a_repository_there_is_nothing_to_list(project: Paths, reparam: Command) -> None:
    code, out = reparam("experiments")
    assert (code, out.startswith("error: experiments: ")) == (1, True)
    assert out.endswith("`reparam doctor` says what is missing\n")
