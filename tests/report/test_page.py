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
from conftest import small_section
from policy import Policy
from pydantic import BaseModel
from some_cards import (
    EVALUATED,
    PARITY,
    TILES,
    data_card,
    evaluation_card,
    evaluation_metrics,
    export_card,
    export_metrics,
    hash_of,
    model_card,
    small_config,
    trained_params,
    training_metrics,
)

from reparam.cards.card import Card, FileFacts, facts_of
from reparam.cards.evaluation import AnnealingFacts, Details, GridTiles
from reparam.cards.export import ExportCard, VariantFacts
from reparam.cards.model import ModelCard
from reparam.config import load_config
from reparam.data import store
from reparam.data.store import SPLITS
from reparam.errors import DamagedInputError, MissingInputError, StaleInputError
from reparam.figures.curves import plot_training
from reparam.figures.images import plot_contact_sheet
from reparam.files import to_json
from reparam.metrics import GROUPS, METRICS, Metric
from reparam.paths import Paths
from reparam.report import stage as report
from reparam.report.page import PICTURES, Page, render

pytest_plugins = ["fixtures_export"]

PICTURE = b"\x89PNG not really"
FIGURES = ("samples", "traversals")  # that the stage finds
EXPORTED = ("decoder.onnx", "encoder.onnx")
EMPTY = facts_of(b"")
EVIL = '<script>alert("x")</script>'
PREFIX = "data:image/png;base64,"
VOID = {"meta", "link", "img", "br", "hr", "input"}
NAMES = [picture.name for group in PICTURES.values() for picture in group]


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
        self.feed(text.replace("<wbr>", ""))  # within words
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
    return Page(
        config=small_config(report=small_section("report", title="Small & clear")),
        data=data_card(),
        model=model_card(latent_size=12, latent_shape=(12,)),
        metrics=evaluation_metrics(),
        evaluation=evaluation_card(settings=small_section("evaluate", nll_samples=2000, elbo_samples=16, seed=5)),
        parity=export_metrics(
            values={**PARITY, "served_elbo": -20.9, "served_elbo_loss": 0.774, "served_elbo_loss_se": 0.05}
        ),
        exported=export_card(latent_size=12, latent_shape=(12,)),
        pictures=dict.fromkeys(NAMES, PICTURE),
    )


@pytest.fixture
def playful(page: Page) -> Page:
    """A page with tiles to play with."""
    return replace(page, pictures={**page.pictures, "grid_tiles": b"grid tiles", "traversal_tiles": b"traversal tiles"})


@pytest.mark.parametrize("which", ["page", "playful"])
def test_the_page_is_well_formed(which: str, request: pytest.FixtureRequest) -> None:
    outline = Outline(render(request.getfixturevalue(which)))
    assert (outline.stray, outline.open) == ([], [])


def test_the_page_says_every_number(page: Page) -> None:
    text = Outline(render(page)).text
    for words in (
        "Small & clear",
        "359 test images of digits , dynamic binarization · mlp, 12 latent dimensions",
        "best of 120 epochs: 80",
        "ELBO −20.13 ± 0.30",
        "Reconstruction 12.00 ± 0.25",
        "KL 8.13 ± 0.10",
        "NLL 18.50 ± 0.20",
        "Active units 9 of 12",
        "varies over images by more than evaluate.active_variance",
        "Encoder parity 1.0e−07",
        "Decoder parity 3.4e−07",
        "Served ELBO −20.90",
        "Serving skew 0.77 ± 0.05",
        "NLL from 2000 importance samples, ELBO from 16 posterior samples per image, seed 5.",
        "float32 (batch, 12)",
        "uint8 (batch, 8, 8, 1)",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("kind", "data", "title"),
    [
        ("vae", {}, "Variational autoencoder of digits"),
        ("autoencoder", {"classes": tuple("0123456789")}, "Autoencoder of digits: 10 classes"),
        (
            "vae",
            {"source": "folder", "classes": ("cat", "dog")},
            "Variational autoencoder of a folder of images: cat, dog",
        ),
    ],
)
def test_without_a_title_the_page_names_model_data_and_classes(
    kind: str, data: dict[str, Any], title: str, page: Page
) -> None:
    untitled = page.config.model_copy(update={"report": small_section("report", title=None)})
    model = model_card(trained_params(model=small_section("model", kind=kind)))
    text = render(replace(page, config=untitled, model=model, data=data_card(**data)))
    assert (f"<title>{title}</title>" in text, f"<h1>{title}</h1>" in text) == (True, True)


