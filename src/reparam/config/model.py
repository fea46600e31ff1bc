"""Section `model`."""

from typing import Annotated, Literal

from pydantic import Field

from reparam.config.section import FEW, Decay, Depth, KeyOf, MaybeWidths, NotNegative, Section, Side, Width, Widths

Sigma = Annotated[float, Field(ge=1e-3, le=1e3)]


class MlpConfig(Section):
    """Block `mlp`."""

    hidden: MaybeWidths
    """Units of each fully connected layer of the encoder."""

    decoder_hidden: MaybeWidths | None
    """Units of each fully connected layer of the decoder; null takes those of the encoder in reverse."""

    activation: Annotated[str, KeyOf("ACTIVATIONS", "models/networks.py")]
    """Activation after each layer."""

    norm: Literal["none", "batch", "layer"]
    """Normalisation between a layer and its activation."""


class Convolutions(Section):
    """The fields of block `conv` beyond those of block `mlp`."""

    channels: Widths
    """Output channels of each strided convolution; the decoder mirrors them."""

    kernel: Side
    """Side of each kernel, in pixels."""

    stride: Side
    """Step of each kernel, in pixels: image sides must be divisible by stride ** len(channels)."""


class ConvConfig(MlpConfig, Convolutions):
    """Block `conv`: convolutions, and the fully connected layers behind them."""


class ResnetConfig(Section):
    """Block `resnet`."""

    channels: Widths
    """Channels at each resolution, from that of the image down; each next one has half the height and width, so image
    sides must be divisible by 2 ** (len(channels) - 1)."""

    depth: Depth
    """Residual blocks at each resolution. Source: He et al. 2016."""

    groups: Width
    """Number of groups of channels for the normalisation; it must divide each number of channels. Source: Wu & He
    2018."""

    attention: bool
    """Whether each pixel of the lowest resolution attends to all others there."""

    latent_channels: Width | None
    """Channels of the latents: they are then an image of the lowest resolution, and model.latent must be null. Null:
    the latents are a vector of model.latent dimensions."""


class AutoencoderConfig(Section):
    """Block `autoencoder`."""

    code: Literal["linear", "sigmoid"]
    """How the encoder's output becomes the code."""


class HierarchicalConfig(Section):
    """Block `hierarchical`."""

    upper: Widths
    """Latent dimensions of each layer above the one next to the image."""

    upper_hidden: MaybeWidths
    """Units of each fully connected layer of the networks between two layers of latents."""

    inference: Literal["bottom_up", "top_down"]
    """Direction of the posterior. Source: Burda et al. 2016, sec. 2 (bottom_up); Sonderby et al. 2016 (top_down)."""


class FsqConfig(Section):
    """Block `fsq`."""

    levels: Annotated[tuple[Annotated[int, Field(ge=3, le=256)], ...], Field(strict=False, min_length=1), FEW]
    """Values of each number of a code; their product is the number of codes. The latents are several codes in a row.
    Source: Mentzer et al. 2024, tab. 1."""


class VqConfig(Section):
    """Block `vq`."""

    codes: Width
    """Vectors in the codebook."""

    dimensions: Width
    """Numbers of each vector. The latents are several vectors in a row."""

    decay: Decay
    """Decay of the running averages that make the codebook. Source: van den Oord et al. 2017, app. A.1."""

    commitment: NotNegative
    """Weight of the squared distance between the encoder's vectors and those of their codes. Source: van den Oord et
    al. 2017, eq. 3."""

    restart: Decay
    """A code that is used less than this share of the mean is set to a vector of the batch; 0.0: none is.
    Source: Dhariwal et al. 2020, sec. 3.1."""


class PixelGaussianConfig(Section):
    """Block `gaussian_per_pixel`."""

    mean: Literal["linear", "sigmoid"]
    """How the decoder's output becomes the mean of a pixel; a sigmoid keeps it in [0, 1]."""


class GaussianConfig(PixelGaussianConfig):
    """Blocks `gaussian` and `laplace`."""

    sigma: Sigma
    """Standard deviation of each pixel, in units of the pixels that the model sees."""


class LearnedGaussianConfig(PixelGaussianConfig):
    """Block `gaussian_learned`."""

    sigma: Sigma
    """Standard deviation of each pixel before training, in units of the pixels that the model sees."""


class LogisticMixtureConfig(Section):
    """Block `logistic_mixture`."""

    components: Width
    """Logistic distributions that are mixed in each pixel and channel."""


class MixturePriorConfig(Section):
    """Block `mixture`."""

    components: Width
    """Gaussians, each with learned means, variances and weight."""


class VampConfig(Section):
    """Block `vamp`."""

    components: Width
    """Number of pseudo-inputs, that is learned images; their posteriors are mixed. Source: Tomczak & Welling 2018, sec.
    3."""

    grey: Annotated[float, Field(ge=0, le=1)]
    """Mean of their pixels before training, from black (0) to white (1): best that of the data."""

    deviation: NotNegative
    """Standard deviation of their pixels before training."""


class LabelConfig(Section):
    """Block `label`."""

    size: Width
    """Number of learned numbers that describe a label."""


class ModelConfig(Section):
    """The model: its kind, its networks, and the distributions of latents, and of pixels given latents."""

    kind: Annotated[str, KeyOf("KINDS", "models/build.py")]
    """Kind of model: one layer of latents (vae), several (hierarchical), codes without a prior (autoencoder), or codes
    from a codebook that is fixed (fsq) or learned (vq)."""

    latent: Width | None
    """Latent dimensions; for a hierarchy, those of the layer next to the image. Null if resnet.latent_channels is set,
    because they follow from it."""

    network: Annotated[str, KeyOf("NETWORKS", "models/networks.py")]
    """Layers of encoder and decoder."""

    likelihood: Annotated[str, KeyOf("LIKELIHOODS", "models/likelihoods.py")]
    """Distribution of pixels given latents."""

    prior: Annotated[str, KeyOf("PRIORS", "models/priors.py")]
    """Distribution of latents: N(0, I), or, for kind vae, a mixture that is learned."""

    condition: Literal["none", "label"]
    """Further input of encoder and decoder: none, or the label of the image, for a model of p(x|y)."""

    init: Literal["torch", "glorot", "he"]
    """Weights before training: torch's own, or drawn with zero biases. Source: Glorot & Bengio 2010, eq. 16 (uniform);
    He et al. 2015, eq. 10 (normal)."""

    start_at_mean: bool
    """Whether the untrained decoder's bias is the mean training image (conv, resnet: its mean in each channel)."""

    mlp: MlpConfig
    """For network mlp."""

    conv: ConvConfig
    """For network conv."""

    resnet: ResnetConfig
    """For network resnet."""

    autoencoder: AutoencoderConfig
    """For kind autoencoder."""

    hierarchical: HierarchicalConfig
    """For kind hierarchical."""

    fsq: FsqConfig
    """For kind fsq."""

    vq: VqConfig
    """For kind vq."""

    gaussian: GaussianConfig
    """For likelihood gaussian."""

    gaussian_learned: LearnedGaussianConfig
    """For likelihood gaussian_learned."""

    gaussian_per_pixel: PixelGaussianConfig
    """For likelihood gaussian_per_pixel."""

    laplace: GaussianConfig
    """For likelihood laplace."""

    logistic_mixture: LogisticMixtureConfig
    """For likelihood logistic_mixture."""

    mixture: MixturePriorConfig
    """For prior mixture."""

    vamp: VampConfig
    """For prior vamp."""

    label: LabelConfig
    """For condition label."""
