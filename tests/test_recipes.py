import importlib.util
import itertools
import json
import math
import os
import re
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import change
from ruamel.yaml import YAML
from some_cards import image_facts
from subjects import settings, some_scores, some_split
from subjects import some_data as data_of
from torch import Tensor

from reparam import recipes
from reparam.config import Config, flatten, load_config
from reparam.data import store
from reparam.data.batches import Batches
from reparam.data.pixels import Pixels
from reparam.download import stage as download
from reparam.errors import ParamsError, UserError
from reparam.evaluate.measures import measure
from reparam.evaluate.subject import Subject
from reparam.files import sha256
from reparam.lineage import source_hash
from reparam.models.build import build_model, start_at_mean
from reparam.models.likelihoods import is_density
from reparam.models.storage import load_model
from reparam.paths import Paths
from reparam.preprocess import stage as preprocess
from reparam.runtime import random_stream
from reparam.train import stage as train
from reparam.train.checks import check_objective, check_parts
from reparam.train.loss import Loss
from reparam.train.optimizers import rate_at
from reparam.train.trainer import Trainer

FOLDER = Path(__file__).parents[1] / "recipes"
SMOKE = "smoke"  # which reproduces nothing
RECIPES = [name for name in recipes.names(FOLDER) if name != SMOKE]
PUBLISHED: dict[str, dict[str, Any]] = YAML(typ="safe").load(FOLDER / "published.yaml")
COMMANDS: dict[str, str] = YAML(typ="safe").load(FOLDER / "dvc.yaml")["stages"]["measure"]["foreach"]
LONG = {"vamp-vae", "vamp-vae-vampprior", "iwae-1l-k1", "iwae-1l-k5"}  # which `dvc repro` does not start
LOG_PI = 392 * math.log(math.pi)

every_recipe = pytest.mark.parametrize("name", RECIPES)


