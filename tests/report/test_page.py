import base64
import html
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policy import Policy

from reparam.config import flatten, load_config
from reparam.data import store
from reparam.data.store import SPLITS
from reparam.errors import DamagedInputError, MissingInputError
from reparam.figures.curves import plot_training
from reparam.figures.images import plot_contact_sheet
from reparam.paths import Paths
from reparam.report import stage as report
from reparam.report.page import PICTURES, REQUIRED, Page, render

PICTURE = b"\x89PNG not really"
EVIL = '<script>alert("x")</script>'
PREFIX = "data:image/png;base64,"
VOID = {"meta", "link", "img", "br", "hr", "input"}
NAMES = [picture.name for group in PICTURES.values() for picture in group]
TILES: dict[str, Any] = {
    "image": [8, 8],
    "range": 2.5,
    "grid": {"steps": 15, "names": ["z3", "z1"], "unit": "prior standard deviations"},
    "traversals": {
        "steps": 21,
        "unit": "prior standard deviations",
        "use": "nats",
        "dimensions": [{"number": 3, "use": 1.25}, {"number": 1, "use": 0.5}],
    },
}


class Outline(HTMLParser):
    """Tags, links and text of a page; `unclosed` and `stray` are tags that do not match up."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.stray: list[str] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attributes if name in {"src", "href", "srcset", "action", "data"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.stray.append(tag)

    def handle_data(self, data: str) -> None:
        if "script" in self.open[-1:]:
            self.scripts.append(data)
        elif "style" not in self.open[-1:]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture
def page() -> Page:
    lineage = {
        "data": "data-hash.dir",
        "code_sha256": "train-code-hash",
        "params_sha256": "params-hash",
        "weights_sha256": "weights-hash",
    }
    return Page(
        title="Small & clear",
        data={"source": "digits", "binarization": "dynamic", "splits": {"validation": {"count": 9}}},
        model={"epochs": 120, "best_epoch": 80, "lineage": lineage},
        metrics={
            "elbo": -20.126,
            "elbo_se": 0.3,
            "reconstruction": 12.0,
            "reconstruction_se": 0.25,
            "kl": 8.126,
            "kl_se": 0.1,
            "nll": 18.5,
            "nll_se": 0.2,
            "active_units": 9,
            "images": 359,
        },
        evaluation={
            "images": 359,
            "units": "nats per image",
            "nll_samples": 2000,
            "elbo_samples": 16,
            "seed": 5,
            "active_variance": 0.01,
            "lineage": {**lineage, "evaluate_code_sha256": "evaluate-code-hash"},
        },
        parity={"encoder_max_error": 1e-7, "decoder_max_error": 3e-7, "served_elbo": -20.9, "served_elbo_loss": 0.774},
        manifest={
            "kind": "vae",
            "latent_size": 12,
            "grey_pixels": "keep",
            "image": {"shape": [8, 8, 1]},
            "lineage": {**lineage, "export_code_sha256": "export-code-hash"},
            "files": {"encoder.onnx": {"sha256": "encoder-hash"}, "decoder.onnx": {"sha256": "decoder-hash"}},
        },
        params={"model.hidden": (256, 128), "model.activation": "gelu", "train.learning_rate": 0.002, "train.seed": 0},
        pictures=dict.fromkeys(NAMES, PICTURE),
    )


@pytest.fixture
def playful(page: Page) -> Page:
    """A page with tiles to play with."""
    pictures = {**page.pictures, "grid_tiles": b"grid tiles", "traversal_tiles": b"traversal tiles"}
    return replace(page, pictures=pictures, evaluation={**page.evaluation, "tiles": TILES})


@pytest.mark.parametrize("which", ["page", "playful"])
def test_the_page_is_well_formed(which: str, request: pytest.FixtureRequest) -> None:
    outline = Outline(render(request.getfixturevalue(which)))
    assert (outline.stray, outline.open) == ([], [])


def test_the_page_says_every_number(page: Page) -> None:
    text = Outline(render(page)).text
    for words in (
        "Small & clear",
        "359 test images of digits , dynamic binarization",
        "best of 120 epochs: 80",
        "ELBO -20.13 ± 0.30",
        "Reconstruction 12.00 ± 0.25",
        "KL 8.13 ± 0.10",
        "NLL 18.50 ± 0.20",
        "Active units 9 of 12",
        "varies by more than 0.01 over images",
        "ONNX parity 3.0e-07",
        "Serving skew 0.77 nats",
        "(pixels: keep)",
        "NLL from 2000 importance samples, ELBO from 16 posterior samples per image, seed 5.",
        "standard_normal((16, 12), dtype=np.float32)",
        "uint8 (…, 8, 8, 1)",
    ):
        assert words in text


def test_parameters_stand_under_their_section(page: Page) -> None:
    text = Outline(render(page)).text
    assert "model hidden 256, 128 activation gelu train learning_rate 0.002 seed 0 Lineage" in text


def test_the_page_holds_the_params_file_that_it_was_made_with(project: Paths, page: Page, tmp_path: Path) -> None:
    config = load_config(project.params)
    [text] = re.findall(r'<pre id="params-file">(.*?)</pre>', render(replace(page, params=flatten(config))), re.DOTALL)
    copied = tmp_path / "copied.yaml"
    copied.write_text(html.unescape(text), encoding="utf-8")
    assert load_config(copied) == config


def test_the_page_says_how_to_make_it_again(page: Page) -> None:
    text = Outline(render(page)).text
    assert "git checkout COMMIT # the tag mlflow.source.git.commit of that MLflow run dvc repro # this page" in text
    lineage = {**page.model["lineage"], "git_commit": "0123abc"}
    assert (
        "git checkout 0123abc dvc repro"
        in Outline(render(replace(page, model={**page.model, "lineage": lineage}))).text
    )


def test_the_page_says_how_to_run_the_exported_model_and_it_runs(finished: Paths) -> None:
    blocks = re.findall(r"<pre>(.*?)</pre>", finished.report.read_text(encoding="utf-8"), re.DOTALL)
    [code] = [html.unescape(block) for block in blocks if "onnxruntime.InferenceSession" in block]
    found: dict[str, Any] = {}
    exec(code, found)
    assert (found["images"].dtype, found["images"].shape) == (np.uint8, (16, 8, 8, 1))
    assert found["log_variance"].shape == (8, 3)


def test_numbers_stand_in_groups_with_the_errors_that_there_are(page: Page) -> None:
    more = {
        "nll_effective_samples": 12.34,
        "ais_nll": 18.4,
        "ais_nll_se": 0.21,
        "ais_minus_nll": -0.05,
        "ais_minus_nll_se": 0.04,
        "ais_gap": 0.125,
        "ais_gap_se": 0.03,
        "bits_per_dim": 1.2345,
        "auroc": 0.98765,
        "kl_layer_1": 6.0,
        "kl_layer_2": 2.126,
        "mutual_information": 4.5,
        "marginal_kl": 3.626,
        "total_correlation": 0.75,
        "knn_accuracy": 0.9375,
        "knn_accuracy_se": 0.0125,
        "probe_accuracy": 0.875,
        "pca_precision": 0.5,
        "pca_recall": 0.25,
        "pca_density": 0.75,
        "pca_coverage": 0.625,
        "pca_frechet": 1.375,
    }
    text = Outline(render(replace(page, metrics={**page.metrics, **more}))).text
    places = [
        text.index(words)
        for words in (
            "Likelihood ELBO -20.13 ± 0.30",
            "NLL by annealing 18.40 ± 0.21 −log p(x) by annealed importance sampling, a check of the NLL.",
            "Annealing − importance -0.05 ± 0.04 Difference to the NLL on the same images; about 0 when",
            "Gap of annealing 0.12 ± 0.03 Between the annealed bounds on simulated images: as much may the",
            "Effective samples 12.3 How many",
            "Bits per dimension 1.234",
            "Outliers told apart 0.988",
            "Latents KL 8.13 ± 0.10",
            "KL of layer 1 6.00",
            "KL of layer 2 2.13",
            "Mutual information 4.50",
            "Marginal KL 3.63",
            "Total correlation 0.75",
            "Active units 9 of 12",
            "Representation Nearest neighbours 0.938 ± 0.013",
            "Linear probe 0.875",
            "Generation Precision 0.500",
            "Recall 0.250",
            "Density 0.750",
            "Coverage 0.625",
            "Fréchet distance 1.38",
            "Export ONNX parity",
        )
    ]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (100, "18.40 ± 0.21 −log p(x) of 100 images by annealed importance sampling"),
        (1, "18.40 −log p(x) of 1 image by annealed importance sampling"),
    ],
)
def test_annealing_says_of_how_many_images_it_is(images: int, words: str, page: Page) -> None:
    metrics = {**page.metrics, "ais_nll": 18.4, "ais_nll_se": 0.21}
    evaluation = {**page.evaluation, "details": {"annealed": {"images": images}}}
    text = Outline(render(replace(page, metrics=metrics, evaluation=evaluation))).text
    assert words in text
    assert "ELBO -20.13 ± 0.30" in text


def test_a_single_image_has_no_error(page: Page) -> None:
    errors = {name: 0.0 for name in page.metrics if name.endswith("_se")}
    text = Outline(render(replace(page, metrics={**page.metrics, **errors, "images": 1}))).text
    assert "ELBO -20.13 Lower bound" in text
    assert not re.search(r"± \d", text)


def test_groups_without_a_number_are_left_out(page: Page) -> None:
    text = Outline(render(page)).text
    assert "Representation" not in text
    assert "Generation" not in text


def test_warnings_stand_at_the_top(page: Page) -> None:
    assert "notice" not in Outline(render(page)).text
    assert "<aside" not in render(replace(page, evaluation={**page.evaluation, "warnings": []}))
    warned = replace(page, evaluation={**page.evaluation, "warnings": ["Few samples.", f"Mind {EVIL}"]})
    text = Outline(render(warned)).text
    assert text.index("Few samples.") < text.index(f"Mind {EVIL}") < text.index("Likelihood")


def test_the_page_names_the_split_that_was_scored(page: Page) -> None:
    text = Outline(render(replace(page, evaluation={**page.evaluation, "split": "validation"}))).text
    assert "359 validation images of digits" in text


def test_every_hash_of_the_lineage_is_there_under_its_name(page: Page) -> None:
    text = Outline(render(page)).text
    assert (
        "data, as in dvc.lock data-hash.dir parameters of the model params-hash source code of train train-code-hash "
        "source code of evaluate evaluate-code-hash source code of export export-code-hash weights weights-hash "
        "encoder.onnx encoder-hash decoder.onnx decoder-hash"
    ) in text


def test_the_page_is_self_contained(page: Page) -> None:
    text = render(page)
    outline = Outline(text)
    # The pictures, links to the sections, and an empty icon, which keeps browsers from asking.
    outside = [link for link in outline.links if not link.startswith(("data:", "#"))]
    assert outside == []
    assert len([link for link in outline.links if link.startswith("data:")]) == len(NAMES) + 1
    assert not {"script", "iframe", "object", "embed", "base"} & set(outline.tags)
    assert outline.tags.count("link") == 1
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text.replace("sqlite:///mlflow.db", ""))


def test_links_within_the_page_lead_somewhere(playful: Page) -> None:
    text = render(playful)
    anchors = [link.removeprefix("#") for link in Outline(text).links if link.startswith("#")]
    assert len(anchors) == 6
    for anchor in anchors:
        assert f'id="{anchor}"' in text


def test_a_page_to_play_with_needs_no_network_either(playful: Page) -> None:
    text = render(playful)
    assert not re.search(r"https?:|fetch\(|import\(|XMLHttpRequest|@import|url\(", text)
    assert [link for link in Outline(text).links if not link.startswith(("data:", "#"))] == []


@pytest.mark.parametrize(("which", "scripts"), [("page", 0), ("playful", 1)])
def test_the_browser_is_told_to_allow_what_the_page_holds_and_nothing_else(
    which: str, scripts: int, request: pytest.FixtureRequest
) -> None:
    policy = Policy(render(request.getfixturevalue(which)))
    assert [len(hashes) for hashes in policy.hashes.values()] == [1, scripts]
    assert policy.allows_exactly_what_is_there, policy.rules


def test_what_a_value_smuggles_in_is_not_allowed(playful: Page) -> None:
    evil = "</style><script>alert(1)</script>"
    policy = Policy(render(replace(playful, title=evil, params={f"model.{evil}": evil})))
    assert policy.allows_exactly_what_is_there
    injected = Policy(render(playful).replace("<main>", "<main><script>alert(1)</script>"))
    assert not injected.allows_exactly_what_is_there


def test_the_script_is_given_what_the_tiles_show(playful: Page) -> None:
    outline = Outline(render(playful))
    facts, program = outline.scripts
    assert json.loads(facts) == TILES
    assert program.strip().startswith('"use strict"')
    pictures = [base64.b64decode(link.removeprefix(PREFIX)) for link in outline.links if link.startswith(PREFIX)]
    assert pictures[:2] == [b"grid tiles", b"traversal tiles"]
    assert "Units: prior standard deviations" in outline.text


def test_what_needs_the_script_is_hidden_until_it_runs(playful: Page) -> None:
    text = render(playful)
    assert '<section class="script" hidden>' in text
    assert 'for (const part of document.querySelectorAll(".script")) part.hidden = false;' in text


@pytest.mark.parametrize("missing", ["tiles", "grid_tiles", "traversal_tiles"])
def test_without_tiles_there_is_nothing_to_play_with(missing: str, playful: Page) -> None:
    evaluation = {name: value for name, value in playful.evaluation.items() if name != missing}
    pictures = {name: value for name, value in playful.pictures.items() if name != missing}
    text = render(replace(playful, evaluation=evaluation, pictures=pictures))
    assert "<script" not in text
    assert "Explore" not in text


def test_what_the_tiles_show_cannot_leave_the_script(playful: Page) -> None:
    evil = "</script><script>alert(1)</script><!--"
    tiles = {**TILES, "grid": {**TILES["grid"], "names": [evil, "z1"], "unit": evil}}
    outline = Outline(render(replace(playful, evaluation={**playful.evaluation, "tiles": tiles})))
    assert outline.tags.count("script") == 2
    assert json.loads(outline.scripts[0]) == tiles


def test_pictures_are_embedded_as_they_are_in_their_order(page: Page) -> None:
    pictures = {name: name.encode() for name in reversed(NAMES)}
    links = Outline(render(replace(page, pictures=pictures))).links
    decoded = [base64.b64decode(link.removeprefix(PREFIX)).decode() for link in links if link.startswith(PREFIX)]
    assert decoded == NAMES


def test_a_figure_that_was_not_drawn_is_left_out(page: Page) -> None:
    text = render(replace(page, pictures={"samples": PICTURE}))
    assert Outline(text).tags.count("img") == 1
    assert "Latent grid" not in text
    assert "Latent space" not in text


def poisoned(value: Any) -> Any:
    """Put EVIL into every string, and into every name that is shown."""
    if isinstance(value, str):
        return value + EVIL
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [poisoned(item) for item in value]
    return value


@pytest.mark.parametrize("part", ["title", "data", "model", "evaluation", "manifest", "params"])
def test_everything_is_escaped(part: str, page: Page) -> None:
    text = render(replace(page, **{part: poisoned(getattr(page, part))}))
    outline = Outline(text)
    assert "script" not in outline.tags
    assert EVIL.replace('"', "") in "".join(outline.words).replace("\\", "").replace('"', "")
    assert EVIL not in text


def test_names_of_parameters_and_files_are_escaped(page: Page) -> None:
    manifest = {**page.manifest, "files": {EVIL: {"sha256": "0"}}}
    params = {f"{EVIL}.{EVIL}": [EVIL, EVIL]}
    outline = Outline(render(replace(page, manifest=manifest, params=params)))
    assert "script" not in outline.tags
    # Once as a file; section, name and twice the value in the table; section and name in the params file, where the
    # quotes of values are escaped once more.
    assert "".join(outline.words).count(EVIL) == 7


@pytest.fixture
def grey_page(page: Page) -> Page:
    """The page of a Bernoulli model of grey pixels."""
    metrics = {"bce": 17.25, "bce_se": 0.2, "kl": 8.0, "kl_se": 0.1, "active_units": 9, "images": 359}
    parity = {"encoder_max_error": 1e-7, "decoder_max_error": 3e-7}
    return replace(page, metrics=metrics, parity=parity, data=page.data | {"binarization": "none"})


def test_grey_pixels_get_a_cross_entropy_instead_of_elbo_and_nll(grey_page: Page) -> None:
    text = Outline(render(grey_page)).text
    assert "digits , no binarization" in text
    assert "Cross-entropy 17.25 ± 0.20" in text
    assert "KL 8.00 ± 0.10" in text
    assert not re.search(r"(ELBO|NLL|Reconstruction) -?\d", text)


def test_grey_pixels_get_no_note_on_how_elbo_and_nll_were_measured(grey_page: Page) -> None:
    assert "importance samples" not in Outline(render(grey_page)).text


def test_grey_pixels_lose_no_elbo_to_the_serving_skew(grey_page: Page) -> None:
    assert "ELBO lost" not in Outline(render(grey_page)).text


def test_equal_pages_give_equal_bytes(page: Page) -> None:
    assert render(page) == render(replace(page))


# The stage


TERMS = ("loss", "reconstruction", "kl")


def lay_out(paths: Paths, page: Page, validation: int, curves: list[str]) -> None:
    """What the stage reads, as earlier stages leave it: so many validation images, and these columns of a history."""

    def write(path: Path, content: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))

    paths.processed.mkdir(parents=True)
    for name, count in zip(SPLITS, (5, validation, 3), strict=True):
        np.save(paths.processed / f"{name}-images.npy", np.full((count, 1, 4, 4), 200, np.uint8))
        np.save(paths.processed / f"{name}-labels.npy", np.zeros(count, np.int32))
    store.write_card(paths.processed, {"source": "noise", "binarization": "none", "classes": ["all"]}, "unit")
    write(paths.model / "card.json", {**page.model, "model": {}, "objective": {}, "train": {}, "data": {}})
    write(paths.evaluation_metrics, page.metrics)
    write(paths.evaluation_card, page.evaluation)
    write(paths.export_metrics, page.parity)
    write(paths.onnx / "manifest.json", page.manifest)
    names = ["epoch", *curves]
    write(paths.history, "".join(",".join(row) + "\n" for row in (names, ["1"] * len(names), ["2"] * len(names))))
    paths.figures.mkdir(parents=True)
    for name in REQUIRED:
        (paths.figures / f"{name}.png").write_bytes(PICTURE)


@pytest.mark.parametrize(("validation", "splits"), [(2, ["train", "validation"]), (0, ["train"])])
def test_the_page_draws_the_splits_that_there_are(
    validation: int, splits: list[str], page: Page, project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictured: list[Any] = []
    sheet, curves = plot_contact_sheet, plot_training
    columns = [f"{split}_{term}" for split in splits for term in TERMS]

    def note_sheet(images: Mapping[str, store.Images]) -> Any:
        pictured.append(list(images))
        return sheet(images)

    def note_curves(history: Mapping[str, list[float]], best_epoch: int) -> Any:
        pictured.append(history)
        return curves(history, best_epoch)

    monkeypatch.setattr(report, "plot_contact_sheet", note_sheet)
    monkeypatch.setattr(report, "plot_training", note_curves)
    lay_out(project, page, validation, [*columns, "train_elbo"])
    report.run(load_config(project.params), project)
    assert pictured == [[*splits, "test"], {name: [1.0, 2.0] for name in ("epoch", *columns)}]
    assert Outline(project.report.read_text(encoding="utf-8")).tags.count("img") == len(REQUIRED) + 2


def test_the_page_draws_schedules_where_the_history_knows_them(
    page: Page, project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[set[str]] = []
    curves = plot_training
    monkeypatch.setattr(report, "plot_training", lambda *given: drawn.append(set(given[0])) or curves(*given))
    lay_out(project, page, 0, [*(f"train_{term}" for term in TERMS), "learning_rate", "beta", "train_elbo"])
    report.run(load_config(project.params), project)
    assert drawn == [{"epoch", *(f"train_{term}" for term in TERMS), "learning_rate", "beta"}]


@pytest.mark.parametrize("missing", REQUIRED)
def test_a_figure_that_every_model_has_is_missed(missing: str, page: Page, project: Paths) -> None:
    lay_out(project, page, 0, [f"train_{term}" for term in TERMS])
    (project.figures / f"{missing}.png").unlink()
    with pytest.raises(MissingInputError, match=f"{missing}.png: not found; run `dvc repro evaluate` first"):
        report.run(load_config(project.params), project)


@pytest.mark.parametrize("missing", ["train_kl", "validation_loss", "validation_kl"])
def test_a_history_without_a_curve_of_a_split_that_there_is_is_damaged(
    missing: str, page: Page, project: Paths
) -> None:
    columns = [f"{split}_{term}" for split in ("train", "validation") for term in TERMS]
    lay_out(project, page, 2, [name for name in columns if name != missing])
    with pytest.raises(DamagedInputError) as caught:
        report.run(load_config(project.params), project)
    assert str(caught.value) == (
        f"{project.history}: wanted a table of epoch, {', '.join(columns)}, found a damaged one; "
        "run `dvc repro --force --single-item train`"
    )
    assert not project.report.exists()
