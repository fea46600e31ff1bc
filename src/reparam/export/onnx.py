"""The exported graphs as torch modules, with the facts of their inputs and outputs that apps need."""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reparam.cards.export import GraphFacts, TensorFacts
from reparam.data.pixels import Pixels
from reparam.models.codebook import Codebook
from reparam.models.draw import Draw
from reparam.models.latent import LatentModel

CODES = "codes"
DEVIATIONS = "prior standard deviations"
OWN_UNIT = "as drawn from the prior"
TABLE = "as in codebook.npz"
LABEL = "label"
LARGEST = 1e6  # of latents, as in client/checks.py; squares of far larger ones overflow in a layer that normalises
LOUDEST = 1e3  # of noise, as there


class Graph(nn.Module):
    """A function of tensors whose first dimension is the batch, in the order of `facts`."""

    def __init__(self, model: LatentModel, pixels: Pixels, facts: GraphFacts) -> None:
        super().__init__()
        self.model = model
        self.pixels = pixels
        self.facts = facts
        self.inputs = [tensor.name for tensor in facts.inputs]
        self.outputs = [tensor.name for tensor in facts.outputs]
        self.is_image = len(model.latent_shape) > 1  # whether latents are one

    @abstractmethod
    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs."""

    def served_mean(self, output: Tensor) -> Tensor:
        """Return the mean image in [0, 1] of a decoder's output. Shapes: (B, P*C, H, W) -> (B, C, H, W)."""
        mean = self.model.likelihood.mean(output)
        is_unit = self.pixels.is_identity and self.model.likelihood.needs_unit  # nothing is left to scale or to clip
        return mean if is_unit else self.pixels.unscaled(mean)


