import copy
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from functools import reduce
from operator import attrgetter, getitem
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import SMALL, change
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from reparam.config import Config, flatten, load_config, params_hash
from reparam.config.load import paths_of, section_at
from reparam.config.section import KeyOf
from reparam.data.sources.registry import SOURCES
from reparam.errors import ParamsError
from reparam.evaluate.samplers import SAMPLERS
from reparam.models.build import KINDS
from reparam.models.likelihoods import LIKELIHOODS
from reparam.models.networks import ACTIVATIONS, NETWORKS
from reparam.objectives import OBJECTIVES
from reparam.paths import Paths
from reparam.train.optimizers import OPTIMIZERS, SCHEDULES

REPOSITORY = Path(__file__).parents[2]
Write = Callable[[dict[str, Any]], None]


def problems(path: Path) -> list[str]:
    """The lines of a ParamsError below its first one."""
    with pytest.raises(ParamsError) as caught:
        load_config(path)
    first, *rest = str(caught.value).splitlines()
    assert first == f"{path}: {len(rest)} problem{'s' if len(rest) > 1 else ''}"
    return [line.strip() for line in rest]


def test_the_shipped_parameters_are_valid_and_are_read_as_they_are() -> None:
    config = load_config(REPOSITORY / "params.yaml")
    assert config.download.source == "mnist_5k"
    assert config.preprocess.binarization == "dynamic"
    assert config.model.conv.channels == (16, 32)
    assert config.objective.beta == 1.0
    assert config.train.learning_rate == 0.003
    assert config.train.adam.betas == (0.9, 0.999)
    assert config.train.adam.epsilon == 1e-8
    assert config.report.title is None


def test_every_wrong_parameter_is_named_at_once(project: Paths, params: dict[str, Any], write_params: Write) -> None:
    params["download"]["source"] = 7
    params["model"]["mlp"]["hidden"] = [16, 0]
    params["model"]["latent"] = 2.5
    params["model"]["stochastic"] = {"layers": 2}
    params["objective"]["free_bit"] = params["objective"].pop("free_bits")
    params["objective"]["sparse"]["rho"] = 1
    params["objective"]["capacity"]["epoch"] = params["objective"]["capacity"].pop("epochs")
    params["train"]["adam"]["betas"] = [0.9, 1.0]
    params["train"]["milestones"]["epochs"] = [1, 2.5]
    del params["train"]["sgd"]
    params["preprocess"]["binarization"] = "dinamic"
    params["train"]["epoch"] = params["train"].pop("epochs")
    params["evaluate"]["grid"]["steps"] = 41
    params["evaluate"]["mixture"] = 10
    params["export"]["colour"] = "red"
    params["preprocess"]["test"] = 1.0
    params["preprocess"]["channels"] = 2
    params["preprocess"]["classes"] = ["1", 2]
    params["preprocess"]["limit"] = 0
    params["model"]["conv"]["channels"] = 32
    del params["report"]
    write_params(params)
    assert sorted(problems(project.params)) == sorted(
        [
            "download.source: wanted text, found 7",
            "preprocess.test: wanted a fraction below 1, or a whole number of images, found 1.0",
            "preprocess.channels: wanted 1 or 3, found 2",
            "preprocess.classes.1: wanted text, found 2",
            "preprocess.limit: wanted above 0, found 0",
            "model.mlp.hidden.1: wanted above 0, found 0",
            "model.conv.channels: wanted a list, found 32",
            "model.latent: wanted a whole number, found 2.5",
            "model.stochastic: unknown parameter, found {'layers': 2}; remove it",
            "objective.free_bits: missing; wanted a number (at least 0)",
            "objective.free_bit: unknown parameter, found 0.0; did you mean 'objective.free_bits'?",
            "objective.sparse.rho: wanted below 1, found 1",
            "objective.capacity.epochs: missing; wanted a whole number (above 0)",
            "objective.capacity.epoch: unknown parameter, found 100; did you mean 'objective.capacity.epochs'?",
            "train.adam.betas.1: wanted below 1, found 1.0",
            "train.sgd: missing; wanted a block of parameters (momentum)",
            "train.milestones.epochs.1: wanted a whole number, found 2.5",
            "preprocess.binarization: wanted 'none', 'threshold', 'static' or 'dynamic', found 'dinamic'",
            "train.epochs: missing; wanted a whole number (above 0)",
            "train.epoch: unknown parameter, found 2; did you mean 'train.epochs'?",
            "evaluate.grid.steps: wanted at most 40, found 41",
            "evaluate.mixture: wanted a block of parameters (components), found 10",
            "export.colour: unknown parameter, found 'red'; remove it",
            "report: missing; wanted a section of parameters",
        ]
    )


