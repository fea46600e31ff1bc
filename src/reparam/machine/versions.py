"""Return the installed versions of the package and of the libraries that results depend on."""

import platform
from contextlib import suppress
from importlib import metadata

NAME = "reparam"
LIBRARIES = (
    *("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pillow"),
    *("onnx", "onnxruntime", "onnxruntime-gpu", "dvc", "mlflow"),
)


def version() -> str:
    """Return the version of the package."""
    return metadata.version(NAME)


def versions() -> dict[str, str]:
    """Return the versions of Python, the package and the libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in (NAME, *LIBRARIES):
        with suppress(metadata.PackageNotFoundError):  # onnxruntime is there under one of two names
            found[name] = metadata.version(name)
    return found
