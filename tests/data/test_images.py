import os
import pickle
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps
from torchvision.transforms import functional

from reparam.data import images
from reparam.data.images import FORMATS, UnreadableImageError, convert_arrays, decode, to_square

RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (23, 31, 3), dtype=np.uint8)
DEEP = RANDOM.integers(0, 65536, (23, 31), dtype=np.uint16)
RED, GREEN, BLUE, GREY, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 90, 90), (255, 255, 255)
NO_WHITE = "no agreed black and white for mode {}; save it with 8 bits, or as 16-bit grey"


def read(path: Path, channels: int) -> list[Any]:
    """The pixels of a file, row by row."""
    image = decode(path, channels)
    assert image.mode == {1: "L", 3: "RGB"}[channels]
    return np.asarray(image).tolist()  # type: ignore[no-any-return]


def stored(path: Path, fact: str = "mode") -> Any:
    """What Pillow says of a file as it is."""
    with Image.open(path) as image:
        return getattr(image, fact)


def luma(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Grey of (..., 3) by ITU-R 601 in Pillow's fixed-point weights."""
    weighted = pixels.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return ((weighted + 0x8000) >> 16).astype(np.uint8)


def on_white(value: int, alpha: int) -> int:
    """What is seen of `value` where white shines through."""
    return (2 * (value * alpha + 255 * (255 - alpha)) + 255) // 510


def png(depth: int, colour: int, row: bytes, width: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one row, in the kinds that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def tiff(row: bytes, width: int, order: str = "<", **changed: int) -> bytes:
    """A TIFF of one row of grey pixels, in the kinds that Pillow does not write."""
    tags = {"bits": 16, "white_is": 1, "per_pixel": 1, "extra": 0, "kind": 1} | changed
    bits = tags["bits"] if tags["per_pixel"] == 1 else tags["bits"] << 16 | tags["bits"]
    table = [
        *((256, 1, width), (257, 1, 1), (258, tags["per_pixel"], bits), (259, 1, 1), (262, 1, tags["white_is"])),
        *((273, 1, 8), (277, 1, tags["per_pixel"]), (278, 1, 1), (279, 1, len(row))),
        *([(338, 1, tags["extra"])] if tags["extra"] else []),
        (339, 1, tags["kind"]),
    ]
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8 + len(row)) + row
    # One value of a short is in the first half of its field.
    fields = [
        struct.pack(order + "HHI", tag, 3, count)
        + (struct.pack(order + "HH", value, 0) if count == 1 else struct.pack(order + "I", value))
        for tag, count, value in table
    ]
    return start + struct.pack(order + "H", len(table)) + b"".join(fields) + bytes(4)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    """Write bytes into a file."""

    def write(content: bytes) -> Path:
        path = tmp_path / "image"
        path.write_bytes(content)
        return path

    return write


def palette() -> Image.Image:
    """Four pixels of four colours, in a palette."""
    image = Image.new("P", (4, 1))
    image.putpalette([*RED, *GREEN, *BLUE, *GREY])
    image.putdata([0, 1, 2, 3])
    return image


@pytest.mark.parametrize("suffix", [".png", ".gif", ".bmp", ".tif"])
def test_a_palette_is_looked_up(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    palette().save(path)
    assert read(path, 3) == [[list(RED), list(GREEN), list(BLUE), list(GREY)]]
    assert read(path, 1) == [[76, 150, 29, 90]]


def test_one_transparent_colour_of_a_palette_is_white(tmp_path: Path) -> None:
    for path in (tmp_path / "image.png", tmp_path / "image.gif"):
        palette().save(path, transparency=1)
        assert read(path, 3) == [[list(RED), list(WHITE), list(BLUE), list(GREY)]]
        assert read(path, 1) == [[76, 255, 29, 90]]


def test_half_transparent_colours_of_a_palette_are_mixed_with_white(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    palette().save(path, transparency=bytes([0, 51, 128, 255]))
    assert read(path, 3) == [[[255, 255, 255], [204, 255, 204], [127, 127, 255], [90, 90, 90]]]
    assert read(path, 1) == [[255, 234, 142, 90]]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_what_is_transparent_is_mixed_with_white_and_rounded(tmp_path: Path, suffix: str) -> None:
    values = RANDOM.integers(0, 256, (8, 32, 3))
    alphas = np.arange(256).reshape(8, 32)
    path = tmp_path / f"image{suffix}"
    image = Image.fromarray(np.dstack([values, alphas]).astype(np.uint8))
    image.save(path, **({"lossless": True, "exact": True} if suffix == ".webp" else {}))
    mixed = np.vectorize(on_white)(values, alphas[:, :, None])
    assert read(path, 3) == mixed.tolist()
    assert read(path, 1) == luma(mixed).tolist()


def test_grey_with_transparency_is_mixed_with_white(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    pixels = np.array([[[100, 0], [100, 51], [100, 128], [100, 255]]], np.uint8)
    Image.fromarray(pixels).save(path)
    assert stored(path) == "LA"
    assert read(path, 1) == [[255, 224, 177, 100]]
    assert read(path, 3) == [[[value] * 3 for value in (255, 224, 177, 100)]]


def test_premultiplied_transparency_is_mixed_with_white(file: Callable[[bytes], Path]) -> None:
    path = file(tiff(bytes([0, 0, 20, 51, 100, 255]), 3, bits=8, per_pixel=2, extra=1))
    assert stored(path) == "La"
    assert read(path, 1) == [[255, on_white(100, 51), 100]]


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        pytest.param(png(8, 0, bytes([7, 8]), 2, (b"tRNS", struct.pack(">H", 7))), [[255] * 3, [8] * 3], id="grey"),
        pytest.param(
            png(16, 0, struct.pack(">2H", 2570, 2571), 2, (b"tRNS", struct.pack(">H", 2571))),
            [[10] * 3, [255] * 3],
            id="16 bits",
        ),
        pytest.param(png(1, 0, bytes([0x40]), 2, (b"tRNS", bytes(2))), [[255] * 3, [255] * 3], id="1 bit"),
        pytest.param(
            png(8, 2, bytes([1, 2, 3, 4, 5, 6]), 2, (b"tRNS", struct.pack(">3H", 1, 2, 3))),
            [[255] * 3, [4, 5, 6]],
            id="colour",
        ),
    ],
)
def test_the_transparent_colour_of_a_png_is_white(
    file: Callable[[bytes], Path], image: bytes, colour: list[list[int]]
) -> None:
    assert read(file(image), 3) == [colour]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif", ".tif", ".ppm"])
def test_one_bit_is_black_or_white(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    Image.fromarray(np.array([[True, False, True], [False, False, True]])).save(path)
    assert read(path, 1) == [[255, 0, 255], [0, 0, 255]]
    assert read(path, 3) == [[[255] * 3, [0] * 3, [255] * 3], [[0] * 3, [0] * 3, [255] * 3]]


DEPTHS = np.array([*range(0, 65536, 257), 128, 129, 385, 386, 65406, 65407], np.uint16)
SCALED = [*range(256), 0, 1, 1, 2, 254, 255]


@pytest.mark.parametrize(
    ("mode", "content"),
    [
        pytest.param("I;16", png(16, 0, DEPTHS.astype(">u2").tobytes(), len(DEPTHS)), id="PNG"),
        pytest.param("I;16", tiff(DEPTHS.astype("<u2").tobytes(), len(DEPTHS)), id="little-endian TIFF"),
        pytest.param("I;16B", tiff(DEPTHS.astype(">u2").tobytes(), len(DEPTHS), ">"), id="big-endian TIFF"),
        pytest.param("I", b"P5 %d 1 65535\n" % len(DEPTHS) + DEPTHS.astype(">u2").tobytes(), id="PGM"),
    ],
)
def test_16_bits_are_scaled_to_8_and_rounded(file: Callable[[bytes], Path], mode: str, content: bytes) -> None:
    path = file(content)
    assert stored(path) == mode
    assert read(path, 1) == [SCALED]
    assert read(path, 3) == [[[value] * 3 for value in SCALED]]


def test_a_16_bit_png_that_an_older_pillow_opens_as_mode_i_is_scaled_alike(
    file: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules["PIL.PngImagePlugin"]._MODES, (16, 0), ("I", "I;16B"))
    path = file(png(16, 0, DEPTHS.astype(">u2").tobytes(), len(DEPTHS)))
    assert stored(path) == "I"
    assert read(path, 1) == [SCALED]


def test_16_bits_per_colour_are_scaled_to_8(file: Callable[[bytes], Path]) -> None:
    assert read(file(png(16, 2, struct.pack(">6H", 0, 257, 514, 32896, 65278, 65535), 2)), 3) == [
        [[0, 1, 2], [128, 254, 255]]
    ]
    assert read(file(png(16, 6, struct.pack(">4H", 257, 514, 771, 65535), 1)), 3) == [[[1, 2, 3]]]


@pytest.mark.parametrize(
    ("mode", "content"),
    [
        pytest.param("F", tiff(struct.pack("<2f", 0, 1), 2, bits=32, kind=3), id="32-bit float"),
        pytest.param("F", b"Pf 2 1 -1.0\n" + struct.pack("<2f", 0, 1), id="float PFM"),
        pytest.param("I", tiff(struct.pack("<2I", 0, 9), 2, bits=32), id="32-bit integer"),
        pytest.param("I", tiff(struct.pack("<2h", -1, 9), 2, kind=2), id="signed 16 bits"),
        pytest.param("I;16", tiff(bytes([0xFF, 0xF8, 0x00]), 2, bits=12), id="12 bits"),
        pytest.param("I;16", tiff(struct.pack("<2H", 0, 9), 2, white_is=0), id="white is zero"),
    ],
)
def test_pixels_without_an_agreed_white_are_refused_rather_than_guessed(
    file: Callable[[bytes], Path], mode: str, content: bytes
) -> None:
    path = file(content)
    with pytest.raises(UnreadableImageError) as caught:
        decode(path, 1)
    assert caught.value.reason == NO_WHITE.format(mode)


def ink(tmp_path: Path, *colour: int) -> Path:
    """A JPEG of one CMYK colour, in Adobe's inverted spelling, which Pillow writes; flat, so that nothing is lost."""
    path = tmp_path / "image.jpg"
    Image.new("CMYK", (16, 16), colour).save(path, quality=100)
    return path


@pytest.mark.parametrize(
    ("colour", "seen"),
    [((0, 0, 0, 0), WHITE), ((0, 255, 255, 0), RED), ((0, 0, 0, 255), (0, 0, 0)), ((255, 0, 255, 51), (0, 204, 0))],
)
def test_cmyk_becomes_rgb(tmp_path: Path, colour: tuple[int, ...], seen: tuple[int, ...]) -> None:
    path = ink(tmp_path, *colour)
    assert b"Adobe" in path.read_bytes()
    assert decode(path, 3).getcolors() == [(256, seen)]
    assert decode(path, 1).getcolors() == [(256, int(luma(np.array(seen))))]
    Image.new("CMYK", (16, 16), colour).save(path, "TIFF")
    assert decode(path, 3).getcolors() == [(256, seen)]


def test_ycck_of_adobe_becomes_rgb(tmp_path: Path) -> None:
    # Stored inverted: Y = 200 without colour, K = 255 - 0; the marker's last byte makes YCCK of CMYK.
    path = ink(tmp_path, 255 - 200, 255 - 128, 255 - 128, 0)
    content = bytearray(path.read_bytes())
    content[content.index(b"Adobe") + 11] = 2
    path.write_bytes(content)
    assert decode(path, 3).getcolors() == [(256, (55, 55, 55))]


def test_ycbcr_becomes_rgb(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.new("RGB", (16, 16), RED).save(path, quality=100)
    assert decode(path, 3).getcolors() == [(256, (254, 0, 0))]  # red is (76, 85, 255) in YCbCr, which is 254 in red
    assert decode(path, 1).getcolors() == [(256, 76)]
    Image.new("YCbCr", (16, 16), (76, 85, 255)).save(path, "TIFF")
    assert decode(path, 3).getcolors() == [(256, (254, 0, 0))]


STORED = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
SEEN = {
    1: [[10, 20, 30], [40, 50, 60]],
    2: [[30, 20, 10], [60, 50, 40]],
    3: [[60, 50, 40], [30, 20, 10]],
    4: [[40, 50, 60], [10, 20, 30]],
    5: [[10, 40], [20, 50], [30, 60]],
    6: [[40, 10], [50, 20], [60, 30]],
    7: [[60, 30], [50, 20], [40, 10]],
    8: [[30, 60], [20, 50], [10, 40]],
}


def oriented(orientation: int) -> Image.Exif:
    """An EXIF block that says how the camera was held."""
    exif = Image.Exif()
    exif[274] = orientation
    return exif


@pytest.mark.parametrize("orientation", SEEN)
def test_images_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    for suffix, options in {".png": {}, ".tif": {}, ".webp": {"lossless": True}}.items():
        path = tmp_path / f"image{suffix}"
        Image.fromarray(STORED).save(path, exif=oriented(orientation), **options)
        assert read(path, 1) == SEEN[orientation], suffix
    Image.fromarray(STORED.astype(np.uint16) * 257).save(path, "PNG", exif=oriented(orientation))
    assert read(path, 1) == SEEN[orientation]
    # Blocks of 8 x 8 pixels keep their values through JPEG.
    Image.fromarray(STORED.repeat(8, 0).repeat(8, 1)).save(path, "JPEG", quality=100, exif=oriented(orientation))
    assert np.asarray(decode(path, 1))[::8, ::8].tolist() == SEEN[orientation]
    assert decode(path, 1).size == ((24, 16) if orientation < 5 else (16, 24))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(STORED).save(path, exif=oriented(orientation))
    assert read(path, 1) == STORED.tolist()


def test_an_exif_block_that_is_none_turns_nothing(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(STORED).save(path, exif=b"Exif\0\0no such thing")
    with Image.open(path) as image, pytest.raises(SyntaxError, match="not a TIFF file"):
        image.getexif()
    assert read(path, 1) == STORED.tolist()


def test_an_exif_block_that_pillow_could_not_write_still_turns_the_image(tmp_path: Path) -> None:
    # Orientation 6, and a resolution that is text.
    entries = struct.pack("<HHIHH", 274, 3, 1, 6, 0) + struct.pack("<HHI4s", 282, 2, 4, b"72p\0")
    path = tmp_path / "image.png"
    Image.fromarray(STORED).save(
        path, exif=b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    )
    with Image.open(path) as image, pytest.raises(TypeError):
        ImageOps.exif_transpose(image)
    assert read(path, 1) == SEEN[6]


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_the_first_frame_is_taken_of_an_animation(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image{suffix}"
    first, *others = (Image.new("RGB", (4, 2), colour) for colour in (RED, GREEN, BLUE))
    first.save(path, save_all=True, append_images=others, **({"lossless": True} if suffix == ".webp" else {}))
    assert stored(path, "n_frames") == 3
    assert decode(path, 3).getcolors() == [(8, RED)]


def test_the_photo_is_taken_of_a_photo_with_a_second_one_inside(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    photo, depth = Image.new("RGB", (16, 16), GREY), Image.new("RGB", (16, 16), WHITE)
    photo.save(path, "MPO", save_all=True, append_images=[depth])
    assert stored(path, "format") == "MPO"
    assert decode(path, 3).getcolors() == [(256, GREY)]


def kinds(folder: Path) -> dict[str, Path]:
    """One file of each kind."""
    colour, grey, deep = Image.fromarray(COLOURS), Image.fromarray(COLOURS[:, :, 0]), Image.fromarray(DEEP)
    half = Image.fromarray(np.dstack([COLOURS, COLOURS[:, :, 0]]))
    files: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "png": (colour, "PNG", {}),
        "png with transparency": (half, "PNG", {}),
        "png with palette": (colour.quantize(200), "PNG", {"transparency": bytes(range(200))}),
        "png of 16 bits": (deep, "PNG", {}),
        "jpeg": (colour, "JPEG", {}),
        "jpeg, progressive": (colour, "JPEG", {"progressive": True}),
        "jpeg with exif": (colour, "JPEG", {"exif": oriented(6)}),
        "jpeg of cmyk": (colour.convert("CMYK"), "JPEG", {}),
        "jpeg of grey": (grey, "JPEG", {}),
        "gif": (colour.quantize(200), "GIF", {"transparency": 3}),
        "bmp": (colour, "BMP", {}),
        "tiff": (colour, "TIFF", {}),
        "tiff with lzw": (colour, "TIFF", {"compression": "tiff_lzw"}),
        "tiff of lab": (colour.convert("LAB"), "TIFF", {}),
        "tiff of 16 bits": (deep, "TIFF", {}),
        "webp": (colour, "WEBP", {}),
        "webp, lossless": (half, "WEBP", {"lossless": True}),
        "ppm": (colour, "PPM", {}),
        "pgm of 16 bits": (deep, "PPM", {}),
    }
    for name, (image, kind, options) in files.items():
        image.save(folder / name, kind, **options)
    return {name: folder / name for name in files}


def test_grey_is_the_luma_of_what_is_read_in_colour(tmp_path: Path) -> None:
    for name, path in kinds(tmp_path).items():
        colour = np.asarray(decode(path, 3))
        assert colour.std() > 10, name
        np.testing.assert_array_equal(decode(path, 1), luma(colour), err_msg=name)


def decode_or_none(path: Path) -> Image.Image | None:
    """The image, or nothing if it is refused."""
    try:
        return decode(path, 3)
    except UnreadableImageError:
        return None


def test_a_truncated_file_is_refused_or_lacks_nothing_that_is_seen(tmp_path: Path) -> None:
    for name, path in kinds(tmp_path).items():
        size, whole = path.stat().st_size, np.asarray(decode(path, 3))
        # PNG and GIF end in a marker, BMP in padding; everything before is cut in forty places.
        for length in range(size - 1, size - 24, -1):
            os.truncate(path, length)
            image = decode_or_none(path)
            if image is not None:
                np.testing.assert_array_equal(image, whole, err_msg=f"{name}, {length} of {size} bytes")
        for length in range(size - 24, 0, -size // 40):
            os.truncate(path, length)
            assert decode_or_none(path) is None, f"{name}, {length} of {size} bytes"


@pytest.mark.parametrize(
    ("kind", "part", "reason"),
    [
        ("png", 0.5, "image file is truncated"),
        ("jpeg", 0.9, "image file is truncated ("),
        ("jpeg, progressive", 0.9, "image file is truncated ("),
        ("bmp", 0.5, "image file is truncated ("),
        ("tiff", 0.9, "image file is truncated ("),
        ("ppm", 0.5, "image file is truncated ("),
        ("ppm", 0.004, "Reached EOF while reading header"),
        ("tiff", 0.01, f"not a whole image of any of the formats {', '.join(FORMATS)}"),
    ],
)
def test_truncation_is_the_reason_that_is_given(tmp_path: Path, kind: str, part: float, reason: str) -> None:
    path = kinds(tmp_path)[kind]
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(UnreadableImageError) as caught:
        decode(path, 3)
    assert caught.value.reason.startswith(reason)
    assert str(caught.value) == f"{path}: {caught.value.reason}"


@pytest.mark.parametrize(
    "content",
    [b"", b"an image, trust me", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", bytes(1000)],
    ids=["empty", "text", "postscript", "zeros"],
)
def test_what_is_no_image_of_a_known_format_is_refused(file: Callable[[bytes], Path], content: bytes) -> None:
    path = file(content)
    with pytest.raises(UnreadableImageError) as caught:
        decode(path, 3)
    assert str(caught.value) == (
        f"{path}: not a whole image of any of the formats BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"
    )


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    for path, reason in {tmp_path: "Is a directory", tmp_path / "nothing": "No such file or directory"}.items():
        with pytest.raises(UnreadableImageError) as caught:
            decode(path, 3)
        assert (caught.value.path, caught.value.reason) == (path, reason)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (png(8, 0, b"", 800_000_000), "Image size (800000000 pixels) exceeds limit of 178956970 pixels"),
        (png(8, 0, b"", 90_000_000), "Image size (90000000 pixels) exceeds limit of 89478485 pixels"),
        (b"P5 999999999 1 255\n", "Image size (999999999 pixels) exceeds limit of 178956970 pixels"),
    ],
)
def test_a_decompression_bomb_is_refused(file: Callable[[bytes], Path], content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImageError) as caught:
        decode(file(content), 3)
    assert caught.value.reason.startswith(reason)


def test_pillow_does_not_warn_of_metadata_for_the_moment_only(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    Image.fromarray(COLOURS).save(path, exif=oriented(6).tobytes()[:-8])
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Image.open(path) as image:
            image.getexif()
        assert "Corrupt EXIF data" in str(caught[0].message)
        caught.clear()
        assert decode(path, 3).size == (31, 23)
        assert caught == []
    assert list(warnings.filters) == before


def test_the_error_survives_the_way_from_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImageError(Path("a/b c.png"), "image file is truncated")))
    assert (error.path, error.reason) == (Path("a/b c.png"), "image file is truncated")
    assert str(error) == "a/b c.png: image file is truncated"


def test_worker_processes_load_no_torch() -> None:
    code = "import sys, reparam.data.images, reparam.data.sources.folder; print('torch' in sys.modules)"
    source = Path(images.__file__).parents[2]
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(source)}, timeout=60
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (31, 23, 23),
        (31, 23, 8),
        (23, 31, 8),
        (31, 23, 64),
        (28, 20, 8),
        (20, 28, 8),
        (5, 5, 8),
        (80, 10, 7),
        (10, 80, 16),
        (218, 178, 64),
        (1, 1, 4),
    ],
)
def test_a_square_is_torchvisions_resize_and_centre_crop(mode: str, width: int, height: int, size: int) -> None:
    image = Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
    resized = functional.resize(image, [size], functional.InterpolationMode.BILINEAR, antialias=True)
    wanted = functional.pil_to_tensor(functional.center_crop(resized, [size]))
    found = to_square(image, size)
    assert (found.dtype, found.shape) == (np.uint8, (len(mode), size, size))
    assert found.flags.c_contiguous
    assert found.flags.writeable
    np.testing.assert_array_equal(found, wanted)


def test_an_image_that_fits_is_not_changed() -> None:
    pixels = RANDOM.integers(0, 256, (3, 17, 17), dtype=np.uint8)
    np.testing.assert_array_equal(to_square(Image.fromarray(pixels.transpose(1, 2, 0)), 17), pixels)
    np.testing.assert_array_equal(to_square(Image.fromarray(pixels[0]), 17), pixels[:1])


def test_a_square_is_cut_out_of_the_middle() -> None:
    strip = np.arange(50, dtype=np.uint8)[None].repeat(10, 0)
    assert to_square(Image.fromarray(strip), 10).tolist() == [[list(range(20, 30))] * 10]
    assert to_square(Image.fromarray(strip.T), 10).tolist() == [[[value] * 10 for value in range(20, 30)]]


def test_fine_stripes_become_grey_rather_than_aliases() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    np.testing.assert_allclose(to_square(Image.fromarray(stripes), 8), 127.5, atol=5)


@pytest.mark.parametrize("length", [1000, 60_000])
def test_the_middle_of_a_thin_strip_is_found_without_enlarging_it_whole(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resize, sizes = Image.Image.resize, []

    def watched(image: Image.Image, size: tuple[int, int], *options: Any) -> Image.Image:
        sizes.append(size)
        return resize(image, size, *options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    strip = np.zeros((1, length), np.uint8)
    strip[0, length // 2 - 8 : length // 2 + 8] = 200
    for pixels in (strip, strip.T):
        found = to_square(Image.fromarray(pixels), 256)
        assert found.shape == (1, 256, 256)
        assert set(found.ravel().tolist()) == {200}
    assert sizes == [(2048, 256), (256, 2048)]


def test_arrays_that_fit_are_returned_as_they_are(tmp_path: Path) -> None:
    grids = np.zeros((5, 3, 8, 8), np.uint8)
    assert convert_arrays(grids, 8, 3) is grids
    assert convert_arrays(grids, None, 3) is grids
    oblong = np.zeros((5, 1, 4, 8), np.uint8)
    assert convert_arrays(oblong, None, 1) is oblong


def test_grey_arrays_become_rgb_by_repetition() -> None:
    grids = RANDOM.integers(0, 256, (4, 1, 5, 7), dtype=np.uint8)
    np.testing.assert_array_equal(convert_arrays(grids, None, 3), grids.repeat(3, 1))


def test_rgb_arrays_become_grey_by_luma() -> None:
    grids = RANDOM.integers(0, 256, (4, 3, 5, 7), dtype=np.uint8)
    np.testing.assert_array_equal(convert_arrays(grids, None, 1), luma(grids.transpose(0, 2, 3, 1))[:, None])


@pytest.mark.parametrize("size", [None, 8, 20, 28])
@pytest.mark.parametrize(("before", "channels"), [(1, 1), (1, 3), (3, 1), (3, 3)])
@pytest.mark.parametrize("shape", [(28, 28), (28, 20), (20, 28)])
def test_arrays_fare_like_the_same_images_in_files(
    tmp_path: Path, size: int | None, before: int, channels: int, shape: tuple[int, int]
) -> None:
    grids = RANDOM.integers(0, 256, (3, before, *shape), dtype=np.uint8)
    found = convert_arrays(grids, size, channels)
    assert found.dtype == np.uint8
    for number, pixels in enumerate(grids):
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels[0] if before == 1 else pixels.transpose(1, 2, 0)).save(path)
        image = decode(path, channels)
        wanted = np.atleast_3d(image).transpose(2, 0, 1) if size is None else to_square(image, size)
        np.testing.assert_array_equal(found[number], wanted)


def test_no_arrays_are_no_arrays() -> None:
    assert convert_arrays(np.zeros((0, 3, 9, 9), np.uint8), 4, 1).shape == (0, 1, 4, 4)
