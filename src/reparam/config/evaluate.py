"""Section `evaluate`."""

from typing import Annotated, Literal

from pydantic import Field

from reparam.config.section import Count, KeyOf, MaybeCount, Positive, Section, Seed, Width


class MixtureConfig(Section):
    """Block `mixture`."""

    components: Width
    """Gaussians that are fitted to the codes of training images."""


class GeneratedConfig(Section):
    """Block `generated`."""

    images: MaybeCount
    """Generated images, which are compared with as many real ones; 0 compares none."""

    components: Width
    """Principal components of the pixels of training images, in which images are compared."""


class AnnealingConfig(Section):
    """Block `annealing`."""

    images: MaybeCount
    """Images whose NLL is checked, which is slow; 0 checks none."""

    chains: Count
    """Chains per image."""

    steps: Count
    """Distributions from the prior to the posterior. Source: Wu et al. 2017."""


class DisentanglementConfig(Section):
    """Block `disentanglement`."""

    images: MaybeCount
    """Images of which latents are compared with the factors that they were drawn from, at most; 0 compares none."""

    codes: Literal["mean", "sample"]
    """Latents of an image: the mean of its posterior, or a draw from it."""

    bins: Annotated[int, Field(ge=2, le=1000)]
    """Bins of equal width that a latent is put into for the mutual information gap. Source: Locatello et al. 2019."""


class GridConfig(Section):
    """Block `grid`."""

    steps: Annotated[int, Field(ge=2, le=40)]
    """Images on each side of the grid."""

    range: Positive
    """Standard deviations of the prior from the middle of the grid to its sides."""

    plane: Literal["dimensions", "principal"]
    """Axes of the grid: the two latent dimensions in most use, or two principal components of the codes."""


class EvaluateConfig(Section):
    """The evaluation of the trained model."""

    seed: Seed
    """Seed of all random numbers of the evaluation."""

    batch_size: Count
    """Images that are scored together."""

    split: Literal["train", "validation", "test"]
    """Images that are scored."""

    precision: Literal["fp32", "tf32", "bf16_matmul", "bf16"]
    """Arithmetic of likelihoods: full float32; rounded factors in matrix products (tf32: on a GPU); or autocast."""

    elbo_samples: Count
    """Posterior samples per image for ELBO, reconstruction and KL; a hierarchy needs at least two."""

    nll_samples: Count
    """Importance samples per image for the NLL, K. Source: Burda et al. 2016, eq. 8."""

    active_variance: Positive
    """A latent is active if the variance of its posterior mean over images exceeds this. Source: Burda et al. 2016,
    sec. 5.2."""

    neighbours: Count
    """Nearest neighbours, for the accuracy of classes and for precision, recall, density and coverage."""

    outliers: str | None
    """A data/processed of other images, which the NLL should distinguish from the scored ones; null measures none."""

    sampler: Annotated[str, KeyOf("SAMPLERS", "evaluate/samplers.py")]
    """Distribution of latents that images are generated from."""

    mixture: MixtureConfig
    """For sampler mixture."""

    generated: GeneratedConfig
    """Comparison of generated with real images."""

    annealing: AnnealingConfig
    """Check of the NLL by annealed importance sampling."""

    disentanglement: DisentanglementConfig
    """Comparison of latents with factors of variation, if the data set has some."""

    grid: GridConfig
    """Figure of the decoder over a plane of latents."""
