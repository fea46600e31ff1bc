"""Section `objective`."""

from typing import Annotated, Literal

from pydantic import Field

from reparam.config.section import Count, KeyOf, NotNegative, Section


class CapacityConfig(Section):
    """Block `capacity`."""

    nats: NotNegative
    """KL that is wanted in the end, in nats. Source: Burgess et al. 2018, eq. 8."""

    epochs: Count
    """Epochs over which the wanted KL rises from 0."""

    weight: NotNegative
    """Weight of the distance between the KL and the wanted KL."""


class DenoisingConfig(Section):
    """Block `denoising`."""

    noise: Literal["gaussian", "salt_and_pepper", "masking"]
    """What is done to the encoder's input. Source: Vincent et al. 2010, sec. 3.3."""

    level: NotNegative
    """Standard deviation of Gaussian noise, in ranges from black to white; of other noise, the share of pixels."""


class SparseConfig(Section):
    """Block `sparse`."""

    penalty: Literal["l1", "kl"]
    """What is charged for: codes away from 0, or (of a sigmoid code) mean activations away from rho."""

    rho: Annotated[float, Field(gt=0, lt=1)]
    """Mean activation that penalty kl wants. Source: Ng 2011, sec. 3."""

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
    """File of that network's weights, .safetensors under torchvision's names. It is no dependency of DVC: name another
    one when its content changes."""


class ObjectiveConfig(Section):
    """The loss that training minimises, in nats per image."""

    name: Annotated[str, KeyOf("OBJECTIVES", "objectives.py")]
    """What the loss charges for, beside the reconstruction of images."""

    samples: Count
    """Posterior samples per image and step; of iwae and dreg, K of the bound."""

    beta: NotNegative
    """Weight of the KL, or of that part of it which the objective is about; 1 for the ELBO. Ignored by objectives
    whose loss has no such weight."""

    kl: Literal["analytic", "monte_carlo"]
    """How the KL is computed: in closed form if there is one, or from samples. Ignored by objectives whose loss does
    not have the KL as a whole."""

    free_bits: NotNegative
    """KL that each latent dimension has for free, in nats, as a mean over the batch; of objectives that have kl."""

    warmup: Literal["none", "linear", "cyclic"]
    """How beta rises from 0. Source: Bowman et al. 2016, sec. 3.1 (linear); Fu et al. 2019, sec. 4 (cyclic)."""

    warmup_epochs: Count
    """Epochs until beta is reached; of cyclic, the length of a cycle, in whose middle beta is reached."""

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
