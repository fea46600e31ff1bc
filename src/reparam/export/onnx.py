"""The trained model as two ONNX graphs: images to posterior, latents to images."""

from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from reparam.data.pixels import Pixels
from reparam.models.build import AnyModel

ENCODER = "encoder.onnx"
DECODER = "decoder.onnx"


class EncoderGraph(nn.Module):
    """uint8 images (B, H, W, C) -> mean and log variance of q(z|x), each (B, D); of an autoencoder, the code alone."""

    def __init__(self, model: AnyModel, pixels: Pixels, grey_pixels: str) -> None:
        super().__init__()
        self.model = model
        self.pixels = pixels
        self.grey_pixels = grey_pixels
        self.outputs = ("mean", "log_variance") if model.stochastic_layers else ("mean",)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        grey = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        return self.model.posterior(self.pixels.scaled(serve(grey, self.grey_pixels)))[: len(self.outputs)]


class DecoderGraph(nn.Module):
    """Latents (B, D) -> images as uint8 and their float means in [0, 1], both (B, H, W, C)."""

    outputs = ("images", "mean")

    def __init__(self, model: AnyModel, pixels: Pixels) -> None:
        super().__init__()
        self.model = model
        self.pixels = pixels

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.pixels.unscaled(self.model.decode(latents)).permute(0, 2, 3, 1)
        return (mean * 255).round().to(torch.uint8), mean.contiguous()


def serve(grey: Tensor, grey_pixels: str) -> Tensor:
    """Treat grey values as the exported encoder does: `keep` or `threshold` at one half. Shapes: unchanged."""
    # Half of 255 lies between 127 and 128: `preprocess` puts the threshold in the same place.
    return (grey >= 0.5).to(grey.dtype) if grey_pixels == "threshold" else grey


def export_encoder(graph: EncoderGraph, opset: int, metadata: dict[str, str], path: Path) -> None:
    """Write `encoder.onnx`. Its input is `images`, uint8 (batch, H, W, C)."""
    channels, height, width = graph.model.shape
    example = torch.zeros(2, height, width, channels, dtype=torch.uint8)
    _export(graph, example, "images", opset, metadata, path)


def export_decoder(graph: DecoderGraph, latent: int, opset: int, metadata: dict[str, str], path: Path) -> None:
    """Write `decoder.onnx`. Its input is `latents`, float32 (batch, D)."""
    _export(graph, torch.zeros(2, latent), "latents", opset, metadata, path)


def _export(graph: Any, example: Tensor, name: str, opset: int, metadata: dict[str, str], path: Path) -> None:
    program = torch.onnx.export(
        graph.eval(),
        (example,),
        input_names=[name],
        output_names=list(graph.outputs),
        opset_version=opset,
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    _forget_source_paths(model)
    for key, value in sorted(metadata.items()):
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)


def _forget_source_paths(model: Any) -> None:
    """Drop the exporter's notes on our source files: absolute paths would make the bytes depend on the directory."""
    for part in (model.graph, *model.functions):
        del part.metadata_props[:]
        for node in part.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for value in (*getattr(part, "value_info", ()), *getattr(part, "input", ()), *getattr(part, "output", ())):
            if hasattr(value, "metadata_props"):
                del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    del model.metadata_props[:]
    model.doc_string = ""
    model.producer_name, model.producer_version = "reparam", ""
