"""Every number that is reported, described once: pages, tables, verdicts and the documentation read it here."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """The meaning of a number, and how it is shown."""

    title: str
    text: str  # one sentence
    best: Literal["higher", "lower", "0", "1", ""] = ""  # which value is best; "": none is better than another
    unit: str = "nats per image"
    form: str = ".2f"
    applies: str = ""  # which models and settings have it; "": all
    depends: tuple[str, ...] = ()  # parameters of `evaluate` that change what is measured; "data": the training images
    split: str = ""  # whose images it is measured on, where that is not `evaluate.split`
    is_likelihood: bool = False  # whether values under discrete and continuous likelihoods cannot be compared
    facts: str = ""  # the field of the evaluation's details with the number of images, if not all were measured
    # Its value for each image, (N,), by a `Subject` that meets `needs`; None: `measures.py` adds it by its name.
    each: Callable[[Any], Any] | None = None
    needs: Callable[[Any], bool] = lambda _subject: True


DENSITY = "a posterior, a prior and a density of the pixels"
SERVED = f"{DENSITY}, where the encoder gets other pixels than in training"

likelihood = partial(Metric, applies=DENSITY, is_likelihood=True, needs=lambda subject: subject.has_elbo)
latents = partial(Metric, applies="a posterior and a prior", needs=lambda subject: not subject.is_code)
aggregated = partial(
    Metric,
    applies="one layer of latents with a posterior and a prior, and two images or more",
    facts="mutual_information",
)
codes = partial(Metric, unit="bits per image", form=".1f", applies="codes of a codebook (kinds fsq and vq)")
labels = partial(
    Metric,
    unit="share",
    form=".3f",
    applies="two classes or more that the model does not receive, on another split than train",
)
annealed = partial(
    Metric,
    applies="`evaluate.annealing.images` above 0",
    facts="annealed",
    depends=("annealing.images", "annealing.chains", "annealing.steps"),
)
generated = partial(
    Metric,
    unit="share",
    form=".3f",
    applies="`evaluate.generated.images` above 0",
    facts="generated",
    depends=("data", "generated.images", "generated.components", "neighbours"),
)
disentangled = partial(
    Metric,
    best="higher",
    unit="share",
    form=".3f",
    applies="`evaluate.disentanglement.images` above 0, and images with known factors",
    facts="disentanglement",
    depends=("disentanglement.images", "disentanglement.codes"),
)
reconstructed = partial(Metric, best="higher", applies="`preprocess.binarization` none")
exported = partial(Metric, text="Largest difference between onnxruntime and torch.", best="lower", form=".1e", unit="")
count = partial(Metric, unit="images", form=".0f")

GROUPS: dict[str, dict[str, Metric]] = {
    "Likelihood": {
        "elbo": likelihood(
            "ELBO",
            "Lower bound on log p(x), at beta = 1 whatever was trained; log p(x|y) of a conditional model.",
            "higher",
            each=lambda subject: -(subject.scores.reconstruction + subject.scores.kl),
        ),
        "nll": likelihood(
            "NLL",
            "Importance-sampled −log p(x), or −log p(x|y) of a conditional model.",
            "lower",
            depends=("nll_samples",),
        ),
        "ais_nll": annealed(
            "NLL by annealing",
            "−log p(x) by annealed importance sampling, a check of the NLL.",
            "lower",
            is_likelihood=True,
        ),
        "ais_minus_nll": annealed(
            "Annealing − importance",
            "Difference to the NLL of the same images, about 0 when both are right.",
            "0",
            depends=("annealing.images", "annealing.chains", "annealing.steps", "nll_samples"),
        ),
        "ais_gap": annealed(
            "Gap of annealing",
            "Distance of the two annealed bounds on simulated images: the annealed NLL can be off by as much.",
            "lower",
        ),
        "nll_effective_samples": likelihood(
            "Effective samples",
            "Effective number of importance samples of the median image; below 10, raise `evaluate.nll_samples`.",
            "higher",
            unit="samples",
            form=".1f",
            depends=("nll_samples",),
            is_likelihood=False,
        ),
        "bits_per_dim": Metric(
            "Bits per dimension",
            "The NLL in bits, per pixel and channel.",
            "lower",
            unit="bits",
            form=".3f",
            applies="a likelihood of the 256 grey values",
            depends=("nll_samples",),
        ),
        "reconstruction": Metric(
            "Reconstruction",
            "Expected −log p(x|z) of an image given its latents.",
            "lower",
            applies="a density of the pixels",
            is_likelihood=True,
            each=lambda subject: subject.scores.reconstruction,
            needs=lambda subject: subject.data.is_density,
        ),
        "bce": Metric(
            "Cross-entropy",
            "Cross-entropy of grey pixels. A Bernoulli is no density of them, so there is neither ELBO nor NLL.",
            "lower",
            applies="a Bernoulli likelihood of grey pixels",
            each=lambda subject: subject.scores.reconstruction,
            needs=lambda subject: not subject.data.is_density,
        ),
        "auroc": Metric(
            "Outliers recognised",
            "Chance that an outlier has a larger NLL than a scored image; 0.5 is guessing.",
            "higher",
            unit="share",
            form=".3f",
            applies="`evaluate.outliers` set",
            depends=("outliers", "nll_samples"),
        ),
    },
    "Fidelity": {
        "psnr": reconstructed(
            "PSNR", "Peak signal-to-noise ratio of decoded posterior means, at most 100 for an image.", unit="dB"
        ),
        "ssim": reconstructed(
            "SSIM",
            "Structural similarity of images and their decoded posterior means; 1: equal.",
            unit="",
            form=".3f",
            applies="`preprocess.binarization` none, and images of 11 x 11 pixels or more",
        ),
    },
    "Latents": {
        "kl": latents(
            "KL",
            "KL of the posterior to the prior: ELBO = −(reconstruction + KL).",
            each=lambda subject: subject.scores.kl,
        ),
        "mutual_information": aggregated(
            "Mutual information", "Information of the latents about the image, at most log N: one part of the KL."
        ),
        "marginal_kl": aggregated(
            "Marginal KL", "KL of the posterior of all images together to the prior: the other part of the KL."
        ),
        "total_correlation": aggregated(
            "Total correlation",
            "Dependence of the latent dimensions on each other, a part of the marginal KL; 0: they are independent.",
        ),
        "active_units": Metric(
            "Active units",
            "Latent dimensions whose posterior mean varies over images by more than `evaluate.active_variance`.",
            unit="dimensions",
            form=".0f",
            depends=("active_variance",),
        ),
        "codebook_usage": codes("Codebook usage", "Share of codes that occur.", "higher", unit="share", form=".3f"),
        "codebook_perplexity": codes(
            "Codebook perplexity",
            "Number of equally frequent codes with the same entropy; at most all codes.",
            "higher",
            unit="codes",
            form=".1f",
        ),
        "code_bits": codes("Bits of codes", "Bits of an image as codes, each with the same number of bits."),
        "code_entropy_bits": codes(
            "Bits of codes, by entropy",
            "Bits of an image where frequent codes take fewer bits; too low where images are few.",
        ),
    },
    "Representation": {
        "knn_accuracy": labels(
            "Nearest neighbours",
            "Share of images whose class is that of their neighbours among training images, by posterior means.",
            "higher",
            depends=("neighbours",),
        ),
        "probe_accuracy": labels(
            "Linear probe", "Share of images whose class a linear classifier of posterior means guesses.", "higher"
        ),
    },
    "Disentanglement": {
        "mig": disentangled(
            "Mutual information gap",
            "Mutual information of a factor and its best latent minus that of the second best, divided by the entropy "
            "of the factor, by a histogram; mean over factors (MIG, Chen et al. 2018, bins of Locatello et al. 2019).",
            depends=("disentanglement.images", "disentanglement.codes", "disentanglement.bins"),
        ),
        "dci_disentanglement": disentangled(
            "Disentanglement",
            "Whether gradient boosting uses a latent for one factor alone (DCI, Eastwood & Williams 2018).",
        ),
        "dci_completeness": disentangled(
            "Completeness", "Whether gradient boosting uses one latent alone for a factor (DCI)."
        ),
        "dci_informativeness": disentangled(
            "Informativeness", "Share of factors that gradient boosting guesses right from all latents (DCI)."
        ),
        "sap": disentangled(
            "Separated predictability",
            "Score of the latent that predicts a factor best minus that of the second best: squared correlation, or "
            "for a factor without order the balanced accuracy of thresholds (SAP, Kumar et al. 2018).",
        ),
        "factor_vae_score": disentangled(
            "FactorVAE score",
            "Share of groups of 64 images whose common factor is guessed from the latent that varies least "
            "(Kim & Mnih 2018).",
        ),
    },
    "Generation": {
        "pca_precision": generated("Precision", "Share of generated images that look real.", "higher"),
        "pca_recall": generated("Recall", "Share of real images that could have been generated.", "higher"),
        "pca_density": generated(
            "Density",
            "Real images near a generated one, divided by the number expected of real ones; about 1 is best.",
            "1",
            unit="",
        ),
        "pca_coverage": generated("Coverage", "Share of real images that have a generated one near them.", "higher"),
        "pca_frechet": generated(
            "Fréchet distance",
            "Between generated and real images, in principal components of pixels.",
            "lower",
            unit="",
            form=".2f",
            depends=("data", "generated.images", "generated.components"),
        ),
    },
    "Export": {
        "encoder_max_error": exported("Encoder parity"),
        "decoder_max_error": exported("Decoder parity"),
        "decoder_max_grey_levels": exported("Decoder parity of images", unit="grey levels", form=".0f"),
        "score_max_error": exported("Score parity", unit="nats"),
        "served_elbo": likelihood(
            "Served ELBO",
            "ELBO when the exported encoder sees the stored images of the test split instead of black and white draws.",
            "higher",
            applies=SERVED,
            split="test",
        ),
        "served_elbo_loss": likelihood(
            "Serving skew",
            "ELBO lost because the exported encoder sees stored images instead of black and white draws.",
            "lower",
            applies=SERVED,
            split="test",
            is_likelihood=False,
        ),
    },
    "Training": {
        "best_validation_loss": Metric(
            "Validation loss", "The objective at the epoch that was kept.", "lower", applies="a validation split"
        ),
        "best_epoch": Metric("Best epoch", "The epoch whose weights were kept.", unit="epochs", form=".0f"),
        "epochs": Metric("Epochs", "Epochs that were trained.", unit="epochs", form=".0f"),
    },
    "Data": {
        "images": count("Images", "Images that were scored."),
        "train_images": count("Training images", "Images in split train."),
        "validation_images": count("Validation images", "Images in split validation."),
        "test_images": count("Test images", "Images in split test."),
        "skipped_images": count("Skipped images", "Unreadable images that were left out."),
        "train_mean": Metric("Mean", "Mean of the training pixels, in [0, 1].", unit="", form=".3f"),
        "train_standard_deviation": Metric(
            "Standard deviation", "Standard deviation of the training pixels, in [0, 1].", unit="", form=".3f"
        ),
    },
}
MEASURED_BY = {"Training": "train", "Export": "export"}  # stages of groups; of all others: evaluate
METRICS: dict[str, Metric] = {name: metric for group in GROUPS.values() for name, metric in group.items()}
# Of one model, in a few lines.
HEADLINE = ("elbo", "reconstruction", "bce", "kl", "nll", "bits_per_dim", "psnr", "pca_frechet", "served_elbo_loss")
ERROR = "_se"  # after the name of a metric: its standard error
LAYER = "kl_layer_"  # of a hierarchy: the KL layer by layer
VALIDATION = "_validation"  # after the name of a metric: of the validation split
VALIDATED = ("elbo", "reconstruction", "bce", "kl")


def describe(name: str) -> Metric | None:
    """Look up a metric; return None if no metric has this name."""
    if name.startswith(LAYER) and name.removeprefix(LAYER).isdigit():
        number = name.removeprefix(LAYER)
        return latents(f"KL of layer {number}", "Its part of the KL; layer 1 is next to the image.")
    scored = name.removesuffix(VALIDATION)
    if scored != name and scored in VALIDATED:
        metric = METRICS[scored]
        text = "The same on the validation split, by which to choose among experiments."
        applies = ", ".join(part for part in (metric.applies, "a validation split") if part)
        return replace(metric, title=f"{metric.title}, validation", text=text, applies=applies, split="validation")
    return METRICS.get(name)


def stage_of(name: str) -> str:
    """Return the stage that measures a metric which can be optimised."""
    name = name.removesuffix(VALIDATION)
    return next((stage for group, stage in MEASURED_BY.items() if name in GROUPS[group]), "evaluate")


def members(group: str, names: Iterable[str]) -> Iterator[tuple[str, Metric]]:
    """Yield the metrics of a group that are there, in the order in which they are shown."""
    there = list(names)
    for name in GROUPS[group]:
        layers = [other for other in there if other.startswith(LAYER)] if name == "kl" else []
        for key in (name, f"{name}{VALIDATION}", *layers):
            if key in there and (metric := describe(key)):
                yield key, metric