def test_captions_speak_of_the_data_that_is_there(page: Page, grey_page: Page) -> None:
    drawn, grey = (Outline(render(shown)).text for shown in (page, grey_page))
    assert "as they are stored: 12 train, 3 validation, 5 test." in drawn
    assert "Images above their reconstructions; the model sees a random draw of black and white." in drawn
    assert "Images above their reconstructions." in grey
    assert "Images decoded from latents that were drawn from the prior." in drawn
    mixed = replace(page, evaluation=evaluation_card(sampled_from="a mixture fitted to codes"))
    assert "latents that were drawn from a mixture fitted to codes." in Outline(render(mixed)).text


def test_parameters_are_under_their_section(page: Page) -> None:
    text = Outline(render(page)).text
    assert "model kind vae latent 3 network mlp" in text
    assert "mlp.hidden [16] mlp.decoder_hidden null mlp.activation gelu" in text
    assert "export opset 20 grey_pixels keep variants [] triton false" in text


def test_parameters_of_choices_that_are_not_taken_are_folded(page: Page) -> None:
    shown = render(page)
    folded = "".join(re.findall(r"<summary>Unused parameters</summary>(.*?)</details>", shown, re.DOTALL))
    for name, is_folded in (("mlp.<wbr>hidden", False), ("conv.<wbr>kernel", True), ("adam.<wbr>betas", False)):
        assert f'<th scope="row">{name}</th>' in shown
        assert (f'<th scope="row">{name}</th>' in folded) == is_folded
    assert [section.unused() for name, section in page.config if name in ("preprocess", "export")] == [[], []]


def test_the_page_holds_the_params_file_that_it_was_made_with(page: Page, tmp_path: Path) -> None:
    [text] = re.findall(r'<pre id="params-file">(.*?)</pre>', render(page), re.DOTALL)
    copied = tmp_path / "copied.yaml"
    copied.write_text(html.unescape(text), encoding="utf-8")
    assert load_config(copied) == page.config


def test_the_page_says_how_to_make_it_again(page: Page) -> None:
    text = Outline(render(page)).text
    assert "git checkout COMMIT # the tag mlflow.source.git.commit of that MLflow run dvc repro # this page" in text