def module(name: str) -> ModuleType:
    """Load a script of the folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"recipes_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


sys.path.append(str(FOLDER))  # as for a script that runs there
MEASURE, ORIGINS, TABLE, HOURS = map(module, ("measure", "origin", "table", "hours"))


@cache
def recipe(name: str) -> Config:
    return recipes.read(FOLDER, name)


def shape(config: Config) -> tuple[int, ...]:
    shapes = {"celeba": (3, 64, 64), "folder": (3, 64, 64), "sprites": (1, 32, 32)}
    return shapes.get(config.download.source, (1, 28, 28))


def some_data(config: Config, images: int, batch_size: int) -> Batches:
    grey = np.random.default_rng(0).integers(0, 256, (images, *shape(config)), dtype=np.uint8)
    if config.preprocess.binarization == "static":
        grey = np.where(grey > 127, 255, 0).astype(np.uint8)
    return Batches(grey, batch_size, torch.device("cpu"))


def some_loss(config: Config, data: Batches) -> Loss:
    torch.manual_seed(0)
    model = build_model(config.model, shape(config))
    check_objective(model, config.model, config.objective)
    shift, scale = (0.0, 1.0) if config.preprocess.scaling == "unit" else (0.5, 0.25)
    pixels = Pixels(image_facts(config.preprocess.binarization, shift, scale, channels=shape(config)[0]))
    if config.model.start_at_mean:
        start_at_mean(model, pixels.scaled(data.mean()))
    return Loss(model, pixels, config.objective)


# The files


def test_recipes_results_and_commands_are_about_the_same_systems() -> None:
    assert len(RECIPES) == 26
    assert sorted(PUBLISHED) == RECIPES
    assert sorted({*COMMANDS, *LONG}) == RECIPES
    assert not set(COMMANDS) & LONG


def test_the_recipe_to_try_things_with_needs_no_network_and_little_time() -> None:
    config = recipe(SMOKE)
    assert (config.download.source, config.train.epochs, config.evaluate.nll_samples) == ("digits", 2, 10)
    assert (config.evaluate.annealing.images, config.evaluate.generated.images) == (0, 0)


@every_recipe
def test_a_recipe_says_where_it_comes_from_and_what_to_expect(name: str) -> None:
    header = recipes.header(FOLDER, name).splitlines()
    for start in ("# Source:", "# Published", "# Measured:"):
        assert len([line for line in header if line.startswith(start)]) == 1, start


@every_recipe
def test_a_recipe_says_only_what_differs(name: str) -> None:
    shared, own = (flatten(YAML(typ="safe").load(FOLDER / f"{file}.yaml")) for file in ("base", name))
    assert [path for path, value in own.items() if shared.get(path) == value] == []


def test_a_change_of_the_shipped_parameters_changes_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: recipe(name) for name in RECIPES}
    shipped: dict[str, Any] = YAML(typ="safe").load(recipes.SHIPPED)
    changed = {"train": {"learning_rate": 0.5, "epochs": 3}, "model": {"latent": 99, "mlp": {"hidden": [1]}}}
    for section, values in changed.items():
        change(shipped[section], values)
    YAML().dump(shipped, tmp_path / "params.yaml")
    monkeypatch.setattr(recipes, "SHIPPED", tmp_path / "params.yaml")
    assert {name: recipes.read(FOLDER, name) for name in RECIPES} == before
    # All that there were when recipes became differences are set; one that is new need not be.
    assert len(flatten(YAML(typ="safe").load(FOLDER / "base.yaml"))) >= 113


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: [", "mine.yaml: line 1, column 9: not valid YAML: "),
        (b"[1]", r"mine.yaml: wanted sections of parameters, found \[1\]$"),
        (b"# Source: \xff", r"mine.yaml: not a recipe: .*; fix or remove it$"),
    ],
)
def test_a_damaged_recipe_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    shutil.copy(FOLDER / "base.yaml", tmp_path)
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(ParamsError, match=message):
        recipes.params_file(tmp_path, "mine")


@every_recipe
def test_a_recipe_has_its_own_title_and_stops_early_only_where_something_says_when(name: str) -> None:
    config = recipe(name)
    assert config.report.title == name
    if config.preprocess.validation == 0:
        assert config.train.patience >= config.train.epochs


@every_recipe
def test_a_recipe_trains(name: str) -> None:
    config = recipe(name)
    data = some_data(config, images=12, batch_size=4)
    loss = some_loss(config, data)
    before = {key: weight.detach().clone() for key, weight in loss.named_parameters()}
    trainer = Trainer(loss, config.train, len(data))
    for images, _ in data.visit(torch.randperm(len(data))):
        assert images.shape == (4, *shape(config))
        assert all(values.isfinite().all() for values in trainer.step(images).terms.values())
    assert [key for key, weight in loss.named_parameters() if torch.equal(weight, before[key])] == []
    assert all(weight.isfinite().all() for weight in loss.parameters())


@every_recipe
def test_a_recipe_is_accepted_by_the_stage_that_trains_it(name: str) -> None:
    config = recipe(name)
    torch.manual_seed(0)
    model = build_model(config.model, shape(config))
    data = image_facts(config.preprocess.binarization)
    scaling = data.scaling.model_copy(update={"kind": config.preprocess.scaling})
    check_parts(model, config, data.model_copy(update={"scaling": scaling}), images=50_000)


@every_recipe
def test_the_number_to_compare_can_be_read_off_what_is_measured(name: str) -> None:
    config = recipe(name)
    model = build_model(config.model, shape(config))
    split = some_split([0, 0, 0], shape(config))
    how = config.preprocess.binarization
    data = data_of(split, image_facts(how), is_density=is_density(model.likelihood, how))
    scores = some_scores(3, model.latent_size)
    metrics = measure(Subject(model, data, settings(nll_samples=1), scores), None).metrics
    title, compared = TABLE.MEASURES[PUBLISHED[name]["measure"]]
    assert math.isfinite(compared(metrics))
    if "squared" in title:  # these take off the constant of 784 pixels of variance 1/2
        assert (config.model.likelihood, math.prod(shape(config))) == ("gaussian", 784)
        assert config.model.gaussian.sigma == pytest.approx(math.sqrt(0.5), rel=1e-7)
    if "standardised" in title:
        assert config.preprocess.scaling == "standard"


def command(name: str) -> tuple[dict[str, Any], list[dict[str, Any]], list[int]]:
    """Read the budget, the swept values and the seeds of the command of a recipe."""
    words = shlex.split(COMMANDS[name])
    pairs = [(words[i], words[i + 1]) for i in range(len(words)) if words[i] in ("--set", "--sweep", "--seed")]
    flags = [word for word in words if word in ("--codes", "--photographs", "--scenes")]
    assert len(pairs) * 2 + len(flags) == len(words)
    budget = dict(MEASURE._assignment(value) for option, value in pairs if option == "--set")
    for flag, images in (("--photographs", ORIGINS.PHOTOGRAPHS), ("--scenes", ORIGINS.SCENES)):
        if flag in flags:
            budget |= {"download.source": "folder", "download.folder.path": images}
    swept: list[dict[str, Any]] = [{}]
    for option, value in pairs:
        if option == "--sweep":
            path, values = value.split("=")
            swept = [{path: MEASURE._parse(one)} for one in values.split(",")]
    return budget, swept, [int(value) for option, value in pairs if option == "--seed"] or [0]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_changes_parameters_that_there_are_to_values_that_fit(name: str) -> None:
    budget, swept, _ = command(name)
    for one in swept:
        config = recipes.read(FOLDER, name, {**budget, **one, "train.seed": 3})
        assert config.train.seed == 3
        model = build_model(config.model, shape(config))
        check_objective(model, config.model, config.objective)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_result_is_that_of_its_command_which_would_replace_it_by_the_same(name: str) -> None:
    result = json.loads((FOLDER / f"results/{name}.json").read_text(encoding="utf-8"))
    budget, swept, seeds = command(name)
    assert TABLE._renamed(result)["budget"] == budget
    assert [(run["swept"], run["seed"]) for run in result["runs"]] == list(itertools.product(swept, seeds))


def test_dvc_keeps_a_result_until_there_is_another() -> None:
    stage = YAML(typ="safe").load(FOLDER / "dvc.yaml")["stages"]["measure"]["do"]
    assert stage["metrics"] == [{"results/${key}.json": {"cache": False, "persist": True}}]


# Complete files


def test_a_recipe_is_what_is_shipped_with_what_recipes_share_and_what_differs() -> None:
    values = recipes.complete(FOLDER, "conv-latent2")
    assert values["model"]["conv"] == {
        "channels": [32, 64],
        "kernel": 3,
        "hidden": [400],
        "decoder_hidden": [],
        "activation": "relu",  # its own
        "stride": 2,
        "norm": "none",  # shared
    }
    assert (values["train"]["optimizer"], values["download"]["source"]) == ("adamw", "mnist")


@every_recipe
def test_a_complete_file_holds_the_recipe_its_origin_and_the_meaning_of_parameters(name: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(recipes.params_file(FOLDER, name), encoding="utf-8")
    assert load_config(path) == recipe(name)
    text = path.read_text(encoding="utf-8")
    assert text.startswith(recipes.header(FOLDER, name))
    assert f"  title: {name} # Title of the page; null names model, data and classes.\n" in text


def test_the_source_of_a_recipe_is_one_line() -> None:
    found = recipes.source(FOLDER, "kingma-mlp")
    assert found.startswith(
        "Kingma & Welling 2014, Auto-Encoding Variational Bayes, in the form of the JAX/Flax example"
    )
    assert found.endswith("the best of the 10 epochs by validation.)")
    assert "\n" not in found


def test_a_params_file_that_is_replaced_is_kept_under_a_name_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    assert recipes.place("one", path) is None
    assert recipes.place("one", path) is None  # the same
    assert recipes.place("two", path) == tmp_path / "params.yaml.bak"
    assert recipes.place("three", path) == tmp_path / "params.yaml.bak1"
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "params.yaml": "three",
        "params.yaml.bak": "one",
        "params.yaml.bak1": "two",
    }


def test_params_are_not_put_in_place_of_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="wanted a file, found a folder, device or pipe; name another path"):
        recipes.place("one", tmp_path / "pipe")
    assert [path.name for path in tmp_path.iterdir() if path.is_fifo()] == ["pipe"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "model: {mlp: {hiden: [3]}}",
            "model.mlp.hiden: unknown parameter, found [3]; did you mean 'model.mlp.hidden'?",
        ),
        ("train: {epochs: many}", "train.epochs: wanted a whole number, found 'many'"),
        ("model: 3", "model: wanted a section of parameters, found 3"),
    ],
)
def test_a_recipe_that_is_wrong_is_named(text: str, problem: str, tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "base.yaml").touch()
    (folder / "mine.yaml").write_text(text)
    with pytest.raises(ParamsError) as error:
        recipes.read(folder, "mine")
    assert str(error.value) == f"recipes/mine.yaml: 1 problem\n  {problem}"


# What the headers claim


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("samples", [1, 5, 50])
def test_the_recipes_of_burda_et_al_are_as_published(layers: int, samples: int) -> None:
    config = recipe(f"iwae-{layers}l-k{samples}")
    train = config.train
    assert (config.objective.name, config.objective.samples, config.objective.beta) == ("iwae", samples, 1.0)
    assert (train.optimizer, train.adam.betas, train.adam.epsilon, train.batch_size) == ("adam", (0.9, 0.999), 1e-4, 20)
    assert (config.preprocess.binarization, config.model.mlp.activation, config.model.start_at_mean) == (
        "dynamic",
        "tanh",
        True,
    )
    lengths = [3**stage for stage in range(8)]
    assert sum(lengths) == train.epochs == train.patience == 3280
    starts = [sum(lengths[:stage]) for stage in range(8)]
    assert starts == [0, *train.milestones.epochs]
    for stage, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        for epoch in (start, start + length / 2, start + length - 1e-6):
            assert rate_at(train, epoch, epoch) == pytest.approx(0.001 * 10 ** (-stage / 7), rel=1e-6)

    torch.manual_seed(0)
    model = build_model(config.model, (1, 28, 28))
    assert model.stochastic_layers == layers
    widths = [tuple(weight.shape[::-1]) for name, weight in model.named_parameters() if name.endswith("weight")]
    one = [(784, 200), (200, 200), (200, 100), (50, 200), (200, 200), (200, 784)]  # 100 is mean and variance of 50
    up, prior, down = (
        [(784, 200), (200, 200), (200, 200), (100, 100), (100, 100), (100, 100)],
        [(50, 100), (100, 100), (100, 200)],
        [(100, 200), (200, 200), (200, 784)],
    )
    assert widths == (one if layers == 1 else up + prior + down)


@pytest.mark.parametrize(("name", "prior"), [("vamp-vae", "standard"), ("vamp-vae-vampprior", "vamp")])
def test_the_recipes_of_tomczak_and_welling_are_as_published(name: str, prior: str) -> None:
    config = recipe(name)
    train = config.train
    assert (train.batch_size, train.epochs, train.patience, train.learning_rate) == (100, 2000, 50, 5e-4)
    assert (config.objective.name, config.objective.beta, config.objective.kl) == ("elbo", 1.0, "monte_carlo")
    assert (config.objective.warmup, config.objective.warmup_epochs) == ("linear", 100)
    assert (config.preprocess.binarization, config.preprocess.validation) == ("dynamic", 10_000)
    assert (config.model.prior, config.model.vamp.components, config.evaluate.nll_samples) == (prior, 500, 5000)

    model = build_model(config.model, (1, 28, 28))
    widths = [tuple(weight.shape[::-1]) for name, weight in model.named_parameters() if name.endswith("weight")]
    # Each gated layer is two, side by side; 80 is mean and variance of 40.
    assert widths == [(784, 600), (300, 600), (300, 80), (40, 600), (300, 600), (300, 784)]


def drawn(name: str) -> tuple[Loss, Tensor, dict[str, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Draw random images and latents; return the loss, the images, our terms, and the decoder's image with its KL."""
    config = recipe(name)
    data = some_data(config, images=6, batch_size=6)
    loss = some_loss(config, data)
    [(images, _)] = data.in_order()
    x = loss.pixels(images)
    torch.manual_seed(5)
    terms = loss(images)
    with torch.no_grad():
        mean, log_variance = loss.model.posterior(x)
        torch.manual_seed(5)
        z = mean if loss.model.stochastic_layers == 0 else mean + torch.randn_like(mean) * (log_variance / 2).exp()
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp())  # (B, D); of a code, infinite
    return loss, x, {name: values.detach() for name, values in terms.items()}, (loss.model.decode(z).detach(), z, kl)


