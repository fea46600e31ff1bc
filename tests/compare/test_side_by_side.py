import base64
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiments import METRICS, PICTURE, experiment, seeded, write_results
from policy import Policy

from reparam import cli
from reparam.compare import side_by_side
from reparam.compare.differences import compare
from reparam.compare.experiment import Experiment
from reparam.compare.side_by_side import conclude, render
from reparam.config import flatten, load_config
from reparam.errors import UserError
from reparam.paths import Paths

UNDECIDED = (
    "no verdict by which to choose: wanted one metric of the validation split, found none; elbo_validation needs "
    "preprocess.validation above 0 and a density of the pixels"
)


# ---- the verdict


def validated(name: str, elbo: float, **changes: Any) -> Experiment:
    return experiment(name, metrics={"elbo_validation": elbo, "elbo_validation_se": 0.3}, **changes)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (validated("b", -18.0), "b: better than a by elbo_validation (+2.00 ± 0.42)"),
        (validated("b", -22.0), "b: worse than a by elbo_validation (-2.00 ± 0.42)"),
        (validated("b", -20.5), "b: within noise of a by elbo_validation (-0.50 ± 0.42)"),
        (experiment("b"), "b: no verdict against a: elbo_validation is not known of both"),
        (
            validated("b", -18.0, conditions={}),
            "b: no verdict against a: elbo_validation does not compare, or one has no known error",
        ),
    ],
)
def test_one_sentence_says_whether_an_experiment_is_better(other: Experiment, sentence: str) -> None:
    assert list(conclude(compare([validated("a", -20.0), other]))) == [sentence]


def test_the_same_scores_are_the_same() -> None:
    scored = validated("a", -20.0, scores={"elbo_validation": np.array([-19.0, -21.0])})
    assert list(conclude(compare([scored, replace(scored, name="b")]))) == ["b: the same as a by elbo_validation"]


def test_over_seeds_there_is_one_sentence_for_each_group() -> None:
    runs = [
        validated(f"{name}{seed}", elbo + seed / 10, params={"model.latent": latent, "train.seed": seed})
        for name, latent, elbo in (("a", 12, -20.0), ("b", 20, -18.0))
        for seed in range(2)
    ]
    assert list(conclude(compare(runs))) == [
        "b0, b1: better than a0, a1 by elbo_validation (+2.000 ± 0.071), over seeds"
    ]


def test_without_a_metric_to_choose_by_the_verdict_says_what_it_needs() -> None:
    assert list(conclude(compare([experiment(), experiment("other")]))) == [UNDECIDED]
    bare = experiment(metrics={})
    assert list(conclude(compare([bare, bare]))) == []


def test_a_terminal_has_the_metric_to_choose_by_first_and_no_rows_that_say_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = {"epochs": 35, "encoder_max_error": 1e-6, "elbo": -20.0, "elbo_se": 0.3}
    ours = experiment(metrics=metrics | {"elbo_validation": -19.0, "elbo_validation_se": 0.4})
    theirs = replace(ours, name="other", metrics={**ours.metrics, "elbo_validation": -18.9, "encoder_max_error": 2e-6})
    side_by_side.show(compare([ours, theirs]), "page.html")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[lines.index("Metrics ± standard error; choose by elbo_validation") :][:7] == [
        "Metrics ± standard error; choose by elbo_validation",
        "                  first           other           other against first",
        "elbo_validation   -19.00 ± 0.40   -18.90 ± 0.40   +0.10 ± 0.57  within noise",
        "elbo              -20.00 ± 0.30   -20.00 ± 0.30   +0.00 ± 0.42  within noise",
        "",
        "equal in all: epochs 35",
        "on the page alone, for each model with its own export: encoder_max_error",
    ]
    assert lines[-2:] == ["page.html: written", "other: within noise of first by elbo_validation (+0.10 ± 0.57)"]


# ---- Markdown


def test_a_comment_begins_with_the_headline_and_folds_the_same_tables_and_notes() -> None:
    other = experiment("a|b", params={"model.latent": 20, "train.seed": 0}, metrics={"elbo": -18.0, "elbo_se": 0.3})
    first = experiment("first", metrics={"elbo": -20.0, "elbo_se": 0.3})
    lines = side_by_side.markdown(compare([first, other])).splitlines()
    assert lines[lines.index("### Parameters: 1 differs, 1 are equal") :][2:5] == [
        "|  | first | a\\|b |",
        "| --- | --- | --- |",
        "| model.latent | 12 | 20 |",
    ]
    assert "| elbo | -20.00 ± 0.30 | -18.00 ± 0.30 | +2.00 ± 0.42  better |" in lines
    assert lines[-3].startswith("- ")
    # All that is folded comes after the headline and the verdict.
    assert lines[:8] == [
        "### Headline metrics ± standard error",
        "",
        "|  | first | a\\|b | a\\|b against first |",
        "| --- | --- | --- | --- |",
        "| ELBO | -20.00 ± 0.30 | -18.00 ± 0.30 | +2.00 ± 0.42  better |",
        "",
        UNDECIDED,
        "",
    ]
    folded = [lines.index("<details><summary>Parameters, all metrics, notes</summary>"), lines.index("</details>")]
    assert folded == [8, len(lines) - 1]
    assert not any("written" in line for line in lines)


