import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL
from pydantic import ValidationError

from reparam.config import Config, flatten, load_config, params_hash
from reparam.data.sources.registry import SOURCES
from reparam.errors import ParamsError
from reparam.evaluate.samplers import SAMPLERS
from reparam.models.likelihoods import LIKELIHOODS
from reparam.models.networks import ACTIVATIONS
from reparam.objectives import OBJECTIVES
from reparam.paths import Paths
from reparam.train.optimizers import OPTIMIZERS

REPOSITORY = Path(__file__).parents[1]
Write = Callable[[dict[str, Any]], None]


def problems(path: Path) -> list[str]:
    """The lines of a ParamsError below its first one."""
    with pytest.raises(ParamsError) as caught:
        load_config(path)
    first, *rest = str(caught.value).splitlines()
    assert first == f"{path}: {len(rest)} problem{'s' if len(rest) > 1 else ''}"
    return [line.strip() for line in rest]


def test_the_shipped_parameters_are_valid_and_are_read_as_they_stand() -> None:
    config = load_config(REPOSITORY / "params.yaml")
    assert config.download.source == "digits"
    assert config.preprocess.binarization == "dynamic"
    assert config.model.hidden == (256, 256)
    assert config.objective.beta == 1.0
    assert config.train.learning_rate == 0.002
    assert config.train.betas == (0.9, 0.999)
    assert config.train.milestones == ()
    assert config.report.title == "A variational autoencoder of handwritten digits"


def test_every_wrong_parameter_is_named_at_once(project: Paths, params: dict[str, Any], write_params: Write) -> None:
    params["download"]["source"] = 7
    params["model"]["hidden"] = [16, 0]
    params["model"]["latent"] = 2.5
    params["model"]["stochastic"] = {"layers": 2}
    params["objective"]["free_bit"] = params["objective"].pop("free_bits")
    params["objective"]["rho"] = 1
    params["train"]["betas"] = [0.9, 1.0]
    params["train"]["milestones"] = [1, 2.5]
    params["preprocess"]["binarization"] = "dinamic"
    params["train"]["epoch"] = params["train"].pop("epochs")
    params["evaluate"]["grid_steps"] = 41
    params["export"]["colour"] = "red"
    params["preprocess"]["test"] = 1.0
    params["preprocess"]["channels"] = 2
    params["preprocess"]["classes"] = ["1", 2]
    params["preprocess"]["limit"] = 0
    params["download"]["mirrors"] = "https://example.org"
    del params["report"]
    write_params(params)
    assert sorted(problems(project.params)) == sorted(
        [
            "download.source: wanted a valid string, found 7",
            "preprocess.test: wanted a fraction below 1, or a whole number of images, found 1.0",
            "preprocess.channels: wanted 1 or 3, found 2",
            "preprocess.classes.1: wanted a valid string, found 2",
            "preprocess.limit: wanted greater than 0, found 0",
            "download.mirrors: wanted a list, found 'https://example.org'",
            "model.hidden.1: wanted greater than 0, found 0",
            "model.latent: wanted a valid integer, found 2.5",
            "model.stochastic: unknown parameter, found {'layers': 2}; remove it",
            "objective.free_bits: missing; wanted a value of type number",
            "objective.free_bit: unknown parameter, found 0.0; did you mean 'free_bits'?",
            "objective.rho: wanted less than 1, found 1",
            "train.betas.1: wanted less than 1, found 1.0",
            "train.milestones.1: wanted a valid integer, found 2.5",
            "preprocess.binarization: wanted 'none', 'threshold', 'static' or 'dynamic', found 'dinamic'",
            "train.epochs: missing; wanted a value of type integer",
            "train.epoch: unknown parameter, found 2; did you mean 'epochs'?",
            "evaluate.grid_steps: wanted less than or equal to 40, found 41",
            "export.colour: unknown parameter, found 'red'; remove it",
            "report: missing; wanted a section",
        ]
    )