@pytest.mark.parametrize("of", ["exported", "code", "codes_of_pixels", "conditional", "image_of_latents"])
def test_the_page_says_how_to_run_the_exported_model_and_it_runs(
    of: str, page: Page, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = request.getfixturevalue(of)
    shown = render(replace(page, exported=ExportCard.read(exported.directory / "manifest.json", "export")))
    [code] = [
        html.unescape(block)
        for block in re.findall(r"<pre>(.*?)</pre>", shown, re.DOTALL)
        if "onnxruntime.InferenceSession" in block
    ]
    monkeypatch.chdir(exported.paths.root)
    found: dict[str, Any] = {}
    exec(code, found)
    with np.load(exported.directory / "golden.npz") as golden:
        np.testing.assert_allclose(found["mean"], golden["mean"], rtol=0, atol=1e-5)
        assert abs(found["decoded"].astype(int) - golden["decoded_images"].astype(int)).max() <= 1


def test_variants_are_shown_with_what_they_save_and_cost(page: Page) -> None:
    assert "Smaller graphs" not in render(page)
    kept = VariantFacts(bytes=10, size_ratio=3.88, max_error=0.1, tolerance=0.2, elbo_change=-0.0754, lost=None)
    refused = kept.model_copy(update={"elbo_change": None, "lost": "wanted this, found that"})
    exported = export_card(variants={"int8": kept, "fp16": refused})
    text = Outline(render(replace(page, exported=exported))).text
    assert "int8 3.88 times smaller, ELBO -0.075 nats; kept" in text
    assert "fp16 3.88 times smaller; not kept: wanted this, found that" in text


def test_times_have_a_page_beside_the_report_only_of_a_model_with_variants(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("reparam.report.speed.render", lambda *arguments: asked.append(arguments) or "the times")
    paths = Paths(tmp_path, tmp_path)
    kept = VariantFacts(bytes=10, size_ratio=3.88, max_error=0.1, tolerance=0.2, elbo_change=-0.0754, lost=None)
    exported = export_card(variants={"int8": kept})
    small = replace(page, exported=exported)
    report._write_speed(small, paths)
    assert paths.speed.read_text() == "the times"
    assert asked == [(paths.onnx, "Small & clear", exported.digest)]
    assert [link for link in Outline(render(small)).links if not link.startswith(("data:", "#"))] == ["speed.html"]
    report._write_speed(page, paths)
    assert not paths.speed.exists()


def test_numbers_are_in_groups_with_the_errors_that_there_are(page: Page) -> None:
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
        "elbo_validation": -19.5,
        "elbo_validation_se": 0.75,
        "knn_accuracy": 0.9375,
        "knn_accuracy_se": 0.0125,
        "probe_accuracy": 0.875,
        "pca_precision": 0.5,
        "pca_recall": 0.25,
        "pca_density": 0.75,
        "pca_coverage": 0.625,
        "pca_frechet": 1.375,
        "pca_frechet_se": 0.06,
    }
    text = Outline(render(replace(page, metrics=evaluation_metrics(values={**EVALUATED, **more})))).text
    places = [
        text.index(words)
        for words in (
            "Likelihood ELBO −20.13 ± 0.30",
            "ELBO, validation −19.50 ± 0.75 The same on the validation split, by which to choose",
            "NLL by annealing 18.40 ± 0.21 −log p(x) by annealed importance sampling, a check of the NLL.",
            "Annealing − importance −0.05 ± 0.04 Difference to the NLL of the same images, about 0 when",
            "Gap of annealing 0.12 ± 0.03 Distance of the two annealed bounds on simulated images",
            "Effective samples 12.3 Effective number",
            "Bits per dimension 1.234",
            "Outliers recognised 0.988",
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
            "Fréchet distance 1.38 ± 0.06",
            "Export Encoder parity",
        )
    ]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (100, "18.40 ± 0.21 −log p(x) by annealed importance sampling, a check of the NLL. Of 100 images."),
        (1, "18.40 −log p(x) by annealed importance sampling, a check of the NLL. Of 1 image."),
    ],
)
def test_annealing_says_of_how_many_images_it_is(images: int, words: str, page: Page) -> None:
    facts = AnnealingFacts(
        images=images, chains=2, steps=9, leapfrog=10, acceptance=None if images == 1 else 0.7, effective_chains=1.5
    )
    metrics = evaluation_metrics(values={**EVALUATED, "ais_nll": 18.4, "ais_nll_se": 0.21})
    evaluation = page.evaluation.model_copy(update={"details": Details(annealed=facts)})
    text = Outline(render(replace(page, metrics=metrics, evaluation=evaluation))).text
    assert words in text
    assert "ELBO −20.13 ± 0.30" in text