def test_a_comment_says_in_one_line_that_a_side_has_no_results_and_gives_it_no_column_of_metrics() -> None:
    bare = experiment("bare", metrics={})
    full = experiment("full", metrics={"elbo": -20.0, "elbo_se": 0.3})
    for order in ([bare, full], [full, bare]):
        text = side_by_side.markdown(compare(order))
        assert text.startswith(
            "### Headline metrics ± standard error\n\n"
            "|  | full |\n| --- | --- |\n| ELBO | -20.00 ± 0.30 |\n\n"
            f"bare: no results\n\n{UNDECIDED}\n\n<details>"
        )
        assert "|  | full |\n| --- | --- |\n| elbo | -20.00 ± 0.30 |\n" in text
        assert "| — " not in text
    neither = side_by_side.markdown(compare([bare, experiment("empty", metrics={})]))
    assert neither.startswith(
        "### Headline metrics ± standard error\n\nbare: no results\n\nempty: no results\n\n<details>"
    )


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
    html = render(compare([experiment(), other, experiment("third", conditions={})]))
    outline = Outline(html)
    for words in (
        "3 experiments side by side",
        "elbo -20.00 ± 0.30 -18.00 ± 0.30 +2.00 ± 0.42 better -20.00 ± 0.30 +0.00 ± 0.42",
        "nll 19.00 ± 0.30 19.00 ± 0.30 +0.00 ± 0.42 within noise",
        "model.latent 12 20 12",
        "1 differs, 1 are equal",
        "other : not found: something",
    ):
        assert words in outline.text
    _, curves, *samples = [link.removeprefix("data:image/png;base64,") for link in outline.links]
    assert base64.b64decode(curves).startswith(b"\x89PNG\r\n")
    assert [base64.b64decode(picture) for picture in samples] == [PICTURE, PICTURE + b"other", PICTURE]


def test_a_narrow_page_has_the_name_of_its_experiment_beside_each_value_and_the_verdict_first() -> None:
    html = render(compare([validated("a", -20.0), validated("b<", -18.0, params={"model.latent": 9, "train.seed": 0})]))
    assert re.findall(r'<td data-of="([^"]*)">', html) == ["a", "b&lt;"] * 2
    assert html.count('<tr class="deciding"><th scope="row">elbo_validation</th>') == 1
    assert '<p class="verdict">b&lt;: better than a by elbo_validation (+2.00 ± 0.42)</p>' in html
    assert ".sheet td[data-of]::before { content: attr(data-of)" in html


def test_the_browser_is_asked_to_allow_what_the_page_holds_and_nothing_else() -> None:
    policy = Policy(render(compare([experiment(), experiment()])))
    assert [len(hashes) for hashes in policy.hashes.values()] == [1, 0]
    assert policy.allows_exactly_what_is_there, policy.rules


def test_the_page_is_self_contained_and_shares_the_style_of_the_report() -> None:
    html = render(compare([experiment(), experiment()]))
    outline = Outline(html)
    assert [link for link in outline.links if not link.startswith("data:")] == []
    assert not {"script", "iframe", "object", "embed", "base"} & set(outline.tags)
    assert not re.search(r"https?:|@import|url\(", html)
    assert html.count("prefers-color-scheme: dark") == 2
    assert html.count("<style>") == 1
    assert "--paper: #0d1117" in html
    assert html.count("<table>") == html.count('<div class="card sheet" ') == 2


def test_everything_on_the_page_is_escaped() -> None:
    evil = '<script>alert("x")</script>'
    poisoned = experiment(
        evil,
        origin=evil,
        params={f"model.{evil}": evil},
        metrics={evil: 1.0, "elbo": -20.0, "elbo_se": 0.3},
        conditions={"split": evil},
        notes=(evil,),
    )
    html = render(compare([experiment(), poisoned]))
    assert "script" not in Outline(html).tags
    assert evil not in html


def test_a_page_of_experiments_without_results_says_so() -> None:
    bare = experiment(metrics={}, losses={}, samples=None)
    text = Outline(render(compare([bare, bare]))).text
    for words in ("None could be read.", "No curves could be read.", "Not found."):
        assert words in text


def test_seeds_have_a_table_of_their_own() -> None:
    text = Outline(
        render(compare([seeded("a", 0, -20.0), seeded("b", 1, -21.0), seeded("c", 0, -1.0, latent=20)]))
    ).text
    assert "Over seeds a, b c elbo -20.50 ± 0.71 -1 +19.5" in text


def test_curves_name_the_split_where_it_is_not_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    plot = side_by_side.plot_losses
    monkeypatch.setattr(side_by_side, "plot_losses", lambda *given: drawn.append(given) or plot(*given))
    first, second = experiment("a"), experiment("c", losses={1: 9.0})
    render(compare([first, second]))
    render(compare([first, replace(second, loss_split="train")]))
    assert drawn == [
        ({"a": first.losses, "c": second.losses}, "validation loss"),
        ({"a (validation)": first.losses, "c (train)": second.losses}, "train or validation loss"),
    ]


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
    assert [line for line in lines if line.startswith(("Param", "model.", "evaluate.", "elbo", "best", "wide: 1"))] == [
        f"Parameters: 2 differ, {len(flatten(load_config(repository.params))) - 2} are equal",
        "model.latent | 8 | 20 | 20",
        "evaluate.nll_samples | 100 | 5 | 5",
        "elbo | -20.00 ± 0.25 | -18.00 ± 0.25 | -18.00 ± 0.25",
        "elbo | +2.000 ± 0.058 | better | +2.000 ± 0.058 | better",
    ]
    assert not re.search(r"[│┃━─\x1b…]", printed)
    assert lines[-2:] == [f"{target}: written", UNDECIDED]
    assert "3 experiments side by side" in target.read_text(encoding="utf-8")


def test_the_page_is_among_the_reports_unless_asked_otherwise(project: Paths, params: dict[str, Any]) -> None:
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