@pytest.mark.parametrize(
    ("section", "name", "wanted"),
    [
        ("download", "source", "a value of type string"),
        ("download", "path", "a value of type string or null"),
        ("preprocess", "binarization", "one of 'none', 'threshold', 'static', 'dynamic'"),
        ("preprocess", "channels", "one of 1, 3"),
        ("preprocess", "classes", "a list or null"),
        ("preprocess", "limit", "a value of type integer or null"),
        ("preprocess", "validation", "0, a fraction below 1, or a whole number of images"),
        ("preprocess", "test", "a fraction below 1, or a whole number of images"),
        ("model", "kind", "one of 'autoencoder', 'vae', 'hierarchical'"),
        ("model", "hidden", "a list"),
        ("model", "start_at_mean", "a value of type boolean"),
        ("objective", "beta", "a value of type number"),
        ("train", "betas", "a list"),
        ("train", "monitor", "one of 'loss', 'elbo'"),
        ("train", "optimizer", "a value of type string"),
        ("train", "min_delta", "a value of type number"),
        ("train", "clip_norm", "a value of type number or null"),
        ("train", "average", "a value of type number"),
        ("train", "on_nonfinite", "one of 'stop', 'rollback'"),
        ("train", "precision", "one of 'fp32', 'tf32', 'bf16_matmul', 'bf16'"),
        ("train", "channels_last", "a value of type boolean"),
        ("train", "compile", "a value of type boolean"),
        ("train", "seed", "a value of type integer"),
        ("report", "title", "a value of type string"),
    ],
)
def test_a_missing_parameter_says_what_belongs_there(
    section: str, name: str, wanted: str, project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    del params[section][name]
    write_params(params)
    assert problems(project.params) == [f"{section}.{name}: missing; wanted {wanted}"]


def test_a_misspelt_section_is_recognised(project: Paths, params: dict[str, Any], write_params: Write) -> None:
    params["trian"] = params.pop("train")
    write_params(params)
    missing, unknown = problems(project.params)
    assert missing == "train: missing; wanted a section"
    assert unknown.startswith("trian: unknown parameter, found {")
    assert unknown.endswith("; did you mean 'train'?")


@pytest.mark.parametrize(
    ("section", "name", "text", "complaint"),
    [
        ("train", "epochs", "'5'", "wanted a valid integer, found '5'"),
        ("train", "epochs", "true", "wanted a valid integer, found True"),
        ("train", "epochs", "5.0", "wanted a valid integer, found 5.0"),
        ("train", "epochs", "", "wanted a valid integer, found None"),
        ("train", "epochs", "0", "wanted greater than 0, found 0"),
        ("train", "seed", "-1", "wanted greater than or equal to 0, found -1"),
        ("train", "learning_rate", ".nan", "wanted a finite number, found nan"),
        ("train", "learning_rate", ".inf", "wanted a finite number, found inf"),
        ("train", "learning_rate", "'0.1'", "wanted a valid number, found '0.1'"),
        ("train", "learning_rate", "true", "wanted a valid number, found True"),
        ("train", "learning_rate", "0", "wanted greater than 0, found 0"),
        ("train", "betas", "[0.9]", "wanted at least 2 items, found [0.9]"),
        ("train", "betas", "[0.9, 0.99, 0.999]", "wanted at most 2 items, found [0.9, 0.99, 0.999]"),
        ("train", "betas", "0.9", "wanted a list, found 0.9"),
        ("train", "betas", "[]", "wanted at least 2 items, found []"),
        ("train", "momentum", "1", "wanted less than 1, found 1"),
        ("train", "momentum", "-0.1", "wanted greater than or equal to 0, found -0.1"),
        ("train", "factor", "1.0", "wanted less than 1, found 1.0"),
        ("train", "factor", "0", "wanted greater than 0, found 0"),
        ("train", "warmup_epochs", "-1", "wanted greater than or equal to 0, found -1"),
        ("train", "schedule", "linear", "wanted 'constant', 'cosine', 'step' or 'milestones', found 'linear'"),
        ("train", "monitor", "kl", "wanted 'loss' or 'elbo', found 'kl'"),
        ("train", "min_delta", "-0.1", "wanted greater than or equal to 0, found -0.1"),
        ("train", "min_delta", "", "wanted a valid number, found None"),
        ("train", "clip_norm", "0", "wanted greater than 0, found 0"),
        ("train", "clip_norm", "-1", "wanted greater than 0, found -1"),
        ("train", "clip_norm", ".inf", "wanted a finite number, found inf"),
        ("train", "clip_norm", "none", "wanted a valid number, found 'none'"),
        ("train", "average", "1", "wanted less than 1, found 1"),
        ("train", "average", "-0.1", "wanted greater than or equal to 0, found -0.1"),
        ("train", "average", "", "wanted a valid number, found None"),
        ("train", "on_nonfinite", "ignore", "wanted 'stop' or 'rollback', found 'ignore'"),
        ("train", "precision", "fp16", "wanted 'fp32', 'tf32', 'bf16_matmul' or 'bf16', found 'fp16'"),
        ("train", "channels_last", "1", "wanted a valid boolean, found 1"),
        ("train", "compile", "'yes'", "wanted a valid boolean, found 'yes'"),
        ("objective", "beta", "-1", "wanted greater than or equal to 0, found -1"),
        ("objective", "samples", "0", "wanted greater than 0, found 0"),
        ("objective", "warmup_epochs", "0", "wanted greater than 0, found 0"),
        ("objective", "rho", "0", "wanted greater than 0, found 0"),
        ("model", "hidden", "16", "wanted a list, found 16"),
        ("model", "sigma", "0", "wanted greater than or equal to 0.001, found 0"),
        ("model", "start_at_mean", "1", "wanted a valid boolean, found 1"),
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
        ("preprocess", "channels", "'1'", "wanted 1 or 3, found '1'"),
        ("preprocess", "image_size", "0", "wanted greater than 0, found 0"),
        ("preprocess", "classes", "'1'", "wanted a list, found '1'"),
        ("report", "title", "3", "wanted a valid string, found 3"),
    ],
)
def test_a_value_of_another_type_or_range_is_refused(
    section: str, name: str, text: str, complaint: str, project: Paths, params: dict[str, Any]
) -> None:
    values = copy.deepcopy(params)
    values[section][name] = "HERE"
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


@pytest.mark.parametrize(("section", "name"), [("preprocess", "classes"), ("model", "channels"), ("model", "upper")])
def test_an_empty_list_is_refused_where_it_means_nothing(
    section: str, name: str, project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    params[section][name] = []
    write_params(params)
    assert problems(project.params) == [f"{section}.{name}: wanted at least 1 items, found []"]


@pytest.mark.parametrize("name", ["channels", "upper", "hidden"])
def test_a_list_of_one_wrong_number_is_not_called_too_short(
    name: str, project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    params["model"][name] = [0]
    write_params(params)
    assert problems(project.params) == [f"model.{name}.0: wanted greater than 0, found 0"]


@pytest.mark.parametrize(
    ("section", "name"),
    [("model", "hidden"), ("model", "upper_hidden"), ("train", "milestones"), ("download", "mirrors")],
)
def test_an_empty_list_is_allowed_where_it_means_none(
    section: str, name: str, project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    params[section][name] = []
    write_params(params)
    assert getattr(getattr(load_config(project.params), section), name) == ()


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
    assert problems(project.params) == [f"{section}.seed: wanted less than {2**63}, found {2**63}"]
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
        (b"train: [1\n", "not valid YAML: while parsing a flow sequence"),
        (b"train:\n  seed: 1\n  seed: 2\n", 'found duplicate key "seed" with value "2" (original value: "1")'),
        (b"train: {}\ntrain: {}\n", 'found duplicate key "train"'),
        (b"train: !!python/object:os.system {}\n", "not valid YAML: could not determine a constructor for the tag"),
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


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(ParamsError) as caught:
        load_config(tmp_path / "params.yaml")
    assert str(caught.value) == (
        f"{tmp_path}/params.yaml: not found; run from the root of the project, where params.yaml stands"
    )


def test_parameters_cannot_be_changed_after_reading(project: Paths) -> None:
    config = load_config(project.params)
    with pytest.raises(ValidationError, match="frozen"):
        config.train.seed = 3
    assert config.train.seed == 0


def test_no_parameter_has_a_default() -> None:
    sections = [field.annotation for field in Config.model_fields.values()]
    fields = [(s, *item) for s in [Config, *sections] for item in s.model_fields.items()]
    assert len(fields) > len(sections) > 0
    assert [(section, name) for section, name, field in fields if not field.is_required()] == []


@pytest.mark.parametrize(
    ("section", "name", "options"),
    [
        ("download", "source", SOURCES),
        ("model", "activation", ACTIVATIONS),
        ("model", "likelihood", LIKELIHOODS),
        ("objective", "name", OBJECTIVES),
        ("train", "optimizer", OPTIMIZERS),
        ("evaluate", "sampler", SAMPLERS),
    ],
)
def test_names_are_the_keys_of_the_dict_of_their_kind(
    section: str, name: str, options: dict[str, Any], project: Paths, params: dict[str, Any], write_params: Write
) -> None:
    for option in options:
        params[section][name] = option
        write_params(params)
        assert getattr(getattr(load_config(project.params), section), name) == option
    params[section][name] = "unheard-of"
    write_params(params)
    wanted = ", ".join(map(repr, options))
    assert problems(project.params) == [f"{section}.{name}: wanted one of {wanted}, found 'unheard-of'"]


def test_flatten_names_parameters_as_dvc_does(project: Paths, params: dict[str, Any]) -> None:
    config = load_config(project.params)
    assert flatten(config.model, "model.") == {f"model.{name}": value for name, value in SMALL["model"].items()}
    assert (SMALL["model"]["hidden"], SMALL["model"]["likelihood"]) == ([16], "bernoulli")
    assert flatten(config.download, "download.") == {
        "download.source": "digits",
        "download.variant": None,
        "download.path": None,
        "download.mirrors": [],
    }
    assert set(flatten(config)) == {f"{section}.{name}" for section, values in params.items() for name in values}


def test_the_hash_of_parameters_ignores_their_order_and_nothing_else() -> None:
    first = params_hash({"a": {"x": 1, "y": [2, 3]}, "b": 0.5})
    assert params_hash({"b": 0.5, "a": {"y": [2, 3], "x": 1}}) == first
    assert params_hash({"b": 0.5, "a": {"y": (2, 3), "x": 1}}) == first
    assert params_hash({"a": 1}) == hashlib.sha256(b'{"a": 1}').hexdigest()
    for changed in ({"a": {"x": 1, "y": [3, 2]}, "b": 0.5}, {"a": {"x": 1, "y": [2, 3]}, "c": 0.5}):
        assert params_hash(changed) != first
