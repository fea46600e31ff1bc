"""Run an exported model with numpy and onnxruntime alone: no torch, nothing else of ours.

>>> model = Client("models/onnx")
>>> mean, log_variance = model.encode(images)  # uint8 (B, H, W, C)
>>> images = model.sample(16, seed=0)          # uint8 (16, H, W, C)
"""

import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from reparam.errors import DamagedInputError, MissingInputError, UserError

Images = npt.NDArray[np.uint8]  # (B, H, W, C)
Floats = npt.NDArray[np.float32]

FORMAT = 3  # of the metadata in the graphs


class Client:
    """An exported encoder and decoder.

    Units: images in grey levels 0..255; latents in standard deviations of the prior, which is N(0, 1) in each
    dimension.
    """

    def __init__(self, directory: str | PathLike[str], providers: tuple[str, ...] = ("CPUExecutionProvider",)) -> None:
        """Open `encoder.onnx` and `decoder.onnx`.

        Raises: MissingInputError, DamagedInputError.
        """
        directory = Path(directory)
        self._encoder = _open(directory / "encoder.onnx", providers)
        self._decoder = _open(directory / "decoder.onnx", providers)
        self.metadata: dict[str, Any] = json.loads(self._encoder.get_modelmeta().custom_metadata_map["reparam"])
        decoder: dict[str, Any] = json.loads(self._decoder.get_modelmeta().custom_metadata_map["reparam"])
        if decoder != self.metadata:
            raise DamagedInputError(
                f"{directory}: encoder.onnx and decoder.onnx come from different exports; run `dvc repro export`"
            )
        if self.metadata["format"] != FORMAT:
            raise DamagedInputError(
                f"{directory}: wanted a model of format {FORMAT}, found one of format {self.metadata['format']}; run "
                "`dvc repro export`, or take a `reparam.client` of the time when it was exported"
            )
        height, width, channels = self.metadata["image"]["shape"]
        self.image_shape: tuple[int, int, int] = (height, width, channels)
        self.latent_size: int = self.metadata["latent_size"]

    def encode(self, images: Images) -> tuple[Floats, Floats]:
        """Return mean and log variance of the posterior. Shapes: (B, H, W, C) -> (B, D), (B, D).

        An autoencoder's code has no variance: its logarithm is minus infinity.

        Raises: UserError where images are not uint8 of the model's size.
        """
        found = np.asarray(images)
        if found.dtype != np.uint8 or found.shape[1:] != self.image_shape:
            raise UserError(
                f"encode: wanted uint8 images of shape (B, {', '.join(map(str, self.image_shape))}), "
                f"found {found.dtype} {found.shape}"
            )
        mean, *log_variance = self._encoder.run(None, {"images": found})
        return mean, log_variance[0] if log_variance else np.full_like(mean, -np.inf)

    def decode(self, latents: npt.ArrayLike) -> Images:
        """Return the mean images as grey levels. Shapes: (B, D) -> (B, H, W, C).

        Raises: UserError where latents have another size than the model's.
        """
        images: Images = self._decode(latents, "images")
        return images

    def decode_mean(self, latents: npt.ArrayLike) -> Floats:
        """Return the mean images as floats in [0, 1]. Shapes: (B, D) -> (B, H, W, C)."""
        mean: Floats = self._decode(latents, "mean")
        return mean

    def reconstruct(self, images: Images) -> Images:
        """Encode and decode the posterior mean. Shapes: (B, H, W, C), unchanged."""
        return self.decode(self.encode(images)[0])

    def sample(self, count: int, seed: int) -> Images:
        """Decode draws from the prior. Shapes: (count, H, W, C).

        Raises: UserError where the model is an autoencoder, which has no prior.
        """
        if not self.metadata["has_prior"]:
            raise UserError(
                "sample: wanted a model with a prior, found an autoencoder; decode codes of your own instead"
            )
        return self.decode(np.random.default_rng(seed).standard_normal((count, self.latent_size)))

    def interpolate(self, first: Images, second: Images, steps: int) -> Images:
        """Decode a straight line between the posterior means of two images.

        Shapes: (H, W, C) twice -> (steps, H, W, C).
        """
        start, end = (self.encode(np.asarray(image)[None])[0] for image in (first, second))  # (1, D) each
        share = np.linspace(0, 1, steps)[:, None]
        return self.decode(start * (1 - share) + end * share)

    def _decode(self, latents: npt.ArrayLike, output: str) -> Any:
        found = np.asarray(latents, dtype=np.float32)
        if found.ndim != 2 or found.shape[1] != self.latent_size:
            raise UserError(f"decode: wanted latents of shape (B, {self.latent_size}), found {found.shape}")
        return self._decoder.run([output], {"latents": found})[0]


def _open(path: Path, providers: tuple[str, ...]) -> Any:
    if not path.exists():
        raise MissingInputError(f"{path}: not found; `dvc repro export` writes it")
    try:
        session = onnxruntime.InferenceSession(path, providers=list(providers))
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        raise DamagedInputError(f"{path}: onnxruntime cannot open it: {error}; run `dvc repro export`") from error
    if "reparam" not in session.get_modelmeta().custom_metadata_map:
        raise DamagedInputError(f"{path}: not exported by reparam, its metadata are missing; run `dvc repro export`")
    return session