def test_a_single_image_has_no_error(page: Page) -> None:
    errors = {name: 0.0 for name in EVALUATED if name.endswith("_se")}
    one = page.evaluation.model_copy(update={"images": 1})
    metrics = evaluation_metrics(values=EVALUATED | errors)
    text = Outline(render(replace(page, metrics=metrics, evaluation=one, parity=export_metrics()))).text
    assert "ELBO −20.13 Lower bound" in text
    assert not re.search(r"± \d", text)


def test_a_new_group_of_metrics_is_on_the_page(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = Metric("Surprise", "How unusual an image is.")
    monkeypatch.setitem(GROUPS, "Novelty", {"surprise": metric})
    monkeypatch.setitem(METRICS, "surprise", metric)
    metrics = evaluation_metrics(values={**EVALUATED, "surprise": 1.5})
    assert "Novelty Surprise 1.50 How unusual an image is." in Outline(render(replace(page, metrics=metrics))).text


def test_groups_without_a_number_are_left_out(page: Page) -> None:
    text = Outline(render(page)).text
    assert "Representation" not in text
    assert "Generation" not in text


def test_warnings_are_above_all_numbers(page: Page) -> None:
    assert "<aside" not in render(page)
    warned = page.evaluation.model_copy(update={"warnings": ("Few samples.", f"Mind {EVIL}")})
    text = Outline(render(replace(page, evaluation=warned))).text
    places = [text.index(part) for part in ("Numbers Notes", "Few samples.", f"Mind {EVIL}", "Likelihood")]
    assert places == sorted(places)


def test_what_was_not_measured_is_named_with_the_reason_once(page: Page) -> None:
    assert "not measured" not in render(page)
    details = Details(not_measured={"accuracy": "not measured: one class", "annealed": "not measured: no density"})
    evaluation = page.evaluation.model_copy(
        update={"details": details, "warnings": ("annealed: not measured: no density",)}
    )
    text = Outline(render(replace(page, evaluation=evaluation))).text
    assert text.count("accuracy: not measured: one class.") == 1
    assert text.count("annealed: not measured: no density") == 1


def test_the_page_names_the_split_that_was_scored(page: Page) -> None:
    held_out = evaluation_card(settings=small_section("evaluate", split="validation"))
    assert "359 validation images of digits" in Outline(render(replace(page, evaluation=held_out))).text


def test_every_hash_of_the_lineage_is_there_under_its_name(page: Page) -> None:
    text = Outline(render(page)).text
    hashes = {
        "data, as in dvc.lock": f"{'b' * 32}.dir",
        "card of the data": data_card().digest,
        "card of the model": page.model.digest,
        "card of the evaluation": page.evaluation.digest,
        "manifest of the export": page.exported.digest,
        "parameters of the model": page.model.lineage.params_sha256,
        "source code of train": hash_of("c"),
        "source code of evaluate": hash_of("e"),
        "source code of export": hash_of("f"),
        "weights": hash_of("d"),
        "decoder.onnx": hash_of("a"),
        "encoder.onnx": hash_of("a"),
    }
    assert " ".join(f"{name} {value}" for name, value in hashes.items()) in text


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
    assert len(anchors) == 8
    for anchor in anchors:
        assert f'id="{anchor}"' in text


def test_a_page_to_play_with_needs_no_network_either(playful: Page) -> None:
    text = render(playful)
    assert not re.search(r"https?:|fetch\(|import\(|XMLHttpRequest|@import|url\(", text)
    assert [link for link in Outline(text).links if not link.startswith(("data:", "#"))] == []


@pytest.mark.parametrize(("which", "scripts"), [("page", 0), ("playful", 1)])
def test_the_browser_is_asked_to_allow_what_the_page_holds_and_nothing_else(
    which: str, scripts: int, request: pytest.FixtureRequest
) -> None:
    policy = Policy(render(request.getfixturevalue(which)))
    assert [len(hashes) for hashes in policy.hashes.values()] == [1, scripts]
    assert policy.allows_exactly_what_is_there, policy.rules


def test_what_a_value_smuggles_in_is_not_allowed(playful: Page) -> None:
    evil = "</style><script>alert(1)</script>"
    report = playful.config.report.model_copy(update={"title": evil})
    config = playful.config.model_copy(update={"report": report})
    policy = Policy(render(replace(playful, config=config)))
    assert policy.allows_exactly_what_is_there
    injected = Policy(render(playful).replace("<main>", "<main><script>alert(1)</script>"))
    assert not injected.allows_exactly_what_is_there


def test_the_script_is_given_what_the_tiles_show(playful: Page) -> None:
    outline = Outline(render(playful))
    facts, program = outline.scripts
    assert json.loads(facts) == TILES.model_dump(mode="json")
    assert program.strip().startswith('"use strict"')
    pictures = [base64.b64decode(link.removeprefix(PREFIX)) for link in outline.links if link.startswith(PREFIX)]
    assert pictures[:2] == [b"grid tiles", b"traversal tiles"]
    assert "Units: prior standard deviations" in outline.text
    assert outline.text.index("Latent grid") < outline.text.index("Likelihood")


def test_what_needs_the_script_is_hidden_until_it_runs(playful: Page) -> None:
    text = render(playful)
    assert '<section class="script" hidden>' in text
    assert 'for (const part of document.querySelectorAll(".script")) part.hidden = false;' in text


@pytest.mark.parametrize("missing", ["grid_tiles", "traversal_tiles"])
def test_without_tiles_there_is_nothing_to_play_with(missing: str, playful: Page) -> None:
    pictures = {name: value for name, value in playful.pictures.items() if name != missing}
    text = render(replace(playful, pictures=pictures))
    assert "<script" not in text
    assert "Explore" not in text


def test_what_the_tiles_show_cannot_leave_the_script(playful: Page) -> None:
    evil = "</script><script>alert(1)</script><!--"
    tiles = TILES.model_copy(update={"grid": GridTiles(steps=15, names=(evil, "z1"), unit=evil)})
    evaluation = playful.evaluation.model_copy(update={"tiles": tiles})
    outline = Outline(render(replace(playful, evaluation=evaluation)))
    assert outline.tags.count("script") == 2
    assert json.loads(outline.scripts[0]) == tiles.model_dump(mode="json")


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
    """Put EVIL into every string; what checked cards refuse, a page escapes all the same."""
    if isinstance(value, str):
        return value + EVIL
    if isinstance(value, BaseModel):
        # Shapes hold the word `batch`, and are on no page.
        return value.model_copy(update={name: poisoned(item) for name, item in value if name != "shape"})
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(poisoned(item) for item in value)
    return value


@pytest.mark.parametrize("part", ["config", "data", "model", "evaluation", "exported"])
def test_everything_is_escaped(part: str, page: Page) -> None:
    text = render(replace(page, **{part: poisoned(getattr(page, part))}))
    outline = Outline(text)
    assert "script" not in outline.tags
    assert EVIL.replace('"', "") in "".join(outline.words).replace("\\", "").replace('"', "")
    assert EVIL not in text


def test_names_of_files_are_escaped(page: Page) -> None:
    exported = export_card(files={EVIL: FileFacts(sha256=hash_of("0"), bytes=1)})
    outline = Outline(render(replace(page, exported=exported)))
    assert "script" not in outline.tags
    assert "".join(outline.words).count(EVIL) == 1


@pytest.fixture
def grey_page(page: Page) -> Page:
    """The page of a Bernoulli model of grey pixels."""
    metrics = {"bce": 17.25, "bce_se": 0.2, "kl": 8.0, "kl_se": 0.1, "active_units": 9, "images": 359}
    return replace(page, metrics=evaluation_metrics(values=metrics), parity=export_metrics(), data=data_card("none"))


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


def shown(facts: FileFacts) -> str:
    """What a message says of a file."""
    return f"{facts.bytes:,} bytes of SHA-256 {facts.sha256[:12]}"


def evaluated_files(page: Page) -> dict[str, FileFacts]:
    """What the evaluation's card says of its files."""
    contents = {f"{name}.png": PICTURE for name in FIGURES}
    contents["metrics.json"] = to_json(evaluation_metrics(page.model).model_dump(mode="json")).encode()
    return {name: facts_of(content) for name, content in contents.items()}


def results(paths: Paths, page: Page) -> dict[Path, Card]:
    """The model's card, and what was made of it."""
    return {
        paths.model / "card.json": page.model,
        paths.training_metrics: training_metrics(page.model),
        paths.evaluation_metrics: evaluation_metrics(page.model),
        paths.evaluation_card: evaluation_card(page.model, files=evaluated_files(page)),
        paths.export_metrics: export_metrics(page.model),
        paths.onnx / "manifest.json": export_card(page.model, files=dict.fromkeys(EXPORTED, EMPTY)),
    }


def lay_out(paths: Paths, page: Page, validation: int, curves: list[str]) -> None:
    """What the stage reads, as earlier stages leave it: so many validation images, and these columns of a history."""

    paths.processed.mkdir(parents=True)
    for name, count in zip(SPLITS, (5, validation, 3), strict=True):
        np.save(paths.processed / f"{name}-images.npy", np.full((count, 1, 8, 8), 200, np.uint8))
        np.save(paths.processed / f"{name}-labels.npy", np.zeros(count, np.int32))
    data = store.write_card(
        paths.processed, store.Origin("digits", {}, "dynamic", ("all",), {}, "Noise", "CC0"), "unit"
    )
    page = replace(page, model=model_card(latent_size=12, latent_shape=(12,), data=data))
    paths.onnx.mkdir(parents=True)
    for name in EXPORTED:
        (paths.onnx / name).write_bytes(b"")
    for path, card in results(paths, page).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        card.write(path)
    names = ["epoch", *curves]
    paths.history.parent.mkdir(parents=True, exist_ok=True)
    paths.history.write_text("".join(",".join(row) + "\n" for row in (names, ["1"] * len(names), ["2"] * len(names))))
    training_metrics(page.model, paths.history.read_bytes()).write(paths.training_metrics)
    paths.figures.mkdir(parents=True)
    for name in FIGURES:
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
    assert Outline(project.report.read_text(encoding="utf-8")).tags.count("img") == len(FIGURES) + 2


def test_the_page_draws_schedules_where_the_history_knows_them(
    page: Page, project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[set[str]] = []
    curves = plot_training
    monkeypatch.setattr(report, "plot_training", lambda *given: drawn.append(set(given[0])) or curves(*given))
    lay_out(project, page, 0, [*(f"train_{term}" for term in TERMS), "learning_rate", "beta", "train_elbo"])
    report.run(load_config(project.params), project)
    assert drawn == [{"epoch", *(f"train_{term}" for term in TERMS), "learning_rate", "beta"}]


@pytest.mark.parametrize("missing", ["samples", "traversals"])
def test_a_figure_that_was_drawn_is_missed(missing: str, page: Page, project: Paths) -> None:
    lay_out(project, page, 0, [f"train_{term}" for term in TERMS])
    (project.figures / f"{missing}.png").unlink()
    with pytest.raises(MissingInputError, match=f"{missing}.png: not found; run `dvc repro evaluate` first"):
        report.run(load_config(project.params), project)


@pytest.mark.parametrize("name", ["figures/samples.png", "metrics.json"])
def test_a_file_that_was_exchanged_after_the_evaluation_is_refused(name: str, page: Page, project: Paths) -> None:
    lay_out(project, page, 0, [f"train_{term}" for term in TERMS])
    path = project.evaluation_card.parent / name
    content = path.read_bytes().replace(b"-20.126", b"-19.126") if name == "metrics.json" else PICTURE + b"other"
    path.write_bytes(content)
    with pytest.raises(DamagedInputError) as caught:
        report.run(load_config(project.params), project)
    assert str(caught.value) == (
        f"{path}: wanted {shown(evaluated_files(page)[path.name])} (as evaluate wrote it), found "
        f"{shown(facts_of(content))}; run `dvc repro --force --single-item evaluate`"
    )
    assert not project.report.exists()


def test_a_graph_that_was_exchanged_after_the_export_is_refused(page: Page, project: Paths) -> None:
    lay_out(project, page, 0, [f"train_{term}" for term in TERMS])
    (project.onnx / "decoder.onnx").write_bytes(b"other")
    with pytest.raises(DamagedInputError) as caught:
        report.run(load_config(project.params), project)
    assert str(caught.value) == (
        f"{project.onnx}/decoder.onnx: wanted {shown(facts_of(b''))} (as export wrote it), found "
        f"{shown(facts_of(b'other'))}; run `dvc repro --force --single-item export`"
    )


def test_a_picture_that_the_evaluation_did_not_draw_is_not_shown(page: Page, project: Paths) -> None:
    lay_out(project, page, 0, [f"train_{term}" for term in TERMS])
    (project.figures / "bounds.png").write_bytes(PICTURE)
    report.run(load_config(project.params), project)
    assert Outline(project.report.read_text(encoding="utf-8")).tags.count("img") == len(FIGURES) + 2


@pytest.mark.parametrize("text", ["nan", "1e999", "many", ""])
def test_a_history_without_a_finite_number_is_damaged(text: str, page: Page, project: Paths) -> None:
    lay_out(project, page, 0, [f"train_{term}" for term in TERMS])
    project.history.write_text(project.history.read_text().replace("2,2,2,2", f"2,2,{text},2"))
    model = ModelCard.read(project.model / "card.json", "train")
    training_metrics(model, project.history.read_bytes()).write(project.training_metrics)
    with pytest.raises(DamagedInputError, match=r"history.csv: wanted a table of epoch, train_loss, .* a damaged one"):
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


@pytest.mark.parametrize("stale", ["evaluation_metrics", "evaluation_card", "export_metrics", "onnx"])
def test_results_of_another_model_are_not_shown(stale: str, page: Page, project: Paths) -> None:
    lay_out(project, page, 0, [f"train_{term}" for term in TERMS])
    others = results(project, replace(page, model=model_card(weights=hash_of("9"))))
    path = getattr(project, stale) / "manifest.json" if stale == "onnx" else getattr(project, stale)
    others[path].write(path)
    with pytest.raises(StaleInputError, match=rf"{path.name}: wanted results of the model in models/vae, weights dddd"):
        report.run(load_config(project.params), project)
    assert not project.report.exists()


@pytest.mark.parametrize("section", ["train", "evaluate", "export"])
def test_parameters_of_other_results_are_not_printed(section: str, page: Page, project: Paths) -> None:
    lay_out(project, page, 0, [f"train_{term}" for term in TERMS])
    config, changes = load_config(project.params), {"train": "epochs", "evaluate": "nll_samples", "export": "opset"}
    changed = getattr(config, section).model_copy(update={changes[section]: 21})
    with pytest.raises(StaleInputError, match=rf"params.yaml: .*{section}: wanted the parameters of the results"):
        report.run(config.model_copy(update={section: changed}), project)
    assert not project.report.exists()


def test_data_of_another_kind_than_the_model_s_is_refused(page: Page, project: Paths) -> None:
    lay_out(project, page, 0, [f"train_{term}" for term in TERMS])
    store.write_card(project.processed, store.Origin("digits", {}, "none", ("all",), {}, "Noise", "CC0"), "unit")
    with pytest.raises(StaleInputError, match=r"binarization: wanted dynamic, as the model .* found none"):
        report.run(load_config(project.params), project)
