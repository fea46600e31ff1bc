"""What the client refuses to open, and what it opens."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from exported_model import LATENT, Exported
from score_graph import relist, with_score

from reparam.client import Client
from reparam.client.bundle import Bundle
from reparam.errors import DamagedInputError, MissingInputError

pytest_plugins = ["fixtures_export"]

CHANGED = "its SHA-256 is not that in manifest.json: damaged, changed, or of another export"
AGAIN = "run `dvc repro export`, or copy the whole folder again"
each_graph = pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx"])


@pytest.fixture
def copy(exported: Exported, tmp_path: Path) -> Path:
    """An exported model, free to be damaged."""
    return Path(shutil.copytree(exported.directory, tmp_path / "copy"))


def refusal(path: Path, kind: type[Exception] = DamagedInputError) -> str:
    with pytest.raises(kind) as error:
        Client(path)
    return str(error.value)


def change_manifest(directory: Path, change: Callable[[dict], object]) -> None:
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def change_format(path: Path, number: str) -> None:
    graph = onnx.load(path)
    (entry,) = graph.metadata_props
    entry.value = re.sub(r'"format": \d', f'"format": {number}', entry.value)
    onnx.save(graph, path)


# With a manifest


@each_graph
def test_every_bit_that_flips_is_found(name: str, copy: Path) -> None:
    path = copy / name
    whole = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 300):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedInputError):
            Client(copy)


@each_graph
@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda content: content[:100], "wanted {} bytes, found 100"),
        (lambda _: b"", "wanted {} bytes, found 0"),
        (lambda content: content[:-1] + b"x", CHANGED),
    ],
    ids=["truncated", "empty", "changed"],
)
def test_a_file_that_is_not_the_one_in_the_manifest_is_refused(
    name: str, damage: Callable[[bytes], bytes], found: str, copy: Path
) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(damage(content))
    assert refusal(copy) == f"{copy / name}: {found.format(len(content))}; {AGAIN}"


@each_graph
def test_a_missing_file_is_named(name: str, copy: Path) -> None:
    (copy / name).unlink()
    assert refusal(copy, MissingInputError) == f"{copy / name}: not found, but manifest.json lists it; {AGAIN}"


def test_a_graph_beside_a_manifest_that_does_not_list_it_is_refused(copy: Path, code: Exported, tmp_path: Path) -> None:
    shutil.copytree(code.directory, copy, dirs_exist_ok=True)
    shutil.copy(with_score(code.directory, tmp_path / "other") / "score.onnx", copy)
    assert refusal(copy) == (
        f"{copy / 'score.onnx'}: manifest.json does not list it, so it is of another export; {AGAIN}"
    )


def test_a_manifest_of_another_export_is_refused(copy: Path) -> None:
    change_manifest(copy, lambda manifest: manifest.update(source="other"))
    assert refusal(copy) == (
        f"{copy / 'encoder.onnx'}: its source is not that in manifest.json, so they are of two exports; {AGAIN}"
    )


@pytest.mark.parametrize("content", ["", "{", "[]", "nonsense", "[" * 100_000], ids=lambda content: content[:8])
def test_what_is_no_manifest_is_refused(content: str, copy: Path) -> None:
    (copy / "manifest.json").write_text(content)
    assert refusal(copy) == f"{copy / 'manifest.json'}: not the manifest of an export; {AGAIN}"


def test_a_folder_is_no_manifest(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    (copy / "manifest.json").mkdir()
    assert refusal(copy) == f"{copy / 'manifest.json'}: not the manifest of an export; {AGAIN}"


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest.update(files=["encoder.onnx"]),
        lambda manifest: manifest["files"].update({"encoder.onnx": {"sha256": "0"}}),
        lambda manifest: manifest["files"].update({"encoder.onnx": {"sha256": 0, "bytes": 0}}),
    ],
    ids=["no files", "a list", "no size", "a number"],
)
def test_a_manifest_that_does_not_list_its_files_is_refused(change: Callable[[dict], object], copy: Path) -> None:
    change_manifest(copy, change)
    assert refusal(copy) == f"{copy / 'manifest.json'}: not the manifest of an export; {AGAIN}"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("image.shape", lambda manifest: manifest.pop("image")),
        ("image.shape", lambda manifest: manifest["image"].update(shape=[4, 6])),
        ("image.shape", lambda manifest: manifest["image"].update(shape=[4, 6, 0])),
        ("image.shape", lambda manifest: manifest["image"].update(shape={"4": 4, "6": 6, "3": 3})),
        ("latent_size, latent_shape, codes", lambda manifest: manifest.pop("latent_size")),
        ("latent_size, latent_shape, codes", lambda manifest: manifest.update(latent_size="2")),
        ("latent_shape", lambda manifest: manifest.update(latent_shape=[3])),
        ("has_prior", lambda manifest: manifest.update(has_prior=1)),
        ("prior", lambda manifest: manifest.update(prior="uniform")),
        ("kind, source or likelihood", lambda manifest: manifest.pop("kind")),
        ("classes", lambda manifest: manifest.update(classes=5)),
        ("codebook", lambda manifest: manifest.update(codebook={"positions": 0})),
        ("codes", lambda manifest: manifest.update(codes={})),
        ("codes", lambda manifest: manifest["codes"].update(mean=[0.0] * 7)),
        ("codes", lambda manifest: manifest["codes"].update(deviation=["1", 0])),
        ("scores", lambda manifest: manifest.update(scores=3)),
        ("variants", lambda manifest: manifest.update(variants=["int8"])),
    ],
)
def test_a_manifest_without_what_the_client_must_know_is_refused(
    name: str, change: Callable[[dict], object], copy: Path
) -> None:
    change_manifest(copy, change)
    assert refusal(copy) == f"{copy / 'manifest.json'}: {name}: missing or without sense; {AGAIN}"


@pytest.mark.parametrize(
    ("number", "found", "remedy"),
    [
        ("5", "5", "upgrade reparam"),
        ("3", "3", "run `dvc repro export`, or take the reparam that exported it"),
        ('"4"', "'4'", "run `dvc repro export`, or take the reparam that exported it"),
        ("null", "None", "run `dvc repro export`, or take the reparam that exported it"),
    ],
)
def test_another_format_is_refused(number: str, found: str, remedy: str, copy: Path) -> None:
    change_manifest(copy, lambda manifest: manifest.update(format=json.loads(number)))
    wanted = f"wanted a model of format 4, found one of format {found}; {remedy}"
    assert refusal(copy) == f"{copy / 'manifest.json'}: {wanted}"
    (copy / "manifest.json").unlink()
    for name in ("encoder.onnx", "decoder.onnx"):
        change_format(copy / name, number)
    assert refusal(copy) == f"{copy / 'encoder.onnx'}: {wanted}"


def test_the_manifest_is_part_of_the_metadata(copy: Path) -> None:
    change_manifest(copy, lambda manifest: manifest.update(scores={"quantiles": {"99": 130.5}}))
    assert Client(copy).metadata["scores"] == {"quantiles": {"99": 130.5}}


def test_what_a_later_export_says_besides_is_kept_and_changes_nothing(copy: Path, exported: Exported) -> None:
    def add(manifest: dict) -> None:
        manifest |= {"colour": "blue"}
        manifest["parity"] |= {"colour_max_error": 0.5}
        manifest["files"]["encoder.onnx"] |= {"blake3": "0"}

    change_manifest(copy, add)
    client = Client(copy)
    assert client.metadata["colour"] == "blue"
    np.testing.assert_array_equal(
        client.reconstruct(exported.images), Client(exported.directory).reconstruct(exported.images)
    )


# Without one


def test_a_folder_without_a_manifest_opens_by_the_metadata_of_its_graphs(copy: Path, exported: Exported) -> None:
    (copy / "manifest.json").unlink()
    np.testing.assert_array_equal(
        Client(copy).reconstruct(exported.images), Client(exported.directory).reconstruct(exported.images)
    )


@pytest.mark.parametrize("single", [False, True], ids=["in a folder of its own", "by its name"])
def test_a_decoder_opens_alone(single: bool, copy: Path, exported: Exported) -> None:
    alone = copy / "alone"
    alone.mkdir()
    name = "digits.onnx" if single else "decoder.onnx"
    shutil.copy(copy / "decoder.onnx", alone / name)
    client, whole = Client(alone / name if single else alone), Client(exported.directory)
    assert (client.graphs, client.image_shape, client.latent_size) == (("decoder",), (4, 6, 3), LATENT)
    np.testing.assert_array_equal(client.sample(3, seed=1), whole.sample(3, seed=1))
    with pytest.raises(MissingInputError) as error:
        client.encode(exported.images)
    assert str(error.value) == f"{client.path}: wanted encoder.onnx, found decoder only"


def test_a_single_graph_beside_its_manifest_is_checked(copy: Path) -> None:
    assert Client(copy / "decoder.onnx").graphs == ("decoder",)
    (copy / "decoder.onnx").write_bytes((copy / "encoder.onnx").read_bytes())
    assert refusal(copy / "decoder.onnx").startswith(f"{copy / 'decoder.onnx'}: wanted ")


def test_a_single_graph_that_the_manifest_beside_it_does_not_list_is_refused(copy: Path) -> None:
    shutil.copy(copy / "decoder.onnx", copy / "changed.onnx")  # or a changed one would need another name only
    assert refusal(copy / "changed.onnx") == (
        f"{copy / 'changed.onnx'}: manifest.json does not list it, so it is of another export; {AGAIN}"
    )


def test_graphs_of_two_exports_are_refused(copy: Path, code: Exported) -> None:
    (copy / "manifest.json").unlink()
    (copy / "score.onnx").unlink(missing_ok=True)
    shutil.copy(code.directory / "decoder.onnx", copy)
    assert refusal(copy) == (
        f"{copy}: encoder.onnx and decoder.onnx come from different exports; run `dvc repro export`"
    )


@each_graph
@pytest.mark.parametrize(
    "damage",
    [lambda content: content[: len(content) // 2], lambda _: b"", lambda _: b"not a graph"],
    ids=["truncated", "empty", "something else"],
)
def test_what_onnxruntime_cannot_open_is_refused(name: str, damage: Callable[[bytes], bytes], copy: Path) -> None:
    (copy / "manifest.json").unlink()
    (copy / name).write_bytes(damage((copy / name).read_bytes()))
    found = refusal(copy)
    assert found.startswith(f"{copy / name}: onnxruntime ")
    assert " cannot open it: " in found


@pytest.mark.parametrize("value", [None, "", "[1]", "nonsense", "[" * 100_000], ids=lambda value: str(value)[:8])
def test_a_graph_of_someone_else_is_refused(value: str | None, copy: Path) -> None:
    graph = onnx.load(copy / "decoder.onnx")
    del graph.metadata_props[:]
    if value is not None:
        graph.metadata_props.add(key="reparam", value=value)
    onnx.save(graph, copy / "decoder.onnx")
    relisted = f"{copy / 'decoder.onnx'}: not exported by reparam, its metadata are missing; run `dvc repro export`"
    assert refusal(copy / "decoder.onnx").startswith(f"{copy / 'decoder.onnx'}: wanted ")
    (copy / "manifest.json").unlink()
    assert refusal(copy) == relisted


def test_a_graph_with_other_inputs_is_refused(copy: Path) -> None:
    graph = onnx.load(copy / "decoder.onnx")
    graph.graph.input[0].name = "z"
    for node in graph.graph.node:
        node.input[:] = ["z" if name == "latents" else name for name in node.input]
    onnx.save(graph, copy / "decoder.onnx")
    relist(copy)
    assert refusal(copy) == f"{copy / 'decoder.onnx'}: wanted inputs of encoder, decoder or score, found z"


def test_a_folder_without_graphs_and_no_folder_at_all_are_named(tmp_path: Path) -> None:
    assert refusal(tmp_path, MissingInputError) == (
        f"{tmp_path}: wanted any of encoder.onnx, decoder.onnx, score.onnx, found none; {AGAIN}"
    )
    gone = tmp_path / "gone"
    assert refusal(gone, MissingInputError) == f"{gone}: not found; `dvc repro export` writes models/onnx"
    long = Path("x" * 5000)
    assert refusal(long, MissingInputError) == (
        f"{long}: wanted the folder of a model, found: File name too long; `dvc repro export` writes models/onnx"
    )


def test_any_listed_file_can_be_read_and_is_checked(copy: Path) -> None:
    bundle = Bundle.open(copy)
    assert bundle.read("golden.npz") == (copy / "golden.npz").read_bytes()
    (copy / "golden.npz").write_bytes(b"")
    with pytest.raises(DamagedInputError, match=r"golden.npz: wanted \d+ bytes, found 0"):
        bundle.read("golden.npz")
