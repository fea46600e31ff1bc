"""Files of parameters that nobody means: each is read, or refused in a message, and nothing else happens."""

import copy
import io
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL
from hypothesis import given, settings
from hypothesis import strategies as some
from ruamel.yaml import YAML

from reparam.config import Config, load_config
from reparam.config.load import paths_of
from reparam.errors import ParamsError

LONGEST = 20_000  # characters of a message that a person might still read
NUMBERS = [-1, 0, 1, 2, -(2**63), 2**31, 2**63, 2**64, 10**19, 10**400, 0.0, -0.5, 1e-320, 1e308, 1.5]
NUMBERS += [float("inf"), float("-inf"), float("nan")]
TEXTS = ["", "\x07", "../../etc", "/dev/zero", "http://[::1", "x" * 5_000, "null", "~", "{{}}", "\N{SNOWMAN}", "*"]
# What YAML itself can be made to do.
SPELLINGS = ["9" * 5_000, "0x" + "f" * 5_000, "!!int abc", "!!python/object:os.system x", "&a [1]", "*a", "2020-99-99"]
SPELLINGS += [
    "[" * 1_000,
    "{a: " * 1_000,
    "'",
    "@",
    "\t",
    "? [1]",
    ".inf",
    "0o9",
    '"\\UFFFFFFFF"',
    "<<: 1",
    "- - - 1",
    "%",
]

values = some.recursive(
    some.none() | some.booleans() | some.sampled_from(NUMBERS + TEXTS) | some.integers() | some.text(max_size=5),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
places = some.sampled_from([*paths_of(blocks=True), *Config.blocks()])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "params.yaml"


def spelt(params: Any) -> str:
    stream = io.StringIO()
    yaml = YAML()
    yaml.width = 100_000
    yaml.dump(params, stream)
    return stream.getvalue()


def read_or_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try:
        config = load_config(file)
    except ParamsError as error:
        message = str(error)
        assert message.startswith(f"{file}: ")
        assert len(message) < LONGEST
        message.encode("utf-8", "backslashreplace").decode()
    else:
        assert isinstance(config, Config)


def replaced(changes: list[tuple[str, Any]]) -> dict[str, Any]:
    params: dict[str, Any] = copy.deepcopy(SMALL)
    for path, value in changes:
        *parents, name = path.split(".")
        section: Any = params
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section[name] = value
    return params


def check_values(file: Path, changes: list[tuple[str, Any]]) -> None:
    read_or_refused(file, spelt(replaced(changes)).encode("utf-8", "surrogatepass"))


def check_spelling(file: Path, place: str, spelling: str) -> None:
    text = spelt(replaced([(place, "PLACE")]))
    read_or_refused(file, text.replace("PLACE", spelling).encode())


def check_bytes(file: Path, start: int, length: int, content: bytes) -> None:
    original = spelt(SMALL).encode()
    start %= len(original)
    read_or_refused(file, original[:start] + content + original[start + length :])


CHECKS: dict[Any, dict[str, Any]] = {
    check_values: {"changes": some.lists(some.tuples(places, values), min_size=1, max_size=4)},
    check_spelling: {"place": places, "spelling": some.sampled_from(SPELLINGS)},
    check_bytes: {"start": some.integers(0), "length": some.integers(0, 200), "content": some.binary(max_size=20)},
}


def attack(check: Any, file: Path, examples: int) -> None:
    how = settings(max_examples=examples, derandomize=True, deadline=None, database=None)
    how(given(file=some.just(file), **CHECKS[check])(check))()


@pytest.mark.parametrize("check", CHECKS)
def test_parameters_are_read_or_refused_in_a_message(check: Any, file: Path) -> None:
    attack(check, file, 40)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_2000_files_are_read_or_refused_in_a_message(check: Any, file: Path) -> None:
    attack(check, file, 2_000)
