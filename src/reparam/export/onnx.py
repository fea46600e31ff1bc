"""The trained model as two ONNX graphs: images to posterior, latents to images."""

import gc
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.utils import Extractor
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


class BothGraphs(nn.Module):
    """Images and latents -> what the encoder puts out, and then the decoder."""

    def __init__(self, encoder: EncoderGraph, decoder: DecoderGraph) -> None:
        super().__init__()
        self.model, self.pixels = encoder.model, encoder.pixels  # registered once, so that weights have one name each
        self.graphs = (encoder, decoder)

    def forward(self, images: Tensor, latents: Tensor) -> tuple[Tensor, ...]:
        encoder, decoder = self.graphs
        return (*encoder(images), *decoder(latents))


def export_graphs(
    encoder: EncoderGraph, decoder: DecoderGraph, opset: int, metadata: dict[str, str], directory: Path
) -> None:
    """Write `encoder.onnx` and `decoder.onnx`.

    Their inputs are `images`, uint8 (batch, H, W, C), and `latents`, float32 (batch, D).
    """
    # Exported as one graph and cut in two, because most of the time goes into what the exporter does once for each.
    decoded = {f"decoded_{name}": name for name in decoder.outputs}
    both = Extractor(_export(BothGraphs(encoder, decoder).eval(), [*encoder.outputs, *decoded], opset))
    for file, (name, outputs) in {ENCODER: ("images", encoder.outputs), DECODER: ("latents", decoded)}.items():
        model = both.extract_model([name], list(outputs))
        _rename(model.graph, decoded)
        _forget_source_paths(model)
        for key, value in sorted(metadata.items()):
            model.metadata_props.add(key=key, value=value)
        onnx.save(model, directory / file)


def _export(both: BothGraphs, outputs: list[str], opset: int) -> Any:
    channels, height, width = both.model.shape
    images = torch.zeros(2, height, width, channels, dtype=torch.uint8)
    latents = torch.zeros(2, both.model.latent_size)
    gc.disable()  # the exporter imports and keeps so much that searching it for garbage takes a second
    try:
        program = torch.onnx.export(
            both,
            (images, latents),
            input_names=["images", "latents"],
            output_names=outputs,
            opset_version=opset,
            dynamo=True,
            dynamic_shapes=({0: "batch"}, {0: "batch"}),
            external_data=False,
            verbose=False,
        )
    finally:
        gc.enable()
    assert program is not None
    return program.model_proto


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Rename outputs, and drop the types that are declared twice, as outputs and as values in between."""
    for values in (value for node in graph.node for value in (node.input, node.output)):
        values[:] = [names.get(value, value) for value in values]
    for output in graph.output:
        output.name = names.get(output.name, output.name)
    declared = {value.name for value in (*graph.input, *graph.output)} | set(names)
    between = [value for value in graph.value_info if value.name not in declared]
    del graph.value_info[:]
    graph.value_info.extend(between)


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
    model.graph.name = "main_graph"
    model.producer_name, model.producer_version = "reparam", ""
