import io
import random
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from reparam.arrays import map_array, parse_arrays

WHOLE = io.BytesIO()
np.save(WHOLE, np.arange(12, dtype=np.uint8).reshape(3, 4))


def damaged(seed: int) -> bytes:
    """An array whose head, which numpy reads as Python, has other characters here and there, or that is cut."""
    chance, content = random.Random(seed), bytearray(WHOLE.getvalue())
    for _ in range(chance.randint(1, 4)):
        content[chance.randrange(128)] = chance.choice([chance.randrange(256), *b"(){}[]'\",:\\ \n\tx19"])
    return bytes(content[: chance.randrange(1, len(content))] if chance.random() < 0.1 else content)


def test_whole_arrays_are_read(tmp_path: Path) -> None:
    (tmp_path / "whole.npy").write_bytes(WHOLE.getvalue())
    np.savez(tmp_path / "whole.npz", first=np.zeros(2), second=np.ones((1, 3)))
    assert map_array(tmp_path / "whole.npy").tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    found = parse_arrays((tmp_path / "whole.npz").read_bytes())
    assert {name: values.tolist() for name, values in found.items()} == {"first": [0, 0], "second": [[1, 1, 1]]}


def test_several_arrays_are_not_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "several.npz", a=np.zeros(2))
    with pytest.raises(ValueError, match=r"^several arrays$"):
        map_array(tmp_path / "several.npz")


def test_damaged_arrays_are_read_or_refused_whatever_numpy_raises(tmp_path: Path) -> None:
    refused = {"alone": 0, "archived": 0}
    for seed in range(1_000):
        content, archive = damaged(seed), io.BytesIO()
        (tmp_path / "alone.npy").write_bytes(content)
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("a.npy", content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's and Python's, of what they then refuse
            try:
                map_array(tmp_path / "alone.npy")
            except ValueError:
                refused["alone"] += 1
            try:
                parse_arrays(archive.getvalue())
            except ValueError:
                refused["archived"] += 1
    assert min(refused.values()) > 500