@pytest.mark.parametrize(
    ("section", "name", "wanted"),
    [
        ("download", "source", "one of " + ", ".join(map(repr, SOURCES))),
        ("download", "folder.path", "null or text"),
        ("preprocess", "binarization", "one of 'none', 'threshold', 'static', 'dynamic'"),
        ("preprocess", "channels", "one of 1, 3"),
        ("preprocess", "classes", "null or a list of at least 1, each text"),
        ("preprocess", "limit", "null or a whole number (above 0)"),
        ("preprocess", "validation", "0, a fraction below 1, or a whole number of images"),
        ("preprocess", "test", "a fraction below 1, or a whole number of images"),
        ("model", "kind", "one of 'autoencoder', 'vae', 'hierarchical', 'fsq', 'vq'"),
        ("model", "mlp.hidden", "a list, each a whole number (above 0)"),
        ("model", "conv.decoder_hidden", "null or a list, each a whole number (above 0)"),
        ("model", "gaussian", "a block of parameters (mean, sigma)"),
        ("model", "gaussian.sigma", "a number (at least 0.001 and at most 1000.0)"),
        ("model", "start_at_mean", "true or false"),
        ("objective", "beta", "a number (at least 0)"),
        ("train", "adam.betas", "a list of 2, each a number (at least 0 and below 1)"),
        ("train", "monitor", "one of 'loss', 'elbo'"),
        ("train", "optimizer", "one of " + ", ".join(map(repr, OPTIMIZERS))),
        ("train", "min_delta", "a number (at least 0)"),
        ("train", "clip_norm", "null or a number (above 0)"),
        ("train", "average", "a number (at least 0 and below 1)"),
        ("train", "on_nonfinite", "one of 'stop', 'rollback'"),
        ("train", "precision", "one of 'fp32', 'tf32', 'bf16_matmul', 'bf16'"),
        ("train", "compile", "true or false"),
        ("train", "seed", f"a whole number (at least 0 and below {2**63})"),
        ("report", "title", "null or text"),
    ],
)
def test_a_missing_parameter_says_what_belongs_there(
    section: str, name: str, wanted: str, project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    block, _, leaf = f"{section}.{name}".rpartition(".")
    del reduce(getitem, block.split("."), params)[leaf]
    write_params(params)
    assert problems(project.params) == [f"{section}.{name}: missing; wanted {wanted}"]


def test_a_misspelt_section_is_recognised(project: Paths, params: dict[str, Any], write_params: Write) -> None:
    params["trian"] = params.pop("train")
    write_params(params)
    missing, unknown = problems(project.params)
    assert missing == "train: missing; wanted a section of parameters"
    assert unknown.startswith("trian: unknown parameter, found {")
    assert unknown.endswith("; did you mean 'train'?")


@pytest.mark.parametrize(
    ("path", "value", "places"),
    [
        ("model.hidden", [16], "'model.mlp.hidden' or 'model.conv.hidden'"),
        ("model.kernel", 4, "'model.conv.kernel'"),
        (
            "model.components",
            5,
            "'model.logistic_mixture.components' or 'model.mixture.components' or 'model.vamp.components'",
        ),
        ("train.momentum", 0.9, "'train.sgd.momentum' or 'train.rmsprop.momentum'"),
        ("train.factor", 0.1, "'train.step.factor' or 'train.milestones.factor'"),
        ("objective.capacity_epochs", 10, "'objective.capacity.epochs'"),
        ("objective.noise_level", 0.3, "'objective.denoising.level'"),
        ("evaluate.grid_plane", "dimensions", "'evaluate.grid.plane'"),
        ("evaluate.annealed_images", 0, "'evaluate.annealing'"),
        ("evaluate.mixture_components", 10, "'evaluate.mixture.components'"),
        ("download.variant", "letters", "'download.emnist.variant'"),
        ("train.latent", 3, "'model.latent'"),
        ("evaluate.mlp", {}, "'model.mlp'"),
        ("model.mlp.hiden", [16], "'model.mlp.hidden'"),
        ("model.mlp.channels", [16], "'model.conv.channels' or 'model.resnet.channels'"),
    ],
)
def test_a_parameter_in_the_wrong_place_is_shown_the_right_one(
    path: str, value: Any, places: str, project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    *blocks, name = path.split(".")
    reduce(getitem, blocks, params)[name] = value
    write_params(params)
    assert problems(project.params) == [f"{path}: unknown parameter, found {value!r}; did you mean {places}?"]


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("evaluate.memory_mb", "remove it"),
        ("evaluate.inception_weights", "remove it"),
        ("model.output", "remove it"),
        ("train.pictures_every", "set REPARAM_PICTURES_EVERY in the environment instead"),
        ("download.mirrors", "set REPARAM_MIRRORS in the environment instead"),
    ],
)
def test_a_parameter_that_is_no_more_is_to_be_removed_or_set_in_the_environment(
    path: str, step: str, project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    section, name = path.split(".")
    params[section][name] = 12
    write_params(params)
    assert problems(project.params) == [f"{path}: unknown parameter, found 12; {step}"]


@pytest.mark.parametrize(
    ("section", "name", "text", "complaint"),
    [
        ("train", "epochs", "'5'", "wanted a whole number, found '5'"),
        ("train", "epochs", "true", "wanted a whole number, found True"),
        ("train", "epochs", "5.0", "wanted a whole number, found 5.0"),
        ("train", "epochs", "", "wanted a whole number, found None"),
        ("train", "epochs", "0", "wanted above 0, found 0"),
        ("train", "seed", "-1", "wanted at least 0, found -1"),
        ("train", "learning_rate", ".nan", "wanted a finite number, found nan"),
        ("train", "learning_rate", ".inf", "wanted a finite number, found inf"),
        ("train", "learning_rate", "'0.1'", "wanted a number, found '0.1'"),
        ("train", "learning_rate", "true", "wanted a number, found True"),
        ("train", "learning_rate", "0", "wanted above 0, found 0"),
        ("train", "adam.betas", "[0.9]", "wanted at least 2 items, found [0.9]"),
        ("train", "adam.betas", "[0.9, 0.99, 0.999]", "wanted at most 2 items, found [0.9, 0.99, 0.999]"),
        ("train", "adam.betas", "0.9", "wanted a list, found 0.9"),
        ("train", "adam.betas", "[]", "wanted at least 2 items, found []"),
        ("train", "sgd.momentum", "1", "wanted below 1, found 1"),
        ("train", "sgd.momentum", "-0.1", "wanted at least 0, found -0.1"),
        ("train", "step.factor", "1.0", "wanted below 1, found 1.0"),
        ("train", "step.factor", "0", "wanted above 0, found 0"),
        ("train", "warmup_epochs", "-1", "wanted at least 0, found -1"),
        ("train", "step", "3", "wanted a block of parameters (factor, epochs), found 3"),
        ("train", "milestones", "[4, 5]", "wanted a block of parameters (factor, epochs), found [4, 5]"),
        ("train", "milestones.epochs", "[]", "wanted at least 1 items, found []"),
        ("train", "schedule", "linear", f"wanted one of {', '.join(map(repr, SCHEDULES))}, found 'linear'"),
        ("train", "monitor", "kl", "wanted 'loss' or 'elbo', found 'kl'"),
        ("train", "min_delta", "-0.1", "wanted at least 0, found -0.1"),
        ("train", "min_delta", "", "wanted a number, found None"),
        ("train", "clip_norm", "0", "wanted above 0, found 0"),
        ("train", "clip_norm", "-1", "wanted above 0, found -1"),
        ("train", "clip_norm", ".inf", "wanted a finite number, found inf"),
        ("train", "clip_norm", "none", "wanted a number, found 'none'"),
        ("train", "average", "1", "wanted below 1, found 1"),
        ("train", "average", "-0.1", "wanted at least 0, found -0.1"),
        ("train", "average", "", "wanted a number, found None"),
        ("train", "on_nonfinite", "ignore", "wanted 'stop' or 'rollback', found 'ignore'"),
        ("train", "precision", "fp16", "wanted 'fp32', 'tf32', 'bf16_matmul' or 'bf16', found 'fp16'"),
        ("train", "channels_last", "1", "wanted true or false, found 1"),
        ("train", "compile", "'yes'", "wanted true or false, found 'yes'"),
        ("objective", "beta", "-1", "wanted at least 0, found -1"),
        ("objective", "samples", "0", "wanted above 0, found 0"),
        ("objective", "warmup_epochs", "0", "wanted above 0, found 0"),
        ("objective", "sparse.rho", "0", "wanted above 0, found 0"),
        ("model", "mlp.hidden", "16", "wanted a list, found 16"),
        ("model", "laplace.sigma", "0", "wanted at least 0.001, found 0"),
        ("model", "start_at_mean", "1", "wanted true or false, found 1"),
        *(
            ("preprocess", name, text, f"wanted {zero}a fraction below 1, or a whole number of images, found {found}")
            for name, zero in (("validation", "0, "), ("test", ""))
            for text, found in (
                ("-1", "-1"),
                ("-0.1", "-0.1"),
                ("1.0", "1.0"),
                ("1.5", "1.5"),
                (".nan", "nan"),
                ("true", "True"),
                ("false", "False"),
                ("'0.1'", "'0.1'"),
                ("", "None"),
            )
        ),
        ("preprocess", "test", "0", "wanted a fraction below 1, or a whole number of images, found 0"),
        ("preprocess", "test", "0.0", "wanted a fraction below 1, or a whole number of images, found 0.0"),
        *(
            ("preprocess", name, "2000000000", "wanted at most 1,000,000,000, found 2000000000")
            for name in ("validation", "test")
        ),
        ("model", "resnet.depth", "101", "wanted at most 100 blocks, found 101"),
        ("preprocess", "channels", "'1'", "wanted 1 or 3, found '1'"),
        ("preprocess", "image_size", "0", "wanted above 0, found 0"),
        ("preprocess", "classes", "'1'", "wanted a list, found '1'"),
        ("report", "title", "3", "wanted text, found 3"),
    ],
)
def test_a_value_of_another_type_or_range_is_refused(
    section: str, name: str, text: str, complaint: str, project: Paths, params: dict[str, Any]
) -> None:
    values = copy.deepcopy(params)
    *blocks, leaf = f"{section}.{name}".split(".")
    reduce(getitem, blocks, values)[leaf] = "HERE"
    # JSON is YAML, and leaves the spelling of one value to the test.
    project.params.write_text(json.dumps(values).replace('"HERE"', text), encoding="utf-8")
    assert problems(project.params) == [f"{section}.{name}: {complaint}"]


@pytest.mark.parametrize(
    ("name", "text", "value"), [("clip_norm", "null", None), ("clip_norm", "2", 2.0), ("average", "0", 0.0)]
)
def test_clipping_and_averaging_can_be_left_out(
    name: str, text: str, value: float | None, project: Paths, params: dict[str, Any]
) -> None:
    params["train"][name] = "HERE"
    project.params.write_text(json.dumps(params).replace('"HERE"', text), encoding="utf-8")
    found = getattr(load_config(project.params).train, name)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("section", "name", "path"),
    [("preprocess", "classes", "preprocess.classes"), ("model", "upper", "model.hierarchical.upper")],
)
def test_an_empty_list_is_refused_where_it_means_nothing(
    section: str, name: str, path: str, project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    change(params[section], {name: []})
    write_params(params)
    assert problems(project.params) == [f"{path}: wanted at least 1 items, found []"]


@pytest.mark.parametrize(("block", "name"), [("conv", "channels"), ("hierarchical", "upper"), ("mlp", "hidden")])
def test_a_list_of_one_wrong_number_is_not_called_too_short(
    block: str, name: str, project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    params["model"][block][name] = [0]
    write_params(params)
    assert problems(project.params) == [f"model.{block}.{name}.0: wanted above 0, found 0"]


@pytest.mark.parametrize("name", ["mlp.hidden", "hierarchical.upper_hidden"])
def test_an_empty_list_is_allowed_where_it_means_none(
    name: str, project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    change(params["model"], {name.rpartition(".")[2]: []})
    write_params(params)
    assert attrgetter(f"model.{name}")(load_config(project.params)) == ()


def test_a_section_that_is_no_section_is_refused(project: Paths, params: dict[str, Any], write_params: Write) -> None:
    params["train"] = 3
    write_params(params)
    assert problems(project.params) == ["train: wanted a section of parameters, found 3"]


@pytest.mark.parametrize("section", ["preprocess", "train", "evaluate"])
def test_a_seed_that_torch_or_numpy_cannot_take_is_refused(
    section: str, project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    params[section]["seed"] = 2**63
    write_params(params)
    assert problems(project.params) == [f"{section}.seed: wanted below {2**63}, found {2**63}"]
    params[section]["seed"] = 2**63 - 1
    write_params(params)
    assert load_config(project.params).model_dump()[section]["seed"] == 2**63 - 1


@pytest.mark.parametrize(("text", "value"), [("1e-05", 1e-5), ("1e-5", 1e-5), ("1E-3", 1e-3), (".5", 0.5), ("1", 1.0)])
def test_every_spelling_of_a_number_is_read_as_a_number(
    text: str, value: float, project: Paths, params: dict[str, Any]
) -> None:
    params["train"]["learning_rate"] = "HERE"
    project.params.write_text(json.dumps(params).replace('"HERE"', text), encoding="utf-8")
    found = load_config(project.params).train.learning_rate
    assert (found, type(found)) == (value, float)


@pytest.mark.parametrize(
    ("text", "value"), [("0.1", 0.1), ("1e-3", 1e-3), ("1", 1), ("5000", 5000), ("0", 0), ("0.0", 0.0)]
)
def test_a_share_is_a_fraction_with_a_point_and_a_count_without(
    text: str, value: float, project: Paths, params: dict[str, Any]
) -> None:
    params["preprocess"]["validation"] = "HERE"
    project.params.write_text(json.dumps(params).replace('"HERE"', text), encoding="utf-8")
    found = load_config(project.params).preprocess.validation
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "wanted sections of parameters, found None"),
        (b"# a comment alone\n", "wanted sections of parameters, found None"),
        (b"- download\n", "wanted sections of parameters, found ['download']"),
        (b"train: [1\n", "line 2, column 1: not valid YAML: expected ',' or ']'"),
        (b"train:\n  seed: 1\n  seed: 2\n", 'found duplicate key "seed" with value "2" (original value: "1")'),
        (b"train: {}\ntrain: {}\n", 'found duplicate key "train"'),
        (b"train: !!python/object:os.system {}\n", "line 1: wanted plain sections, lists, numbers and text, found tag"),
        (b"title: \xff\n", "not valid YAML: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_a_file_that_holds_no_sections_is_refused_in_one_message(
    content: bytes, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ParamsError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert complaint in str(caught.value)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_read(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match=r"params.yaml: wanted a file of parameters, found a folder, device or pipe"):
        load_config(tmp_path / "params.yaml")


def test_of_very_many_problems_the_first_ones_are_listed_and_of_long_values_the_beginning(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("".join(f"k{number}: {'x' * 300}\n" for number in range(100)))
    with pytest.raises(ParamsError) as caught:
        load_config(path)
    head, *listed, more = str(caught.value).splitlines()
    missing = len(Config.model_fields)  # sections, which come first
    assert head == f"{path}: {100 + missing} problems"
    assert listed[:missing] == [f"  {name}: missing; wanted a section of parameters" for name in Config.model_fields]
    assert listed[missing:] == [
        f"  k{number}: unknown parameter, found '{'x' * 199}...; remove it" for number in range(50 - missing)
    ]
    assert more == f"  and {50 + missing} more"


def test_a_file_that_is_far_too_long_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("#" * 100_001)
    with pytest.raises(ParamsError, match="wanted at most 100,000 characters of parameters, found 100,001"):
        load_config(path)


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(ParamsError) as caught:
        load_config(tmp_path / "params.yaml")
    assert str(caught.value) == (
        f"{tmp_path}/params.yaml: not found; run from the root of the project, where params.yaml is"
    )


def test_parameters_cannot_be_changed_after_reading(project: Paths) -> None:
    config = load_config(project.params)
    with pytest.raises(ValidationError, match="frozen"):
        config.train.seed = 3
    assert config.train.seed == 0


def test_no_parameter_has_a_default() -> None:
    sections = [section for path in ("", *paths_of(blocks=True)) if (section := section_at(path_parts(path)))]
    fields = [(section, *item) for section in sections for item in section.model_fields.items()]
    assert len(fields) > len(sections) > len(Config.model_fields)
    assert [(section, name) for section, name, field in fields if not field.is_required()] == []


def path_parts(path: str) -> tuple[str, ...]:
    return tuple(path.split(".")) if path else ()


@pytest.mark.parametrize(
    ("section", "name", "options"),
    [
        ("download", "source", SOURCES),
        ("model", "kind", KINDS),
        ("model", "network", NETWORKS),
        ("model", "mlp.activation", ACTIVATIONS),
        ("model", "likelihood", LIKELIHOODS),
        ("objective", "name", OBJECTIVES),
        ("train", "optimizer", OPTIMIZERS),
        ("train", "schedule", SCHEDULES),
        ("evaluate", "sampler", SAMPLERS),
    ],
)
def test_names_are_the_keys_of_the_dict_of_their_kind(
    section: str, name: str, options: dict[str, Any], project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    *blocks, leaf = f"{section}.{name}".split(".")
    owner = reduce(getitem, blocks, params)
    for option in options:
        owner[leaf] = option
        write_params(params)
        assert attrgetter(f"{section}.{name}")(load_config(project.params)) == option
    owner[leaf] = "unheard-of"
    write_params(params)
    wanted = ", ".join(map(repr, options))
    assert problems(project.params) == [f"{section}.{name}: wanted one of {wanted}, found 'unheard-of'"]


def test_flatten_names_parameters_as_dvc_does(project: Paths, params: dict[str, Any]) -> None:
    config = load_config(project.params)
    assert flatten(config.model)["mlp.hidden"] == SMALL["model"]["mlp"]["hidden"] == [16]
    assert flatten(config.download, "download.") == {
        "download.source": "digits",
        "download.emnist.variant": "balanced",
        "download.folder.path": None,
        "download.folder.attributes": None,
        "download.folder.label": None,
    }
    assert list(flatten(config)) == list(paths_of())
    assert all(reduce(getitem, path.split("."), params) == value for path, value in flatten(config).items())


def test_the_arguments_of_a_choice_are_its_block_or_nothing(project: Paths) -> None:
    config = load_config(project.params)
    assert config.model.arguments("mlp") == (config.model.mlp,)
    assert config.model.arguments("bernoulli") == ()
    assert config.model.arguments("latent") == ()  # a parameter, and no block
    assert config.model.arguments("copy") == ()  # a method of every model of pydantic


def choices_of(field: FieldInfo) -> list[str]:
    """Return the names that a parameter accepts, if it is a choice."""
    names = [name for known in field.metadata if isinstance(known, KeyOf) for name in known.names]
    return names + [name for name in get_args(field.annotation) if isinstance(name, str)]


def test_no_choice_has_the_name_of_the_block_of_another_choice() -> None:
    of_a_choice = set()
    for section in (section_at(path_parts(path)) for path in Config.model_fields):
        assert section is not None
        names = Counter(name for field in section.model_fields.values() for name in choices_of(field))
        shared = {block: names[block] for block in section.blocks() if names[block] > 1}
        assert shared == {}, section
        of_a_choice |= {block for block in section.blocks() if names[block]}
    assert {"mlp", "vq", "laplace", "mixture", "label", "sparse", "adam", "step"} < of_a_choice


def test_the_hash_of_parameters_ignores_their_order_and_nothing_else() -> None:
    first = params_hash({"a": {"x": 1, "y": [2, 3]}, "b": 0.5})
    assert params_hash({"b": 0.5, "a": {"y": [2, 3], "x": 1}}) == first
    assert params_hash({"b": 0.5, "a": {"y": (2, 3), "x": 1}}) == first
    assert params_hash({"a": 1}) == hashlib.sha256(b'{"a": 1}').hexdigest()
    for changed in ({"a": {"x": 1, "y": [3, 2]}, "b": 0.5}, {"a": {"x": 1, "y": [2, 3]}, "c": 0.5}):
        assert params_hash(changed) != first


def test_a_block_is_that_of_one_choice_alone() -> None:
    for section in Config.blocks().values():
        options = section.model_json_schema()["properties"]
        names = [name for facts in options.values() for name in facts.get("enum", ())]
        assert [name for name in section.blocks() if names.count(name) > 1] == []
