"""onnxruntime in its own process, as in an app: torch changes settings of its process, such as flushed denormals.

This file is also the program of that process, which imports nothing of ours.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = Mapping[str, Any]  # as numpy's `savez` is typed
INPUTS, OUTPUTS, PROBLEM = "inputs.npz", "outputs.npz", "problem.txt"  # in the scratch directory


class Runtime:
    """A process that runs graphs. It starts at once, so that its imports take no time later.

    Raises: RuntimeError if it ends, with the last line of what it said.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        with (scratch / PROBLEM).open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(scratch)],  # -P: or this folder's `onnx.py` would hide the library
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # closes its input, which ends it

    def run(self, path: Path, inputs: Arrays, outputs: Sequence[str]) -> list[Array]:
        """Compute some outputs of a graph; a file is read once."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        np.savez(self.scratch / INPUTS, **inputs)
        try:
            self._process.stdin.write(json.dumps({"path": str(path), "outputs": list(outputs)}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # and then it answers nothing, too
        if self._process.stdout.readline() != "done\n":
            self._process.wait()
            said = (self.scratch / PROBLEM).read_text(encoding="utf-8", errors="replace").strip()
            raise RuntimeError(f"{path.name}: onnxruntime ended: {said.rpartition(chr(10))[2]}")
        with np.load(self.scratch / OUTPUTS, allow_pickle=False) as found:
            return [found[name] for name in outputs]


def main(scratch: Path) -> None:
    """Answer requests, a line each, until there are no more."""
    import onnxruntime  # not above: the process that asks does not need it

    onnxruntime.set_default_logger_severity(3)
    sessions: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        path, outputs = request["path"], request["outputs"]
        if path not in sessions:
            sessions[path] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        with np.load(scratch / INPUTS, allow_pickle=False) as file:
            found = sessions[path].run(outputs, dict(file))
        np.savez(scratch / OUTPUTS, **dict(zip(outputs, found, strict=True)))
        sys.stdout.write("done\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
