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
    """Number of generated images, and of real images that they are compared with; 0 compares none."""

    components: Width
    """Number of principal components of the pixels of training images; images are compared in these."""


class AnnealingConfig(Section):
    """Block `annealing`."""

    images: MaybeCount
    """Number of images whose NLL is checked, a slow check; 0 checks none."""

    chains: Count
    """Chains per image."""

    steps: Count
    """Distributions from the prior to the posterior. Source: Wu et al. 2017."""


class DisentanglementConfig(Section):
    """Block `disentanglement`."""

    images: MaybeCount
    """Largest number of images whose latents are compared with their factors; 0 compares none."""

    codes: Literal["mean", "sample"]
    """Latents of an image: the mean of its posterior, or a draw from it."""

    bins: Annotated[int, Field(ge=2, le=1000)]
    """Bins of equal width for each latent in the mutual information gap. Source: Locatello et al. 2019."""


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
    """Path of a data/processed with other images, to measure how well the NLL distinguishes them; a relative path
    starts at the root of the repository; null measures nothing."""

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
