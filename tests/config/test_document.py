import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from reparam.config import Config, load_config
from reparam.config.document import COLUMNS, HEAD, explain, reference, with_comments
from reparam.config.load import paths_of, schema_at, section_at
from reparam.errors import ParamsError
from reparam.paths import Paths
from reparam.recipes import SHIPPED

ROOT = Path(__file__).parents[2]
PATHS = list(paths_of(blocks=True))
BLOCKS = [path for path in PATHS if path.count(".") == 1 and section_at(tuple(path.split(".")))]
STALE = "run `make docs`, which writes it"


def keys_and_comments(text: str) -> tuple[list[str], list[str]]:
    """Keys with their indentation, and comments line by line, from the first section on."""
    body = text[text.index("\n\n") :].splitlines()
    keys = [found[0] for line in body if (found := re.match(r" *\w+:", line))]
    comments = [line.partition("# ")[2] for line in body if re.search(r"(^| )# ", line)]
    return keys, comments


# What is generated is not stale


def test_the_comments_of_the_shipped_parameters_are_those_of_the_docstrings() -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    assert text == with_comments(YAML().load(text)), STALE


def test_the_keys_and_comments_of_params_yaml_are_those_of_what_is_shipped() -> None:
    # Not its values, which are the user's; with a list that it replaces, DVC drops the comment.
    keys, comments = keys_and_comments((ROOT / "params.yaml").read_text(encoding="utf-8"))
    shipped_keys, shipped_comments = keys_and_comments(SHIPPED.read_text(encoding="utf-8"))
    assert keys == shipped_keys, STALE
    assert [comment for comment in comments if comment not in " ".join(shipped_comments)] == [], STALE


def test_the_reference_is_that_of_the_docstrings() -> None:
    assert (ROOT / "docs/reference/parameters.md").read_text(encoding="utf-8") == reference(), STALE


# What is written


def values(**changes: Any) -> Any:
    loaded = YAML().load(SHIPPED)
    for path, value in changes.items():
        section, _, name = path.partition("_")
        loaded[section][name] = value
    return loaded


def test_values_keep_the_spelling_that_they_have() -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    ours = text.replace("learning_rate: 0.003", "learning_rate: 3.0e-3").replace("seed: 0 # ", "seed: 0 # my words: ")
    written = with_comments(YAML().load(ours))
    assert "  learning_rate: 3.0e-3 # Learning rate before its schedule.\n" in written
    assert "my words" not in written
    assert keys_and_comments(written) == keys_and_comments(text)


def test_a_comment_that_is_too_long_for_its_line_is_above_it() -> None:
    meaning = "Title of the page; null names model, data and classes."
    short, long = (with_comments(values(report_title="t" * size)) for size in (80, 200))
    assert f"  title: {'t' * 80} # {meaning}\n" in short
    assert f"  # {meaning}\n  title: {'t' * 200}\n" in long
    assert max(len(line) for line in short.splitlines()) <= COLUMNS


@pytest.mark.parametrize(
    ("value", "spelt"),
    [(None, "null"), ([], "[]"), ((1, 2), "[1, 2]"), (1e-8, "1e-08"), (True, "true"), ("a: b", "'a: b'")],
)
def test_values_of_python_are_spelt_as_yaml_of_one_line(value: Any, spelt: str) -> None:
    written = with_comments(values(train_clip_norm=value))
    assert f"  clip_norm: {spelt} #" in written
    assert YAML(typ="safe").load(written)["train"]["clip_norm"] == (list(value) if isinstance(value, tuple) else value)


def test_a_head_of_its_own_comes_first() -> None:
    assert with_comments(values()).startswith(f"{HEAD}\n# ")
    assert with_comments(values(), "# mine\n").startswith("# mine\n\n# ")


# The docstrings


@pytest.mark.parametrize("path", PATHS)
def test_every_parameter_has_a_sentence(path: str) -> None:
    owner = section_at(tuple(path.split(".")[:-1]))
    assert owner is not None
    text = owner.model_fields[path.split(".")[-1]].description if owner is not Config else owner.__doc__
    assert text
    assert re.fullmatch(r"[A-Z0-9].*\.", text, re.DOTALL), text


@pytest.mark.parametrize("path", BLOCKS)
def test_a_block_of_a_choice_has_the_name_of_that_choice(path: str) -> None:
    section, name = path.split(".")
    owner = section_at((section,))
    assert owner is not None
    found = re.match(r"For (\w+) (\w+)[.,]", str(owner.model_fields[name].description))
    if found:
        assert found[2] == name
        assert name in schema_at((section, {"objective": "name"}.get(found[1], found[1])))["enum"]
    else:
        others = ("evaluate.generated", "evaluate.annealing", "evaluate.disentanglement", "evaluate.grid")
        assert path in (*others, "objective.perceptual")


# `reparam params`


def test_a_parameter_is_explained_with_its_value_its_type_and_its_meaning(project: Paths) -> None:
    assert explain(load_config(project.params), "train.average") == (
        "train.average: 0.0 (default: 0.98)\n"
        "    a number (at least 0 and below 1)\n"
        "    Decay of a moving average of the weights: this average is scored and kept; 0 keeps the weights "
        "themselves.\n"
        "    After a change, `dvc repro` runs train and what depends on it."
    )


def test_a_value_that_is_the_default_is_said_to_be_it(project: Paths) -> None:
    explained = explain(load_config(project.params), "objective.beta").splitlines()
    assert explained[0] == "objective.beta: 1.0 (the default)"


@pytest.mark.parametrize("section", Config.model_fields)
def test_the_stage_of_a_parameter_is_that_of_its_section_or_the_first_that_depends_on_it(
    section: str, project: Paths
) -> None:
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    first = section if section in stages else next(name for name in stages if section in stages[name]["params"])
    name = next(path for path in paths_of() if path.startswith(f"{section}."))
    assert f"`dvc repro` runs {first} and" in explain(load_config(project.params), name)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("", list(paths_of())),
        ("export", ["export.opset", "export.grey_pixels", "export.variants", "export.triton"]),
        ("model.mlp", [f"model.mlp.{name}" for name in ("hidden", "decoder_hidden", "activation", "norm")]),
    ],
)
def test_a_section_a_block_or_everything_is_explained(name: str, wanted: list[str], project: Paths) -> None:
    parts = explain(load_config(project.params), name).split("\n\n")
    assert [part.partition(": ")[0] for part in parts] == wanted


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("objective.betta", "did you mean 'objective.beta'?"),
        ("hidden", "did you mean 'model.mlp.hidden' or 'model.conv.hidden'?"),
        ("objective.bet", "did you mean 'objective.beta'?"),
        ("modl", "did you mean 'model'?"),
        ("xyz", "`reparam params` lists all"),
    ],
)
def test_a_name_that_there_is_not_has_a_hint(name: str, hint: str, project: Paths) -> None:
    with pytest.raises(ParamsError) as caught:
        explain(load_config(project.params), name)
    assert str(caught.value) == f"params.yaml: {name}: no such parameter; {hint}"
