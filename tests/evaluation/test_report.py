import base64
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reparam.config import load_config
from reparam.data import store
from reparam.data.splits import SPLITS
from reparam.errors import DamagedInputError
from reparam.evaluation import figures, gallery
from reparam.evaluation.report import FIGURES, Page, render
from reparam.paths import Paths
from reparam.stages import report

PICTURE = b"\x89PNG not really"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Outline(HTMLParser):
    """Tags, links and text of a page; `unclosed` and `stray` are tags that do not match up."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.stray: list[str] = []
        self.open: list[str] = []
        self.feed(html)
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
        if "style" not in self.open[-1:]:
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
        pictures={name: PICTURE for name, _, _ in FIGURES},
    )


def test_the_page_is_well_formed(page: Page) -> None:
    outline = Outline(render(page))
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


def test_every_hash_of_the_lineage_is_there_under_its_name(page: Page) -> None:
    text = Outline(render(page)).text
    assert (
        "data, as in dvc.lock data-hash.dir parameters of the model params-hash source code of train train-code-hash "
        "source code of evaluate evaluate-code-hash source code of export export-code-hash weights weights-hash "
        "encoder.onnx encoder-hash decoder.onnx decoder-hash"
    ) in text


def test_the_page_is_self_contained(page: Page) -> None:
    html = render(page)
    outline = Outline(html)
    assert len(outline.links) == len(FIGURES) + 1  # the pictures and an empty icon, which keeps browsers from asking
    assert [link for link in outline.links if not link.startswith("data:")] == []
    assert not {"script", "iframe", "object", "embed", "base"} & set(outline.tags)
    assert outline.tags.count("link") == 1
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html.replace("sqlite:///mlflow.db", ""))


def test_pictures_are_embedded_as_they_are_in_their_order(page: Page) -> None:
    pictures = {name: name.encode() for name in reversed([name for name, _, _ in FIGURES])}
    links = Outline(render(replace(page, pictures=pictures))).links[1:]
    decoded = [base64.b64decode(link.removeprefix("data:image/png;base64,")).decode() for link in links]
    assert decoded == [name for name, _, _ in FIGURES]


def test_a_figure_that_was_not_drawn_is_left_out(page: Page) -> None:
    html = render(replace(page, pictures={"samples": PICTURE}))
    assert Outline(html).tags.count("img") == 1
    assert "Latent grid" not in html


EVIL = '<script>alert("x")</script>'


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
    html = render(replace(page, **{part: poisoned(getattr(page, part))}))
    outline = Outline(html)
    assert "script" not in outline.tags
    assert EVIL in "".join(outline.words)
    assert EVIL not in html


def test_names_of_parameters_and_files_are_escaped(page: Page) -> None:
    manifest = {**page.manifest, "files": {EVIL: {"sha256": "0"}}}
    params = {f"{EVIL}.{EVIL}": [EVIL, EVIL]}
    outline = Outline(render(replace(page, manifest=manifest, params=params)))
    assert "script" not in outline.tags
    assert "".join(outline.words).count(EVIL) == 5


@pytest.fixture
def grey_page(page: Page) -> Page:
    """The page of a Bernoulli model of grey pixels."""
    metrics = {"bce": 17.25, "bce_se": 0.2, "kl": 8.0, "kl_se": 0.1, "active_units": 9, "images": 359}
    parity = {"encoder_max_error": 1e-7, "decoder_max_error": 3e-7}
    return replace(page, metrics=metrics, parity=parity, data=page.data | {"binarization": "none"})


def test_grey_pixels_get_a_cross_entropy_instead_of_elbo_and_nll(grey_page: Page) -> None:
    text = Outline(render(grey_page)).text
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
    for name in gallery.FIGURES:
        (paths.figures / f"{name}.png").write_bytes(PICTURE)


@pytest.mark.parametrize(("validation", "splits"), [(2, ["train", "validation"]), (0, ["train"])])
def test_the_page_draws_the_splits_that_there_are(
    validation: int, splits: list[str], page: Page, project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictured: list[Any] = []
    sheet, curves = gallery.contact_sheet, figures.training_curves
    columns = [f"{split}_{term}" for split in splits for term in TERMS]

    def note_sheet(images: Mapping[str, store.Images]) -> Any:
        pictured.append(list(images))
        return sheet(images)

    def note_curves(history: Mapping[str, list[float]], best_epoch: int) -> Any:
        pictured.append(history)
        return curves(history, best_epoch)

    monkeypatch.setattr(gallery, "contact_sheet", note_sheet)
    monkeypatch.setattr(figures, "training_curves", note_curves)
    lay_out(project, page, validation, [*columns, "train_elbo"])
    report.run(load_config(project.params), project)
    assert pictured == [[*splits, "test"], {name: [1.0, 2.0] for name in ("epoch", *columns)}]
    assert Outline(project.report.read_text(encoding="utf-8")).tags.count("img") == len(FIGURES)


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