def metrics(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: terms[name].double().mean().item() for name in ("reconstruction", "kl", "elbo") if name in terms}


def measured(name: str, terms: dict[str, Tensor]) -> float:
    value: float = TABLE.MEASURES[PUBLISHED[name]["measure"]][1](metrics(terms))
    return value


def test_the_loss_of_arenas_vae_is_its_own_in_nats() -> None:
    loss, x, terms, (image, z, kl) = drawn("arena-conv-vae")
    assert z.shape == (6, 5)
    published = F.mse_loss(image, x) + 0.1 * kl.mean()
    assert loss.config.beta == pytest.approx(0.1 * 784 / 5, rel=1e-12)
    ours = terms["loss"].mean()
    torch.testing.assert_close(ours, 784 * published + LOG_PI, rtol=1e-5, atol=0)
    squares, total = 784 * F.mse_loss(image, x), kl.sum(1).mean()
    torch.testing.assert_close(ours, squares + 15.68 * total + LOG_PI, rtol=1e-5, atol=0)
    torch.testing.assert_close(terms["reconstruction"].mean(), squares + LOG_PI, rtol=1e-5, atol=0)
    torch.testing.assert_close(terms["kl"].mean(), total, rtol=1e-4, atol=1e-6)
    assert measured("arena-conv-vae", terms) == pytest.approx(published.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["equinox-mlp-vae", "conv-latent2"])
