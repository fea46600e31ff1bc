"""`reparam model`, as a shell uses it."""

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_model import LATENT, Exported, prepare, run_stage
from PIL import Image
from pyarrow import parquet
from score_graph import relist, with_score
from typer.testing import CliRunner

from reparam import cli
from reparam.client import Client
from reparam.errors import UserError
from reparam.shell import commands, work

pytest_plugins = ["fixtures_export"]

Run = Callable[..., str]
CODES = [f"{name}_{number}" for name in ("mean", "log_variance") for number in range(LATENT)]


@pytest.fixture
def model(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """An exported model with `score.onnx` in models/onnx of the current directory; 3 images at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("reparam.client.client.NUMBERS", 3 * 4 * 6 * 3)
    with_score(exported.directory, tmp_path / "models/onnx")
    return Client("models/onnx")


@pytest.fixture
def images(exported: Exported, model: Client) -> np.ndarray:
    """8 images, which are also in images.npy and in the folder `pictures`."""
    found = exported.images[:8]
    np.save("images.npy", found)
    Path("pictures/more").mkdir(parents=True)
    for number, image in enumerate(found):
        Image.fromarray(image).save(f"pictures/{'more/' if number > 5 else ''}{number}.png")
    return found


def run(*arguments: Any) -> str:
    """Run a command that goes well; return what it printed."""
    result = CliRunner().invoke(commands.app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        run(*arguments)
    return str(error.value)


def rows(text: str) -> tuple[list[str], list[str], np.ndarray]:
    """The columns, names and numbers of a table."""
    head, *lines = csv.reader(text.splitlines())
    return head, [line[0] for line in lines], np.array([line[1:] for line in lines], np.float32)


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# Outputs


def test_encode_prints_a_table_of_names_means_and_log_variances(images: np.ndarray, model: Client) -> None:
    head, names, values = rows(run("encode", "images.npy"))
    assert (head, names) == (["image", *CODES], [f"images.npy[{number}]" for number in range(8)])
    np.testing.assert_array_equal(values, np.concatenate(model.encode(images), axis=1))


def test_encode_writes_the_same_to_every_kind_of_file(images: np.ndarray, model: Client) -> None:
    for name in ("codes.csv", "codes.npy", "codes.parquet"):
        assert run("encode", "images.npy", "--output", name) == ""
    mean, log_variance = model.encode(images)
    np.testing.assert_array_equal(np.load("codes.npy"), mean)
    np.testing.assert_array_equal(rows(Path("codes.csv").read_text())[2], np.concatenate([mean, log_variance], axis=1))
    found = parquet.read_table("codes.parquet")
    assert found.column_names == ["image", *CODES]
    assert found["image"].to_pylist() == [f"images.npy[{number}]" for number in range(8)]
    np.testing.assert_array_equal(found["mean_1"].to_numpy(), mean[:, 1])


def test_encode_writes_codes_of_a_codebook_as_whole_numbers(
    quantized: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", quantized.images[:5])
    of_model = ("encode", "images.npy", "--model", quantized.directory, "--output")
    for name in ("codes.csv", "codes.npy", "codes.parquet"):
        run(*of_model, name)
    client = Client(quantized.directory)
    codes = client.encode_codes(quantized.images[:5])
    wanted = [f"images.npy[{row}],{first},{second}" for row, (first, second) in enumerate(codes.tolist())]
    assert Path("codes.csv").read_text().splitlines() == ["image,code_0,code_1", *wanted]
    assert parquet.read_table("codes.parquet")["code_1"].to_pylist() == codes[:, 1].tolist()
    np.testing.assert_array_equal(np.load("codes.npy"), client.vectors(codes))


def test_decode_makes_images_of_what_encode_wrote(images: np.ndarray, model: Client) -> None:
    run("encode", "images.npy", "--output", "codes.npy")
    run("decode", "codes.npy", "--output", "decoded.npy")
    run("reconstruct", "images.npy", "--output", "reconstructed.npy")
    np.testing.assert_array_equal(np.load("decoded.npy"), model.reconstruct(images))
    np.testing.assert_array_equal(np.load("reconstructed.npy"), model.reconstruct(images))


def test_sample_writes_what_the_client_samples(model: Client) -> None:
    run("sample", "--output", "samples.npy", "--count", 5, "--seed", 3, "--temperature", 0.5)
    np.testing.assert_array_equal(np.load("samples.npy"), model.sample(5, 3, 0.5))
    run("sample", "--output", "none.npy", "--count", 0)
    assert np.load("none.npy").shape == (0, 4, 6, 3)


def test_many_samples_are_decoded_some_at_a_time(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, decoded = Client(exported.directory, device="cpu", batch=3), []
    decode = client.decode
    monkeypatch.setattr(client, "decode", lambda latents, label: decoded.append(len(latents)) or decode(latents, label))
    work.sample(client, 8, 3, 0.5, tmp_path / "samples.npy")
    assert decoded == [3, 3, 2]
    found = np.load(tmp_path / "samples.npy")
    np.testing.assert_array_equal(found, Client(exported.directory, device="cpu").sample(8, 3, 0.5))


def test_a_picture_has_all_images_side_by_side(model: Client) -> None:
    run("sample", "--output", "samples.png", "--count", 5)
    sheet, samples = pixels("samples.png"), model.sample(5, 0)
    assert sheet.shape == (2 * 4 + 2, 3 * 6 + 2 * 2, 3)
    np.testing.assert_array_equal(sheet[:4, :6], samples[0])
    np.testing.assert_array_equal(sheet[:4, 16:], samples[2])
    np.testing.assert_array_equal(sheet[6:, 8:14], samples[4])
    assert (sheet[4:6] == 255).all()
    assert (sheet[6:, 16:] == 255).all()  # there is no sixth


def test_a_picture_of_reconstructions_has_each_beside_its_image(images: np.ndarray, model: Client) -> None:
    run("reconstruct", "pictures/0.png", "pictures/3.png", "pictures/4.png", "--output", "pairs.png")
    sheet = pixels("pairs.png")
    assert sheet.shape == (2 * 4 + 2, 4 * 6 + 3 * 2, 3)
    np.testing.assert_array_equal(sheet[:4, 16:22], images[3])
    np.testing.assert_array_equal(sheet[:4, 24:], model.reconstruct(images[3:4])[0])
    np.testing.assert_array_equal(sheet[6:, 8:14], model.reconstruct(images[4:5])[0])


def test_score_writes_the_negative_elbo_and_its_parts(images: np.ndarray, model: Client) -> None:
    head, _, values = rows(run("score", "images.npy", "--samples", 2))
    assert head == ["image", "negative_elbo", "negative_log_likelihood", "kl"]
    batches = [model.score(images[start : start + 3], 2, seed=(0, start)) for start in (0, 3, 6)]
    np.testing.assert_array_equal(values[:, 0], np.concatenate([each.negative_elbo for each in batches]).astype("f4"))
    np.testing.assert_allclose(values[:, 0], values[:, 1] + values[:, 2], rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("command", ["encode", "score", "reconstruct"])
def test_shards_in_order_are_what_one_run_computes(command: str, count: int, images: np.ndarray) -> None:
    run(command, "images.npy", "--output", "whole.npy")
    for number in range(1, count + 1):
        run(command, "images.npy", "--output", f"{number}.npy", "--shard", f"{number}/{count}")
    parts = np.concatenate([np.load(f"{number}.npy") for number in range(1, count + 1)])
    np.testing.assert_array_equal(parts, np.load("whole.npy"))


def test_codes_can_be_decoded_in_shards(images: np.ndarray, model: Client) -> None:
    np.save("codes.npy", model.encode(images)[0])
    for number in (1, 2):
        run("decode", "codes.npy", "--output", f"{number}.npy", "--shard", f"{number}/2")
    np.testing.assert_array_equal(np.concatenate([np.load("1.npy"), np.load("2.npy")]), model.reconstruct(images))


# Inputs


@pytest.mark.parametrize(
    ("inputs", "numbers"),
    [
        (["pictures"], range(8)),
        (["pictures/[0-3].png"], range(4)),
        (["pictures/**/*.png"], range(8)),
        (["pictures/**/*"], range(8)),
        (["pictures/**"], range(8)),
        (["pictures/3.png", "pictures/3.png"], [3, 3]),
        (["pictures/more", "pictures/1.png"], [6, 7, 1]),
        (["pictures/2.png", "images.npy", "pictures/0.png"], [2, *range(8), 0]),
    ],
    ids=[
        *("a folder", "a pattern", "a deep pattern", "also folders", "also the folder itself", "a file twice"),
        *("a folder and a file", "files and an array"),
    ],
)
def test_images_are_found_by_file_folder_and_pattern(
    inputs: list[str], numbers: list[int], images: np.ndarray, model: Client
) -> None:
    run("encode", *inputs, "--output", "codes.npy")
    np.testing.assert_allclose(np.load("codes.npy"), model.encode(images)[0][numbers], rtol=1e-6, atol=1e-6)


def test_images_of_another_size_are_refused_unless_they_shall_be_fitted(images: np.ndarray) -> None:
    Image.new("RGB", (12, 8)).save("large.png")
    assert refusal("encode", "pictures", "large.png") == (
        "large.png: wanted 6 x 4 pixels, found 12 x 8; --resize fits images as `reparam preprocess` does"
    )
    assert refusal("encode", "large.png", "--resize") == "--resize: wanted a model of square images, found 6 x 4"


def test_a_model_of_grey_squares_takes_colour_images_of_any_size(
    grey: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (13, 9), "white").save("large.png")
    np.save("white.npy", np.full((1, 4, 4), 255, np.uint8))  # without an axis of channels
    for name in ("large.png", "white.npy"):
        run("reconstruct", name, "--resize", "--model", grey.directory, "--output", f"{name}.npy")
    np.testing.assert_array_equal(np.load("large.png.npy"), np.load("white.npy.npy"))
    run("sample", "--model", grey.directory, "--output", "grey.png", "--count", 1)
    assert pixels("grey.png").shape == (4, 4)


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model of 4 x 4 grey images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exported_model.SHAPE", (1, 4, 4))
        found = prepare(tmp_path_factory.mktemp("grey"))
    run_stage(found.paths)
    return found


NOWHERE = "wanted a file or folder, found a link that leads to none; mend or remove the link"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["gone.png"], "gone.png: found no file, folder, or files that this pattern fits"),
        (["gone/*.png"], "gone/*.png: found no file, folder, or files that this pattern fits"),
        (["empty"], "empty: found no images in this folder"),
        (["none.npy"], "none.npy: found no images"),
        (["text.png"], "text.png: not a whole image of any of the formats BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"),
        (["floats.npy"], "floats.npy: wanted uint8 images of shape (N, 4, 6, 3), found float64 (2, 4, 6, 3)"),
        (["small.npy"], "small.npy: wanted uint8 images of shape (N, 4, 6, 3), found uint8 (2, 4, 6)"),
        (["number.npy"], "number.npy: wanted an array as numpy.save writes it, found a single number"),
        ([""], "images: wanted names of files or folders, found an empty one; the current folder is `.`"),
        (["links/broken.png"], f"links/broken.png: {NOWHERE}"),
        (["links/b*.png"], f"links/broken.png: {NOWHERE}"),
        (["links/circle.png"], f"links/circle.png: {NOWHERE}"),
        (["links/c*"], f"links/circle.png: {NOWHERE}"),
    ],
)
def test_inputs_that_are_no_images_are_refused(inputs: list[str], message: str, model: Client) -> None:
    Path("empty").mkdir()
    Path("text.png").write_text("text")
    np.save("none.npy", np.zeros((0, 4, 6, 3), np.uint8))
    np.save("floats.npy", np.zeros((2, 4, 6, 3)))
    np.save("small.npy", np.zeros((2, 4, 6), np.uint8))
    np.save("number.npy", np.uint8(3))
    Path("links").mkdir()
    Path("links/broken.png").symlink_to("gone.png")
    Path("links/circle.png").symlink_to("circle.png")
    assert refusal("encode", *inputs) == message


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("odd/\udcff.png", r"b'odd/\xff.png'"),
        ("odd/?.png", r"b'odd/\xff.png'"),
        ("odd", r"b'\xff.png'"),
        ("\udcfe", r"b'\xfe/0.png' and 1 more"),
        ("**/0.png", r"b'\xfe/0.png'"),
    ],
    ids=["a file", "a pattern", "its folder", "a folder of that name", "a pattern of folders"],
)
def test_names_that_are_not_utf_8_are_refused_before_the_work(
    given: str, found: str, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (b"odd/\xff.png", b"\xfe/0.png", b"\xfe/1.png"):
        path = Path(os.fsdecode(name))
        try:
            path.parent.mkdir(exist_ok=True)
            shutil.copy("pictures/0.png", path)
        except OSError:
            pytest.skip("this file system takes UTF-8 only")
    monkeypatch.setattr(Client, "encode", None)
    assert refusal("encode", given) == (
        f"{given}: wanted names in UTF-8, found {found}; rename the files or their folders"
    )


def test_what_would_keep_one_waiting_is_refused(model: Client) -> None:
    for name in ("pipe.png", "pipe.npy"):
        os.mkfifo(name)
        with pytest.raises(
            OSError, match=f"wanted a file, found a folder, device or pipe; name another path: '{name}'"
        ):
            run("encode", name)
    with pytest.raises(OSError, match=r"wanted a file, .*: 'pipe.npy'"):
        run("decode", "pipe.npy", "--output", "x.npy")


NEGATIVE = b"{'descr': '|u1', 'fortran_order': False, 'shape': (-5,)}"


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY", b"\x93NUMPY\1\0" + NEGATIVE.ljust(118)], ids=repr)
def test_what_is_no_array_is_refused(content: bytes, model: Client) -> None:
    Path("bad.npy").write_bytes(content)
    assert refusal("decode", "bad.npy", "--output", "x.npy").startswith("bad.npy: wanted an array as numpy.save writes")
    assert not Path("x.npy").exists()


# Progress


@pytest.mark.parametrize("command", ["encode", "score", "reconstruct", "decode", "sample"])
def test_each_batch_moves_the_progress(
    command: str, images: np.ndarray, model: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    advances: list[Any] = []

    def counting(title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        advances.append((title, total))
        return nullcontext(advances.append)

    monkeypatch.setattr(work, "counting", counting)
    np.save("codes.npy", model.encode(images)[0])
    given = {"decode": ["codes.npy"], "sample": ["--count", 8]}.get(command, ["images.npy"])
    run(command, *given, "--output", "x.npy")
    assert advances == [(command, 8), 3, 3, 2]


# What cannot be done


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "", f"1/{'9' * 5_000}"])
def test_shards_that_make_no_sense_are_refused(shard: str, images: np.ndarray) -> None:
    assert refusal("encode", "images.npy", "--shard", shard) == (
        f"--shard: wanted i/n, the first of them 1/n, found {shard!r}"
    )


@pytest.mark.parametrize(
    ("command", "output", "message"),
    [
        ("encode", "x.json", "x.json: wanted a name that ends in .csv, .npy, .parquet"),
        ("reconstruct", "x.jpg", "x.jpg: wanted a name that ends in .npy, .png"),
    ],
)
def test_outputs_of_another_kind_are_refused(command: str, output: str, message: str, images: np.ndarray) -> None:
    assert refusal(command, "images.npy", "--output", output) == message
    assert not Path(output).exists()


def printed(*arguments: Any) -> tuple[str, str]:
    """What a command that is refused printed before, and its message."""
    result = CliRunner().invoke(commands.app, list(map(str, arguments)))
    assert isinstance(result.exception, UserError)
    return result.stdout, str(result.exception)


@pytest.mark.parametrize("command", ["encode", "score"])
def test_nothing_is_printed_of_images_that_are_refused(command: str, images: np.ndarray) -> None:
    Path("bad.png").write_text("text")
    Image.new("RGB", (12, 8)).save("large.png")
    for name in ("bad.png", "large.png"):
        stdout, message = printed(command, name, "pictures")
        assert (stdout, message.split(":")[0]) == ("", name)


@pytest.mark.parametrize("label", ["", "fox", "9" * 5000])
@pytest.mark.parametrize(
    ("command", "output"), [("encode", "x.csv"), ("score", None), ("score", "x.csv"), ("reconstruct", "x.npy")]
)
def test_a_label_that_the_model_does_not_know_is_refused_before_anything_is_written(
    command: str, output: str | None, label: str, conditional: Exported, images: np.ndarray
) -> None:
    wanted = "label: wanted labels 0 to 2: 0 (cat), 1 (dog), 2 (owl), by number or name"
    Path("x.csv").mkdir()  # which would be refused when the output is opened
    Path("x.npy").mkdir()
    options = ["--output", output] if output else []
    found = printed(command, "images.npy", "--model", conditional.directory, "--label", label, *options)
    assert found == ("", f"{wanted}, found {repr(label) if label else 'none'}")


def test_a_table_without_images_has_its_head(model: Client, exported: Exported) -> None:
    np.save("one.npy", exported.images[:1])
    assert run("encode", "one.npy", "--shard", "1/2") == f"image,{','.join(CODES)}\n"


@pytest.mark.parametrize("count", [0, 4097])
def test_a_picture_of_too_many_images_is_refused(count: int, model: Client) -> None:
    assert refusal("sample", "--count", count, "--output", "x.png") == (
        f"x.png: wanted 1 to 4096 images, found {count}; .npy takes any number"
    )


def test_parquet_without_its_library_says_what_to_install(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert refusal("encode", "images.npy", "--output", "x.parquet") == (
        ".parquet: needs pyarrow; run `pip install pyarrow`, or write .csv or .npy"
    )


def test_a_model_without_a_density_is_refused_before_anything_is_printed(code: Exported, images: np.ndarray) -> None:
    result = CliRunner().invoke(commands.app, ["score", "images.npy", "--model", str(code.directory)])
    assert (result.stdout, type(result.exception).__name__) == ("", "MissingInputError")


def test_the_device_is_that_of_the_environment(model: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "REPARAM_DEVICE", "tpu")
    assert refusal("info") == "device: wanted one of auto, cpu, cuda, found 'tpu'"


# Looking at a model


def test_info_says_what_a_model_is(model: Client) -> None:
    size = {name: Path("models/onnx", name).stat().st_size / 1e6 for name in ("encoder.onnx", "score.onnx")}
    lines = run("info").splitlines()
    assert lines[:4] == [
        "models/onnx: format 4, vae of noise",
        "images      4 x 6 x 3 (height, width, channels), uint8",
        "latents     2, of the prior N(0, 1) each",
        "likelihood  bernoulli",
    ]
    assert lines[4].startswith(f"graphs      encoder {size['encoder.onnx']:.1f} MB, decoder ")
    assert lines[4].endswith(f", score {size['score.onnx']:.1f} MB")
    assert lines[5] == "runs on     CPUExecutionProvider, 3 images at once"


def test_info_warns_where_nothing_is_verified(model: Client) -> None:
    Path("models/onnx/manifest.json").unlink()
    warning = "warning     no manifest.json: damaged or exchanged files would not be noticed"
    assert run("info").splitlines()[-1] == warning


def test_an_empty_part_of_a_collection_has_no_picture_and_is_no_error(model: Client, exported: Exported) -> None:
    np.save("one.npy", exported.images[:1])
    assert run("reconstruct", "one.npy", "--shard", "2/2", "--output", "second.png") == ""
    first = ["reconstruct", "one.npy", "--shard", "1/2", "--output", "first.png"]
    done = CliRunner().invoke(commands.app, first)
    assert (done.exit_code, done.stderr) == (0, "--shard 1/2: no images, so no first.png; parts are whole batches\n")
    assert (Path("first.png").exists(), Path("second.png").exists()) == (False, True)


def test_info_says_what_scores_are_usual_and_warns_of_two_packages(
    model: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reparam.shell.work.installed_twice", lambda: True)
    path = Path("models/onnx/manifest.json")
    manifest = json.loads(path.read_text()) | {"scores": {"quantiles": {"50": 98.1, "99": 130.5}}}
    path.write_text(json.dumps(manifest))
    assert run("info").splitlines()[-2:] == [
        "scores      of the test split with --samples 0, quantiles: 50%: 98.1, 99%: 130.5",
        "warning     two packages of onnxruntime in one folder; run `pip uninstall --yes onnxruntime onnxruntime-gpu`, "
        "then `pip install onnxruntime` or `pip install onnxruntime-gpu`",
    ]


def test_bench_has_a_line_for_each_call_and_batch(model: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reparam.shell.bench.SECONDS", 0)
    head, *lines = (line.split() for line in run("bench").splitlines())
    assert head == ["call", "batch", "ms", "images/s"]
    assert [line[:2] for line in lines] == [
        [call, batch] for batch in ("1", "256") for call in ("encode", "decode", "score")
    ]
    assert all(float(line[2]) > 0 for line in lines)


def test_verify_compares_checksums_and_right_answers(model: Client) -> None:
    lines = run("verify").splitlines()
    assert lines[0] == f"{len(model.metadata['files'])} files: as in manifest.json"
    assert [line.split(":")[0] for line in lines[1:5]] == [
        "encoder, mean",
        "encoder, log_variance",
        "decoder, images",
        "decoder, mean",
    ]
    assert lines[5:] == [
        "score: not checked, golden.npz has no epsilon, reconstruction, negative_log_likelihood, kl",
        "models/onnx: verified",
    ]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mean", 1e-3, "models/onnx: encoder, mean: wanted at most "),
        ("decoded_mean", np.nan, "models/onnx: decoder, mean: wanted at most "),
        ("decoded_images", 2, "models/onnx: decoder, images: wanted at most 1 from golden.npz, found "),
    ],
)
def test_verify_finds_wrong_answers(name: str, change: float, message: str, model: Client) -> None:
    with np.load("models/onnx/golden.npz") as file:
        golden = dict(file)
    golden[name] = golden[name] + np.asarray(change).astype(golden[name].dtype)
    np.savez("models/onnx/golden.npz", **golden)
    relist(Path("models/onnx"))
    assert refusal("verify").startswith(message)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("latents", np.zeros(3, np.float32), "models/onnx: decoder: golden.npz does not fit this graph: "),
        ("latents", np.array(["a"]), "models/onnx: decoder: golden.npz does not fit this graph: "),
        ("mean", np.array(["a"]), "models/onnx: encoder, mean: wanted <U1 (1,) (as golden.npz has it), found float32 "),
        (None, None, "models/onnx/golden.npz: no arrays as numpy.savez writes them: "),
    ],
)
def test_verify_refuses_answers_of_another_kind(name: str | None, array: Any, message: str, model: Client) -> None:
    if name is None:
        Path("models/onnx/golden.npz").write_bytes(b"PK\x05\x06 no arrays")
    else:
        with np.load("models/onnx/golden.npz") as file:
            golden = {**file, name: array}
        np.savez("models/onnx/golden.npz", **golden)
    relist(Path("models/onnx"))
    assert refusal("verify").startswith(message)


def test_verify_wants_a_whole_model(exported: Exported, model: Client) -> None:
    golden = Path("models/onnx/golden.npz")
    golden.write_bytes(b"x" * golden.stat().st_size)
    assert refusal("verify").startswith("models/onnx/golden.npz: its SHA-256 is not that in manifest.json")
    Path("models/onnx/manifest.json").unlink()
    assert refusal("verify") == ("models/onnx: wanted a folder with manifest.json, which has the checksums, found none")
    shutil.rmtree("models")
    assert refusal("verify") == "models/onnx: not found; `dvc repro export` writes models/onnx"


def test_a_lack_of_memory_has_a_remedy_that_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def want_too_much() -> None:
        raise MemoryError("Unable to allocate 54.6 TiB")

    monkeypatch.setattr(cli, "app", want_too_much)
    for command, remedy in {
        "model": "Ask for fewer images or samples at once",
        "train": "Lower train.batch_size",
    }.items():
        monkeypatch.setattr(sys, "argv", ["reparam", command])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
        assert capsys.readouterr().err.startswith(f"error: out of memory: Unable to allocate 54.6 TiB\n{remedy}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of two workers on this machine, which the commands then use."""
    ray = pytest.importorskip("ray", reason="needs ray: pip install 'reparam[ray]'")
    source = {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, runtime_env={"env_vars": source})
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "images")
@pytest.mark.filterwarnings("default")  # of Ray itself
def test_ray_writes_what_one_process_writes(tmp_path: Path) -> None:
    commands = (("encode", "codes.csv"), ("encode", "codes.npy"), ("score", "scores.csv"), ("reconstruct", "both.png"))
    for command, name in commands:
        for given in ("pictures", "images.npy"):
            run(command, given, "--output", name)
            run(command, given, "--output", f"ray-{name}", "--ray", "local")
            assert Path(f"ray-{name}").read_bytes() == Path(name).read_bytes(), (command, given)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster", "images")
@pytest.mark.filterwarnings("default")
def test_a_mistake_that_a_worker_of_ray_finds_is_that_of_one_process() -> None:
    Path("pictures/3.png").write_text("no image")
    said = refusal("encode", "pictures", "--output", "codes.npy")
    assert refusal("encode", "pictures", "--output", "codes.npy", "--ray", "local") == said
    assert "pictures/3.png" in said


def test_without_ray_the_message_says_what_to_install(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert refusal("encode", "images.npy", "--ray", "local") == "--ray: needs ray; run `pip install 'reparam[ray]'`"
