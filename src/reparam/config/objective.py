"""Section `objective`."""

from typing import Annotated, Literal

from pydantic import Field

from reparam.config.section import Count, KeyOf, NotNegative, Section


class CapacityConfig(Section):
    """Block `capacity`."""

    nats: NotNegative
    """Final target of the KL, in nats. Source: Burgess et al. 2018, eq. 8."""

    epochs: Count
    """Epochs over which the target rises from 0."""

    weight: NotNegative
    """Weight of the distance between the KL and its target."""


class DenoisingConfig(Section):
    """Block `denoising`."""

    noise: Literal["gaussian", "salt_and_pepper", "masking"]
    """Noise on the encoder's input. Source: Vincent et al. 2010, sec. 3.3."""

    level: NotNegative
    """For gaussian, the standard deviation in ranges from black to white; for other noise, the share of pixels."""


class SparseConfig(Section):
    """Block `sparse`."""

    penalty: Literal["l1", "kl"]
    """Penalty of codes away from 0 (l1), or of mean activations of a sigmoid code away from rho (kl)."""

    rho: Annotated[float, Field(gt=0, lt=1)]
    """Target of the mean activation for penalty kl. Source: Ng 2011, sec. 3."""

    weight: NotNegative
    """Weight of the penalty."""


class ContractiveConfig(Section):
    """Block `contractive`."""

    weight: NotNegative
    """Weight of the squared Jacobian norm of the encoder. Source: Rifai et al. 2011, eq. 7."""


class MmdConfig(Section):
    """Block `mmd`."""

    weight: NotNegative
    """Weight of the squared MMD, which is at most 2. Useful values are in the hundreds."""


class PerceptualConfig(Section):
    """Block `perceptual`."""

    weight: NotNegative
    """Weight of the distance for each pixel and channel, beside -log p(x|z); 0 leaves it out. It goes with any
    objective whose gradient is that of its loss. Source: Zhang et al. 2018."""

    network: Literal["vgg", "alex", "squeeze"]
    """Network whose features are compared: VGG-16, AlexNet or SqueezeNet 1.1."""

    weights: str | None
    """File of that network's weights, .safetensors with torchvision's names; a relative path starts at the root of the
    repository. DVC does not watch its content: give a changed file another name."""


class ObjectiveConfig(Section):
    """The loss that training minimises, in nats per image."""

    name: Annotated[str, KeyOf("OBJECTIVES", "objectives.py")]
    """Loss that training minimises: reconstruction, and penalties or a bound of the likelihood."""

    samples: Count
    """Posterior samples per image and step; for iwae and dreg, K of the bound."""

    beta: NotNegative
    """Weight of the KL, or of the part of the KL that the objective is about; 1 for the ELBO. Objectives without such a
    weight ignore it."""

    kl: Literal["analytic", "monte_carlo"]
    """How the KL is computed: in closed form if there is one, or from samples. Objectives without the whole KL in their
    loss ignore it."""

    free_bits: NotNegative
    """KL of each latent dimension that costs nothing, in nats, as a batch mean. Objectives that ignore kl ignore it,
    too."""

    warmup: Literal["none", "linear", "cyclic"]
    """How beta rises from 0. Source: Bowman et al. 2016, sec. 3.1 (linear); Fu et al. 2019, sec. 4 (cyclic)."""

    warmup_epochs: Count
    """Epochs until beta is reached; for cyclic, the length of a cycle, which reaches beta in its middle."""

    capacity: CapacityConfig
    """For objective capacity."""

    denoising: DenoisingConfig
    """For objective denoising."""

    sparse: SparseConfig
    """For objective sparse."""

    contractive: ContractiveConfig
    """For objective contractive."""

    mmd: MmdConfig
    """For objective mmd."""

    perceptual: PerceptualConfig
    """Distance of images by features of another network (LPIPS), which needs the extra `perceptual`."""