def test_squared_error_plus_kl_is_the_negative_elbo_but_for_a_constant(name: str) -> None:
    _, x, terms, (image, _, kl) = drawn(name)
    published = (image - x).square().sum((1, 2, 3)) + kl.sum(1)
    torch.testing.assert_close(terms["loss"] - LOG_PI, published, rtol=1e-5, atol=0)
    torch.testing.assert_close(-terms["elbo"] - LOG_PI, published, rtol=1e-5, atol=0)
    assert pytest.approx(448.73, abs=0.005) == LOG_PI
    assert measured(name, terms) == pytest.approx(published.mean().item(), rel=1e-5)


def test_the_loss_of_arenas_autoencoder_is_its_mean_squared_error_in_nats() -> None:
    _, x, terms, (image, _, _) = drawn("arena-conv-ae")
    torch.testing.assert_close(terms["loss"].mean(), 784 * F.mse_loss(image, x) + LOG_PI, rtol=1e-5, atol=0)
    assert measured("arena-conv-ae", terms) == pytest.approx(F.mse_loss(image, x).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["equinox-mlp-ae", "sparse-ae"])
def test_the_squared_error_of_an_autoencoder_is_summed_over_pixels(name: str) -> None:
    _, x, terms, (image, _, _) = drawn(name)
    wanted = (image - x).square().sum((1, 2, 3)).mean().item()
    assert measured(name, terms) == pytest.approx(wanted, rel=1e-5)


def test_pytorchs_example_minimises_a_cross_entropy_plus_kl() -> None:
    _, x, terms, (image, _, kl) = drawn("pytorch-example")
    published = F.binary_cross_entropy(image, x, reduction="sum") + kl.sum()
    torch.testing.assert_close(terms["loss"].sum(), published, rtol=1e-5, atol=0)


def test_kerass_pixels_have_a_standard_deviation_of_one_half() -> None:
    _, x, terms, (image, _, kl) = drawn("keras-gaussian")
    negative_log = -torch.distributions.Normal(image, 0.5).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(terms["loss"], negative_log + kl.sum(1), rtol=1e-5, atol=0)


# The table