class EncoderGraph(Graph):
    """uint8 images (B, H, W, C) -> mean and log variance of q(z|x); for an autoencoder, the code alone.

    For a model with a codebook: the vectors of its codes, and the codes.
    Shapes: -> (B, D) each, or (B, C, H, W) if latents are an image, as in all graphs; codes (B, P) int64.
    """

    def __init__(self, model: LatentModel, pixels: Pixels, grey_pixels: str) -> None:
        unit = _unit(model)
        mean = _tensor("mean", model.latent_shape, unit, "mean of q(z|x), the code of an image")
        unit = f"log of squared {DEVIATIONS}" if unit == DEVIATIONS else ""
        log_variance = _tensor("log_variance", model.latent_shape, unit, "that of q(z|x)")
        if model.codebook:
            more: tuple[TensorFacts, ...] = (_codes(model.codebook),)
        else:
            more = (log_variance,) if model.stochastic_layers else ()
        inputs = (_images(model, "to encode"), *_label(model))
        super().__init__(model, pixels, GraphFacts(inputs=inputs, outputs=(mean, *more)))
        self.grey_pixels = grey_pixels

    def forward(self, images: Tensor, *label: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Compute the posterior of images."""
        vectors = self.model.posterior(self.seen(images), *label)[: 2 if self.model.stochastic_layers else 1]
        found = [values.reshape(-1, *self.model.latent_shape) if self.is_image else values for values in vectors]
        return (*found, self.model.codebook.codes(vectors[0])) if self.model.codebook else tuple(found)

    def seen(self, images: Tensor) -> Tensor:
        """Turn images into the input of the model. Shapes: (B, H, W, C) uint8 -> (B, C, H, W)."""
        grey = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        return self.pixels.scaled(serve(grey, self.grey_pixels))


class DecoderGraph(Graph):
    """Latents, shaped as the encoder's mean -> images as uint8 and their float means in [0, 1], both (B, H, W, C)."""

    def __init__(self, model: LatentModel, pixels: Pixels) -> None:
        latents = _tensor("latents", model.latent_shape, _unit(model), "codes to decode")
        latents = latents.model_copy(update={"range": (-LARGEST, LARGEST)})
        outputs = (_images(model, "the mean in grey levels"), _mean("mean", model))
        super().__init__(model, pixels, GraphFacts(inputs=(latents, *_label(model)), outputs=outputs))

    def forward(self, latents: Tensor, *label: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Compute the mean images of latents."""
        mean = self.served_mean(self.model.output(latents.flatten(1) if self.is_image else latents, *label))
        # Before channels come last: with one channel, onnxruntime then multiplies number by number, 30 times as slowly.
        return _channels_last((mean * 255).round().to(torch.uint8)), _channels_last(mean)


class ScoreGraph(Graph):
    """Images (B, H, W, C) and noise (B, D) -> mean image, -log p(x|z) and KL (B,) at one posterior sample.

    Without random numbers: the caller draws the noise.
    """

    def __init__(self, model: LatentModel, encoder: EncoderGraph) -> None:
        noise = "standard normal noise, or 0: z = mean + standard deviation * epsilon"
        if model.stochastic_layers > 1:
            noise += ", layer by layer, that next to the image first"
        nll = _tensor("negative_log_likelihood", (), "nats", "-log p(x|z)")
        meaning = "KL(q(z|x) || p(z)); of a hierarchy or a mixture, at these samples; -ELBO is the sum of both"
        kl = _tensor("kl", (), "nats", meaning)
        epsilon = _tensor("epsilon", model.latent_shape, "", noise)
        epsilon = epsilon.model_copy(update={"range": (-LOUDEST, LOUDEST)})
        facts = GraphFacts(
            inputs=(_images(model, "to score"), epsilon, *_label(model)),
            outputs=(_mean("reconstruction", model), nll, kl),
        )
        super().__init__(model, encoder.pixels, facts)
        self.encoder = encoder

    def forward(self, images: Tensor, epsilon: Tensor, *label: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Score images at the posterior samples that the noise makes."""
        x = self.encoder.seen(images)
        layers = self.model.layers(self.model.encode(x, *label), epsilon.flatten(1) if self.is_image else epsilon)
        output = self.model.output_at(layers[0].z, *label)
        draw = Draw.of(self.model.likelihood.log_prob(output, x), *layers)
        return _channels_last(self.served_mean(output)), -draw.log_px, draw.kl


def graphs_of(model: LatentModel, pixels: Pixels, grey_pixels: str, *, has_elbo: bool) -> dict[str, Graph]:
    """Return the graphs of a model by name; a score only where the likelihood is a density of such pixels."""
    encoder = EncoderGraph(model, pixels, grey_pixels)
    graphs: dict[str, Graph] = {"encoder": encoder, "decoder": DecoderGraph(model, pixels)}
    if has_elbo:
        graphs["score"] = ScoreGraph(model, encoder)
    return graphs


class AllGraphs(nn.Module):
    """The inputs of several graphs, each once -> the outputs of the first graph, then of the second, and so on."""

    def __init__(self, graphs: Mapping[str, Graph]) -> None:
        super().__init__()
        self.graphs = tuple(graphs.values())
        self.model, self.pixels = self.graphs[0].model, self.graphs[0].pixels  # so that weights have one name each
        # Each graph has its own input of labels: a shared one would tie the batch of the decoder to that of images.
        self.inputs = [
            [f"{name}_{tensor.name}" if tensor.name == LABEL else tensor.name for tensor in graph.facts.inputs]
            for name, graph in graphs.items()
        ]
        every = zip(self.inputs, self.graphs, strict=True)
        self.facts = dict(pair for names, graph in every for pair in zip(names, graph.facts.inputs, strict=True))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute them all."""
        given = dict(zip(self.facts, inputs, strict=True))
        every = zip(self.graphs, self.inputs, strict=True)
        return tuple(output for graph, names in every for output in graph(*(given[name] for name in names)))


def serve(grey: Tensor, grey_pixels: str) -> Tensor:
    """Treat grey values as the exported encoder does: `keep` or `threshold` at one half. Shapes: unchanged."""
    # Half of 255 lies between 127 and 128: `preprocess` puts the threshold in the same place.
    return (grey >= 0.5).to(grey.dtype) if grey_pixels == "threshold" else grey


def _channels_last(images: Tensor) -> Tensor:
    """Shapes: (B, C, H, W) -> (B, H, W, C)."""
    return images.permute(0, 2, 3, 1).contiguous()


def _unit(model: LatentModel) -> str:
    if model.codebook:
        return TABLE
    return DEVIATIONS if model.prior.is_standard else OWN_UNIT


def _images(model: LatentModel, meaning: str) -> TensorFacts:
    channels, *sides = model.shape
    return TensorFacts(
        name="images",
        dtype="uint8",
        shape=("batch", *sides, channels),
        range=(0, 255),
        unit="grey levels",
        meaning=meaning,
    )


def _codes(codebook: Codebook) -> TensorFacts:
    return TensorFacts(
        name=CODES,
        dtype="int64",
        shape=("batch", codebook.positions),
        range=(0, codebook.quantizer.size - 1),
        unit="rows of codebook.npz",
        meaning="codes of an image, whose vectors `mean` has one after the other"
        + (", a pixel each" if codebook.is_image else ""),
    )


def _label(model: LatentModel) -> tuple[TensorFacts, ...]:
    """Describe the input that only conditional models have."""
    if not model.condition.classes:
        return ()
    facts = _tensor(LABEL, (), "", "class of an image, as `classes` of the manifest numbers them")
    most = model.condition.classes - 1
    return (facts.model_copy(update={"dtype": "int64", "range": (0.0, float(most))}),)


def _mean(name: str, model: LatentModel) -> TensorFacts:
    channels, *sides = model.shape
    facts = _tensor(name, (*sides, channels), "from black to white", "mean of p(x|z)")
    return facts.model_copy(update={"range": (0.0, 1.0)})


def _tensor(name: str, shape: tuple[int, ...], unit: str, meaning: str) -> TensorFacts:
    return TensorFacts(
        name=name, dtype="float32", shape=("batch", *shape), range=(None, None), unit=unit, meaning=meaning
    )