def run(seed: int, metrics: dict[str, Any], swept: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    history = {"epoch": [1.0, 2.0], "train_loss": [200.0, 100.0 + seed]}
    return {"metrics": metrics, "history": history, "seed": seed, "swept": swept or {}, **more}


def result(name: str, *runs: dict[str, Any], budget: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"recipe": name, "budget": budget or {}, "device": "CPU", "runs": list(runs)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recipes without results."""
    monkeypatch.setattr(TABLE, "HERE", tmp_path)
    (tmp_path / "published.yaml").write_bytes((FOLDER / "published.yaml").read_bytes())
    (tmp_path / "results").mkdir()
    (tmp_path / "base.yaml").write_bytes((FOLDER / "base.yaml").read_bytes())
    for recipe in YAML(typ="safe").load(FOLDER / "published.yaml"):
        (tmp_path / f"{recipe}.yaml").write_bytes((FOLDER / f"{recipe}.yaml").read_bytes())
    return tmp_path


def write(folder: Path, *results: dict[str, Any]) -> list[str]:
    """Write results and the table, and return the lines of the table."""
    for one in results:
        (folder / "results" / f"{one['recipe']}.json").write_text(json.dumps(one))
    TABLE.main()
    return (folder / "RESULTS.md").read_text().splitlines()


def shown(name: str) -> str:
    facts = PUBLISHED[name]
    return f"{facts['published']:.2f} ± {facts['tolerance']}" if "published" in facts else "no number"


STALE = "stale: before commits were recorded"
TORCH = TABLE._pinned_torch()
ORIGIN = {"commit": "0123456789abcdef", "torch": f"{TORCH}+cu130"}
PLACE = f"0123456, torch {TORCH}+cu130"


def rows_of(lines: list[str], name: str, table: str = "| recipe | published") -> list[list[str]]:
    """The cells of the rows of a recipe in the table with this head."""
    start = next(number for number, line in enumerate(lines) if line.startswith(table))
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
    return [re.split(r" \| ?", row.removeprefix("| "))[:-1] for row in rows if row.startswith(f"| `{name}`")]


def row_of(lines: list[str], name: str) -> list[str]:
    [row] = rows_of(lines, name)
    return row


def how(lines: list[str], name: str) -> list[str]:
    """Budget, device and origin of the measurement of a recipe."""
    [row] = rows_of(lines, name, "| recipe | budget")
    return row[1:]


def test_a_published_number_has_tolerance_unit_and_source_and_another_a_reason() -> None:
    for name, facts in PUBLISHED.items():
        wanted = {"published", "tolerance", "unit", "source"} if "published" in facts else {"reason"}
        assert set(facts) - {"note", "active_units", "hours"} == wanted | {"measure"}, name
        assert isinstance(facts.get("published", 0.5), float)
        assert facts.get("tolerance", 1) > 0


@pytest.mark.parametrize(
    ("nll", "difference", "verdict"),
    [
        (84.45, "+0.00", "pass"),
        (84.84, "+0.39", "pass"),
        (84.06, "-0.39", "pass"),
        (84.86, "+0.41", "fail"),
        (84.04, "-0.41", "fail: it is better"),  # better by more than there is to explain: something differs
    ],
)
def test_a_row_passes_that_is_within_the_tolerance(nll: float, difference: str, verdict: str, folder: Path) -> None:
    lines = write(folder, result("vamp-vae", run(0, {"nll": nll, "active_units": 25})))
    assert row_of(lines, "vamp-vae")[2:7] == [f"{nll:.2f}", "NLL", difference, verdict, "25"]


def test_active_units_are_beside_those_that_were_published(folder: Path) -> None:
    lines = write(
        folder, result("iwae-1l-k50", *(run(seed, {"nll": 84.5, "active_units": 24 + seed}) for seed in (0, 1)))
    )
    assert row_of(lines, "iwae-1l-k50")[4:7] == ["-0.28", "pass", "24.5 (published 25)"]


def test_what_a_reader_must_know_is_in_the_row(folder: Path) -> None:
    budget = {"download.source": "folder", "download.folder.path": "cut-outs of two photographs"}
    lines = write(folder, result("celeba-conv-vae", run(0, {"elbo": 2201.0}), budget=budget))
    assert row_of(lines, "celeba-conv-vae")[5] == (
        "none: trained and tested on overlapping cut-outs of two photographs, not on faces; parts of the test images "
        "were seen in training"
    )


def test_sources_of_numbers_are_listed_once(folder: Path) -> None:
    lines = write(folder)
    [text] = [line for line in lines if line.startswith("- `iwae-1l-k1`, `iwae-1l-k5`, `iwae-1l-k50`, `iwae-2l-k1`")]
    assert "Burda et al. 2016, table 1" in text
    [text] = [line for line in lines if line.startswith("- `kingma-mlp`")]
    assert text.startswith("- `kingma-mlp`: no number: Kingma & Welling 2014 draw the bound")


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, PLACE),
        ({"train": "f" * 64}, f"stale since {PLACE}: train"),
        ({"parameters": "f" * 64, "evaluate": "f" * 64}, f"stale since {PLACE}: parameters, evaluate"),
    ],
)
def test_a_row_is_stale_where_source_or_parameters_differ(changed: dict[str, str], wanted: str, folder: Path) -> None:
    today = ORIGINS.determined_by(FOLDER, "vamp-vae", {"train.epochs": 20})
    origin = ORIGIN | {"determined_by": today | changed}
    measured = result("vamp-vae", run(0, {"nll": 90.0}), budget={"train.epochs": 20}) | {"origin": origin}
    assert how(write(folder, measured), "vamp-vae")[-1] == wanted


def test_a_row_is_not_stale_where_a_short_run_gives_the_same_numbers(folder: Path) -> None:
    today = ORIGINS.determined_by(FOLDER, "vamp-vae", {})
    origin = ORIGIN | {"determined_by": today | {"train": "f" * 64}}
    for confirmed, wanted in (
        (today, f"{PLACE}; fedcba9 gives the same in a short run"),
        (today | {"train": "0" * 64}, f"stale since {PLACE}: train"),
    ):
        found = {"commit": "fedcba9876543210", "torch": TORCH, "determined_by": confirmed}
        measured = result("vamp-vae", run(0, {"nll": 84.4})) | {"origin": origin, "confirmed": found}
        assert how(write(folder, measured), "vamp-vae")[-1] == wanted


def test_a_row_of_another_torch_is_stale_and_no_short_run_helps(folder: Path) -> None:
    today = ORIGINS.determined_by(FOLDER, "vamp-vae", {})
    origin = {"commit": "0123456789abcdef", "torch": "2.9.0", "determined_by": today}
    confirmed = {"commit": "fedcba9876543210", "torch": TORCH, "determined_by": today}
    measured = result("vamp-vae", run(0, {"nll": 84.4})) | {"origin": origin, "confirmed": confirmed}
    assert how(write(folder, measured), "vamp-vae")[-1] == "stale since 0123456, torch 2.9.0: torch"


def test_images_that_are_made_here_determine_a_result_by_their_program() -> None:
    rendered = ORIGINS.determined_by(FOLDER, "autoencoder-kl", {"download.folder.path": ORIGINS.SCENES})
    cut = ORIGINS.determined_by(FOLDER, "autoencoder-kl", {"download.folder.path": ORIGINS.PHOTOGRAPHS})
    assert rendered["images"] == sha256(FOLDER / "scenes.py")
    assert cut["images"] == sha256(FOLDER / "photographs.py")
    assert "images" not in ORIGINS.determined_by(FOLDER, "autoencoder-kl", {})


def test_scores_of_codes_and_reconstructions_have_tables_of_their_own(folder: Path) -> None:
    scores = {"mig": 0.25, "sap": 0.5, "factor_vae_score": 0.75}
    runs = [run(seed, scores | {"mig": 0.25 + 0.1 * seed, "elbo": -45.0}) for seed in (0, 1)]
    coded = run(0, {"reconstruction": 460.0, "psnr": 21.5, "ssim": 0.9, "codebook_perplexity": 800.0})
    lines = write(folder, result("factor-sprites", *runs), result("fsq", coded))
    assert rows_of(lines, "factor-sprites", "| recipe | MIG") == [
        ["`factor-sprites`", "0.3000 ± 0.0707", "0.5000 ± 0.0000", "", "", "", "0.7500 ± 0.0000"]
    ]
    assert rows_of(lines, "fsq", "| recipe | PSNR") == [["`fsq`", "21.50", "0.9000", "", "800.00", ""]]
    assert rows_of(lines, "fsq", "| recipe | MIG") == []


def test_a_likelihood_has_its_effective_samples_beside_it(folder: Path) -> None:
    runs = [run(seed, {"elbo": -102.5, "nll": 97.5 + seed, "nll_effective_samples": 4.5 + seed}) for seed in (0, 1)]
    lines = write(folder, result("kingma-mlp", *runs))
    assert rows_of(lines, "kingma-mlp", "| recipe | reconstruction") == [
        ["`kingma-mlp`", "", "", "98.00 ± 0.71", "5.00 ± 0.71"]
    ]
    assert "with fewer than 10, the NLL is too high." in "\n".join(lines)


def test_a_row_has_the_hours_of_its_training_if_they_were_recorded(folder: Path) -> None:
    timed = result("vamp-vae", run(0, {"nll": 84.4})) | {"hours": 12.345}
    later = result("pytorch-example", run(0, {"bce": 80.0, "kl": 25.0})) | {"hours_later": 1.96}
    lines = write(folder, timed, later, result("fsq", run(0, {"reconstruction": 460.0})))
    found = [how(lines, name)[2] for name in ("vamp-vae", "pytorch-example", "fsq")]
    assert found == ["12.3", "about 2.0", "not recorded"]
    short = result("iwae-2l-k50", run(0, {"nll": 100.0}), budget={"train.epochs": 4})
    assert how(write(folder, short), "iwae-2l-k50")[2] == "not recorded; all epochs about 62"


def test_hours_that_were_not_recorded_are_those_of_all_epochs_at_the_speed_of_today(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def seconds(name: str, budget: dict[str, Any], _paths: Paths, epochs: int) -> float:
        asked.append((name, budget, epochs))
        return 60.0 + 900.0 * epochs  # a minute before the first one

    monkeypatch.setattr(HOURS, "HERE", folder)
    monkeypatch.setattr(HOURS, "_seconds", seconds)
    budget = {"train.batch_size": 100}
    runs = [run(seed, {"nll": 84.4}) for seed in (0, 1)]  # of two epochs each
    write(folder, result("vamp-vae", *runs, budget=budget))
    HOURS.main(["vamp-vae"])
    assert asked == [("vamp-vae", budget, count) for count in (1, 1, 3)]  # the first run compiles
    assert how(write(folder), "vamp-vae")[2] == "about 1.0"


@pytest.mark.parametrize(
    ("budget", "verdict"),
    [
        ({"train.compile": True}, "pass"),
        ({"train.batch_size": 100, "train.compile": True}, "pass (with another train.batch_size)"),
        ({"train.epochs": 20, "train.batch_size": 100}, "none: fewer epochs"),
    ],
)
def test_a_verdict_names_what_was_changed_in_the_recipe(budget: dict[str, Any], verdict: str, folder: Path) -> None:
    lines = write(folder, result("vamp-vae", run(0, {"nll": 84.45}), budget=budget))
    assert row_of(lines, "vamp-vae")[5] == verdict


def test_a_row_with_a_parameter_that_is_there_no_longer_is_stale(folder: Path) -> None:
    origin = {"commit": "0123456789abcdef+", "torch": TORCH, "determined_by": {}}
    measured = result("vamp-vae", run(0, {"nll": 90.0}), budget={"train.magic": 3}) | {"origin": origin}
    wanted = f"stale since 0123456+, torch {TORCH}: parameters"
    assert how(write(folder, measured), "vamp-vae")[-1] == wanted


def test_where_a_folder_is_and_how_results_are_exported_determines_no_result() -> None:
    def parameters(**changes: Any) -> str:
        found = ORIGINS.determined_by(FOLDER, "smoke", changes)
        assert list(found) == ["parameters", "preprocess", "train", "evaluate"]
        assert found["train"] == source_hash("train")
        return found["parameters"]

    same = {"download.folder.path": "a", "export.opset": 18, "report.title": "b"}
    assert parameters() == parameters(**same)
    others: list[dict[str, Any]] = [
        {"train.seed": 1}, {"preprocess.seed": 1}, {"model.latent": 3}, {"objective.beta": 2.0}, {"evaluate.seed": 1},
        {"download.source": "mnist_5k"},
    ]  # fmt: skip
    assert len({parameters(), *(parameters(**change) for change in others)}) == 7


def test_what_was_not_measured_has_no_number(folder: Path) -> None:
    lines = write(folder)
    rows = [line for line in lines if line.startswith("| `")]
    assert rows == [f"| `{name}` | {shown(name)} | not measured | | | | | |" for name in PUBLISHED]
    assert not [line for line in lines if "![" in line]
    assert not list(folder.rglob("*.png"))


def test_a_measured_recipe_has_mean_and_standard_deviation_over_its_seeds(folder: Path) -> None:
    numbers = [{"nll": nll, "reconstruction": 60.0, "kl": 25.5, "active_units": 19} for nll in (86.0, 87.0, 88.5)]
    runs = [run(seed, found) for seed, found in enumerate(numbers)]
    lines = write(folder, result("iwae-1l-k5", *runs, budget={"train.epochs": 13, "evaluate.nll_samples": 500}))
    # Deviations -7/6, -1/6, 4/3 of the mean 87 1/6: a sample variance of 19/12.
    assert [line for line in lines if line.startswith("| `iwae-1l-k5`")] == [
        "| `iwae-1l-k5` | 85.54 ± 0.4 | 87.17 ± 1.26 | NLL | +1.63 | none: fewer epochs | "
        "19 (published 22) | 0, 1, 2 |",
        f"| `iwae-1l-k5` | train.epochs 13, evaluate.nll_samples 500 | CPU | not recorded | {STALE} |",
        "| `iwae-1l-k5` | 60.00 ± 0.00 | 25.50 ± 0.00 | 87.17 ± 1.26 |  |",
    ]
    assert len([line for line in lines if "not measured" in line]) == len(RECIPES) - 1
    assert (folder / "pictures/curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "found", "wanted"),
    [
        ("kingma-mlp", {"elbo": -104.25}, "104.25"),
        ("pytorch-example", {"bce": 80.5, "kl": 25.0}, "105.50"),
        ("equinox-mlp-ae", {"reconstruction": LOG_PI + 12.5}, "12.50"),
        ("equinox-mlp-vae", {"elbo": -LOG_PI - 30.25}, "30.25"),
        ("arena-conv-ae", {"reconstruction": LOG_PI + 784 * 0.25}, "0.2500"),
        ("arena-conv-vae", {"reconstruction": LOG_PI + 784 * 0.25, "kl": 10.0}, "0.4500"),  # 0.25 + 0.1 * 10 / 5
    ],
)
def test_a_single_run_is_given_in_the_units_of_what_was_published(
    name: str, found: dict[str, float], wanted: str, folder: Path
) -> None:
    lines = write(folder, result(name, run(7, found)))
    title = TABLE.MEASURES[PUBLISHED[name]["measure"]][0]
    row = row_of(lines, name)
    assert [*row[:4], row[-1]] == [f"`{name}`", shown(name), wanted, title, "7"]
    assert how(lines, name) == ["as in its file", "CPU", "not recorded", STALE]


def test_values_of_a_sweep_have_a_row_each(folder: Path) -> None:
    runs = [
        run(seed, {"elbo": -100.0 * beta - seed, "kl": 20.0 / beta, "reconstruction": 80.0}, {"objective.beta": beta})
        for beta in (0.5, 2)
        for seed in (0, 1)
    ]
    lines = write(folder, result("beta-sweep", *runs))
    assert [row[:6] for row in rows_of(lines, "beta-sweep")] == [
        ["`beta-sweep`, objective.beta 0.5", "no number", "50.50 ± 0.71", "negative ELBO", "", "none"],
        ["`beta-sweep`, objective.beta 2", "no number", "200.50 ± 0.71", "negative ELBO", "", "none"],
    ]
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == ["curves.png", "rate-distortion.png"]
    assert "![Rate and distortion](pictures/rate-distortion.png)" in lines


def penalised(kind: str, *, codes: bool = True) -> dict[str, Any]:
    measured = {
        "squared_error_under_noise": {"0.0": 0.01, "0.5": 0.0425},
        "activation_histogram": [1 / 40] * 40,
        "near_zero_fraction": 0.125,
        "squared_jacobian_norm": 1.5,
        "relative_squared_jacobian_norm": 0.0625,
    }
    more = {"codes": measured} if codes else {}
    objectives = ("reconstruction", kind)
    runs = [run(0, {"reconstruction": 500.0}, {"objective.name": objective}, **more) for objective in objectives]
    return result(f"{kind}-ae", *runs)


def test_the_penalties_are_compared_once_all_three_are_measured(folder: Path) -> None:
    assert not [line for line in write(folder, penalised("denoising"), penalised("sparse")) if "penalties" in line]
    lines = write(folder, penalised("contractive"))
    assert "![What the penalties buy](pictures/penalties.png)" in lines
    found = [line for line in lines if "12.5%" in line]
    assert found == [
        f"| `{kind}-ae` | {objective} | 0.0100 | 0.0425 | 12.5% | 1.500 | 0.06250 |"
        for kind in ("denoising", "sparse", "contractive")
        for objective in ("reconstruction", kind)
    ]


def test_penalties_that_were_measured_without_their_codes_are_not_compared(folder: Path) -> None:
    lines = write(folder, penalised("denoising"), penalised("sparse"), penalised("contractive", codes=False))
    assert not [line for line in lines if "penalties" in line]
    assert [line for line in lines if line.startswith("| `sparse-ae`")]


def test_the_same_results_give_the_same_files(folder: Path) -> None:
    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".md", ".png")}

    write(folder, penalised("sparse"))
    first = files()
    TABLE.main()
    assert files() == first
    assert set(first) == {"RESULTS.md", "curves.png"}


# Measurements


@pytest.fixture
def tiny(project: Paths, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one recipe, of digits."""
    folder = project.root / "recipes"
    folder.mkdir()
    params["preprocess"]["limit"] = 60
    params["train"]["epochs"] = 9
    YAML().dump(params, folder / "tiny.yaml")
    (folder / "base.yaml").touch()
    monkeypatch.setattr(MEASURE, "HERE", folder)
    return folder


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results/tiny.json").read_text())
    return found


def test_a_measurement_holds_a_run_for_each_value_and_seed_and_can_be_repeated(tiny: Path) -> None:
    before = (tiny / "tiny.yaml").read_bytes()

    def measure(seed: list[int], sweep: str) -> dict[str, Any]:
        MEASURE.main("tiny", seed=seed, set_=["train.epochs=2"], sweep=sweep, codes=False)
        return read(tiny)

    first = measure([0, 1], "objective.beta=0.5,4")
    assert (first["recipe"], first["budget"]) == ("tiny", {"train.epochs": 2})
    assert set(first["origin"]) == {"commit", "torch", "determined_by"}
    assert first["origin"]["torch"] == torch.__version__
    assert first["origin"]["determined_by"] == ORIGINS.determined_by(tiny, "tiny", {"train.epochs": 2})
    assert first["hours"] >= 0
    assert [(run["swept"], run["seed"]) for run in first["runs"]] == [
        ({"objective.beta": 0.5}, 0),
        ({"objective.beta": 0.5}, 1),
        ({"objective.beta": 4}, 0),
        ({"objective.beta": 4}, 1),
    ]
    for run in first["runs"]:
        assert set(run) == {"metrics", "history", "seed", "swept"}
        assert run["history"]["epoch"] == [1.0, 2.0]
        assert {"elbo", "reconstruction", "kl", "nll", "active_units", "images"} <= set(run["metrics"])
    numbers = [run["metrics"]["elbo"] for run in first["runs"]]
    assert len(set(numbers)) == 4  # value and seed reached the training
    pictures = {path.name: path.read_bytes() for path in (tiny / "figures/tiny").iterdir()}
    assert sorted(pictures) == ["latent_grid.png", "reconstructions.png", "samples.png"]

    assert measure([0], "objective.beta=0.5")["runs"] == first["runs"][:1]
    assert {path.name: path.read_bytes() for path in (tiny / "figures/tiny").iterdir()} == pictures
    assert (tiny / "tiny.yaml").read_bytes() == before


def test_models_that_were_trained_before_are_evaluated_again_and_keep_their_origin(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure() -> dict[str, Any]:
        work = tmp_path / "work"
        MEASURE.main("tiny", seed=[0], set_=["train.epochs=1"], sweep="", codes=False, work=work)
        return read(tiny)

    (tmp_path / "work/0").mkdir(parents=True)
    (tmp_path / "work/0/seconds").write_text("7200.0")  # of a process that was killed
    first = measure()
    assert first["hours"] == pytest.approx(2.0, abs=0.05)
    monkeypatch.setattr(MEASURE.train, "run", None)  # must not be called
    assert measure() == first

    later = first["origin"]["determined_by"] | {"train": "f" * 64, "evaluate": "f" * 64}
    monkeypatch.setattr(MEASURE, "determined_by", lambda *_: later)
    again = measure()
    assert (again["origin"], again["runs"]) == (first["origin"], first["runs"])
    assert again["evaluated"]["determined_by"] == later

    (tiny / "results/tiny.json").unlink()
    with pytest.raises(UserError, match="wanted models that today's source trained, or one result's, found others"):
        measure()


def test_a_row_whose_models_were_evaluated_again_is_not_stale_by_its_evaluation(folder: Path) -> None:
    today = ORIGINS.determined_by(FOLDER, "vamp-vae", {})
    origins = {"origin": ORIGIN | {"determined_by": today | {"evaluate": "f" * 64}}}
    measured = result("vamp-vae", run(0, {"nll": 84.4})) | origins
    assert how(write(folder, measured), "vamp-vae")[-1] == f"stale since {PLACE}: evaluate"
    measured["evaluated"] = {"commit": "fedcba9876543210", "torch": TORCH, "determined_by": today}
    assert how(write(folder, measured), "vamp-vae")[-1] == f"{PLACE}, evaluated at fedcba9"


def test_a_parameter_that_there_is_not_is_refused(tiny: Path) -> None:
    with pytest.raises(ParamsError) as error:
        MEASURE.main("tiny", seed=[0], set_=["train.epoch=2"], sweep="", codes=False)
    assert str(error.value) == "tiny.yaml: train.epoch: no such parameter; did you mean 'train.epochs'?"
    with pytest.raises(ParamsError, match=r"train\.epochs: wanted a whole number, .*found 'two'"):
        MEASURE.main("tiny", seed=[0], set_=["train.epochs=two"], sweep="", codes=False)
    assert not (tiny / "results").exists()


@pytest.mark.usefixtures("blank_figures")
def test_codes_are_measured_in_units_that_do_not_depend_on_their_size(
    tiny: Path, project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "model.kind": "autoencoder",
        "model.likelihood": "gaussian",
        "objective.name": "reconstruction",
        "preprocess.binarization": "none",
        "preprocess.scaling": "symmetric",
        "train.epochs": 1,
        "evaluate.sampler": "mixture",
    }
    config = recipes.read(tiny, "tiny", changes)
    for stage in (download, preprocess, train):
        stage.run(config, project)
    found = MEASURE._measure_codes(project, config)

    model, _ = load_model(project.model, torch.device("cpu"))
    images = store.read_split(project.processed, "test").images
    x = Pixels(store.read_card(project.processed))(torch.from_numpy(images.copy()))
    with torch.no_grad():
        code = model.posterior(x)[0]
        error = ((model.decode(code) - x) / 2).square().mean().item()  # black is -1, white is 1
    errors = found["squared_error_under_noise"]
    assert list(errors) == ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8"]
    assert errors["0.0"] == pytest.approx(error, abs=1e-6)
    with random_stream(0, "codes"), torch.no_grad():
        for level, found_error in errors.items():
            noisy = x + float(level) * 2 * torch.randn_like(x)
            error = ((model.decode(model.posterior(noisy)[0]) - x) / 2).square().mean().item()
            assert found_error == pytest.approx(error, abs=1e-6)

    jacobian = torch.func.vmap(torch.func.jacrev(lambda image: model.posterior(image[None])[0][0]))(x)
    squared = jacobian.square().flatten(1).sum(1).mean().item()
    assert found["squared_jacobian_norm"] == pytest.approx(squared, abs=1e-4)
    spread = code.var(0, correction=0).sum().item()
    assert found["relative_squared_jacobian_norm"] == pytest.approx(squared / spread, rel=1e-4)
    relative = code / code.square().mean().sqrt()
    assert found["near_zero_fraction"] == pytest.approx((relative.abs() < 0.1).float().mean().item(), abs=1e-4)
    histogram = np.histogram(relative.numpy(), bins=40, range=(-4, 4))[0] / relative.numel()
    assert found["activation_histogram"] == pytest.approx(histogram.tolist(), abs=2e-2)
    assert sum(found["activation_histogram"]) == pytest.approx(1, abs=1e-4)

    # A run with --codes holds the same.
    MEASURE.main("tiny", seed=[0], set_=[f"{path}={value}" for path, value in changes.items()], sweep="", codes=True)
    assert read(tiny)["runs"][0]["codes"] == found
