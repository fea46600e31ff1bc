"""What is measured beside the likelihood: use of latents, labels, generated images, other data, annealed importance."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reparam.config import EvaluateConfig
from reparam.data.store import Images, Split
from reparam.evaluate.aggregate import aggregate, collapse_message, collapsed
from reparam.evaluate.annealing import (
    Annealed,
    Path,
    annealed_log_likelihood,
    concatenate,
    evaluations,
    image_chunks,
    reverse_log_likelihood,
)
from reparam.evaluate.importance import importance
from reparam.evaluate.metrics import Scores, scoring_in, standard_error
from reparam.evaluate.representation import Labelled, probe
from reparam.evaluate.sample_quality import fit_projection, pca_quality
from reparam.evaluate.subset import evenly_spaced
from reparam.evaluate.unusual import auroc
from reparam.evaluate.view import View
from reparam.models.build import AnyModel
from reparam.progress import counting
from reparam.runtime import random_stream

MIXED = 5_000  # images whose posteriors are mixed: the time is quadratic
LEARNED_FROM = 10_000  # images that classifiers and principal components learn from
LEAPFROG = 10  # steps of each transition of annealed importance sampling
FEW = 10  # effective samples: the estimate of a logarithm is then off by some 0.05 nats
# Beyond this share of log N, mutual information is mostly its bound.
SATURATED = 0.9


@dataclass
class Findings:
    """Metrics by name, what a reader must know about them, and why some are missing."""

    metrics: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)  # and why
    outlier_nll: Tensor | None = None  # (M,) of the images that should be unusual

    def add(self, name: str, value: float, error: float | None = None) -> None:
        self.metrics[name] = round(value, 4)
        if error is not None:
            self.metrics[f"{name}_se"] = round(error, 4)


@dataclass(frozen=True)
class Assessed:
    """A trained model, and the data that it is measured on."""

    model: AnyModel
    data: View  # of the scored split
    scored: Split
    train: Split
    scores: Scores
    settings: EvaluateConfig
    view: Callable[[Images], View]  # of other images, in the same form


def assess(subject: Assessed, codes: Callable[[int], Tensor], outliers: Images | None, *, is_density: bool) -> Findings:
    """Measure all that the settings ask for, each on a random stream of its own.

    `codes` draws so many latents to generate images from. `outliers` are images that the scored ones should be told
    from. Without `is_density`, whatever needs a likelihood is left out.
    """
    findings, seed = Findings(), subject.settings.seed
    effective = subject.scores.effective.median().item()
    if is_density and effective < FEW:  # not so of NaN
        findings.warnings.append(
            f"nll rests on {effective:.1f} of {subject.settings.nll_samples:,} samples in the median image, and is too "
            "high by what is missing; raise evaluate.nll_samples"
        )
    for name, measure in (("latents", _latents), ("labels", _labels)):
        with random_stream(seed, name):
            measure(subject, findings)
    if subject.settings.generated.images:
        with random_stream(seed, "generated"):
            _generated(subject, findings, codes)
    if not (is_density and subject.model.stochastic_layers):
        asked = {"outliers": outliers is not None, "annealed": subject.settings.annealing.images > 0}
        reason = "not measured: this model has no likelihood of these pixels"
        findings.not_measured |= {name: reason for name, is_asked in asked.items() if is_asked}
        findings.warnings += [f"{name}: {reason}" for name, is_asked in asked.items() if is_asked]
        return findings
    if outliers is not None:
        with random_stream(seed, "outliers"):
            _outliers(subject, findings, outliers)
    if subject.settings.annealing.images:
        with random_stream(seed, "annealed"):
            _annealed(subject, findings)
    return findings


def _latents(subject: Assessed, findings: Findings) -> None:
    """Split the KL, and warn of a collapsed posterior."""
    scores, model = subject.scores, subject.model
    if not model.stochastic_layers or len(scores.means) < 2:
        return  # a single image does not vary
    threshold = subject.settings.active_variance
    message = collapse_message(
        collapsed(scores.latent_kl, scores.latent_variance, threshold), scores.latent_kl.shape[0]
    )
    findings.warnings += [message] if message else []
    if model.stochastic_layers > 1:
        return  # below the top of a hierarchy, posteriors are no Gaussians of their own
    z = scores.means + torch.randn_like(scores.means) * (0.5 * scores.log_variances).exp()
    found = aggregate(scores.means, scores.log_variances, z, MIXED)
    for name in ("mutual_information", "marginal_kl", "total_correlation"):
        findings.add(name, getattr(found, name), getattr(found, f"{name}_se"))
    findings.details["mutual_information"] = {"bound": round(found.bound, 4), "images": found.images}
    if found.mutual_information > SATURATED * found.bound:
        findings.warnings.append(
            f"mutual_information is {found.mutual_information:.2f} nats where log N = {found.bound:.2f} is the most "
            "that so many images can show: it is too low, marginal_kl and total_correlation are too high by as much"
        )


def _labels(subject: Assessed, findings: Findings) -> None:
    """Guess labels from codes, where there are labels, and the images are not those that are learned from."""
    if subject.settings.split == "train":
        return
    rows = evenly_spaced(len(subject.train.labels), LEARNED_FROM).numpy()
    labels = subject.train.labels[rows]
    if len(np.unique(subject.train.labels)) < 2:
        return
    known = Labelled(_encode(subject, subject.train.images[rows]), labels)
    found = probe(known, Labelled(subject.scores.means, subject.scored.labels), subject.settings.neighbours, len(rows))
    if found.knn is None or found.linear is None:
        findings.not_measured["accuracy"] = str(found.reason)
        return
    findings.add("knn_accuracy", found.knn.value, found.knn.standard_error)
    findings.add("probe_accuracy", found.linear.value, found.linear.standard_error)


@torch.no_grad()
def _encode(subject: Assessed, images: Images) -> Tensor:
    seen = subject.view(images).seen(subject.settings.seed)
    return torch.cat([subject.model.posterior(x)[0].cpu() for x in seen])


@torch.no_grad()
def _generated(subject: Assessed, findings: Findings, codes: Callable[[int], Tensor]) -> None:
    """Compare generated images, decoder means as the figure shows them, with grey originals: equally many of both."""
    settings, scored = subject.settings, subject.scored.images
    rows = evenly_spaced(len(scored), settings.generated.images)
    real = _grey(scored[rows.numpy()])
    z = codes(len(rows)).to(subject.data.device)
    show = subject.data.pixels.unscaled
    fake = torch.cat([show(subject.model.decode(part)).cpu() for part in torch.split(z, settings.batch_size)])
    learned_from = evenly_spaced(len(subject.train.images), LEARNED_FROM).numpy()
    if len(learned_from) < 2 or len(rows) < 2:
        return
    project = fit_projection(_grey(subject.train.images[learned_from]), settings.generated.components)
    found = pca_quality(project(real), project(fake), settings.neighbours)
    for name, value in found.items():
        findings.add(name, value)
    findings.details["generated"] = {"images": len(rows), "components": project.axes.shape[1]}


def _grey(images: Images) -> Tensor:
    return torch.from_numpy(images.copy()).float() / 255


def _outliers(subject: Assessed, findings: Findings, outliers: Images) -> None:
    """Say how well the NLL tells other images from those of the split."""
    settings = subject.settings
    rows = evenly_spaced(len(outliers), len(subject.scores.nll)).numpy()
    with scoring_in(settings.precision, subject.data.device):
        parts = [
            importance(subject.model, x, settings.nll_samples).nll.cpu()
            for x in subject.view(outliers[rows]).seen(settings.seed)
        ]
    findings.outlier_nll = torch.cat(parts)
    findings.add("auroc", *auroc(subject.scores.nll, findings.outlier_nll))
    findings.details["outliers"] = {"images": len(rows), "nll": round(findings.outlier_nll.mean().item(), 4)}


def _annealed(subject: Assessed, findings: Findings) -> None:
    """Check the NLL by chains from the prior; bracket log p(x) where the posterior is known, on simulated images."""
    model, settings = subject.model, subject.settings
    rows = evenly_spaced(len(subject.data), settings.annealing.images)
    generator = torch.Generator().manual_seed(settings.seed)
    x = subject.data.pixels(subject.data.batches.take(rows), generator)
    forward = _anneal(subject, x)
    weighed = [importance(model, part, settings.nll_samples).nll.cpu() for part in torch.split(x, settings.batch_size)]
    findings.add("ais_nll", -forward.log_px.mean().item(), standard_error(forward.log_px))
    difference = -forward.log_px.cpu() - torch.cat(weighed)
    findings.add("ais_minus_nll", difference.mean().item(), standard_error(difference))

    latent = subject.scores.means.shape[1]
    with torch.no_grad():
        exact = torch.randn(len(rows), latent).to(x.device)
        simulated = model.likelihood.sample(model.output(exact))
    lower, upper = _anneal(subject, simulated), _anneal(subject, simulated, exact)
    gap = upper.log_px - lower.log_px
    findings.add("ais_gap", gap.mean().item(), standard_error(gap))
    acceptance = forward.acceptance.mean().item()  # NaN where a single step leaves nothing to move
    findings.details["annealed"] = {
        "images": len(rows),
        "chains": settings.annealing.chains,
        "steps": settings.annealing.steps,
        "leapfrog": LEAPFROG,
        "acceptance": None if math.isnan(acceptance) else round(acceptance, 3),
        "effective_chains": round(forward.effective_chains.median().item(), 1),
    }


def _anneal(subject: Assessed, x: Tensor, exact: Tensor | None = None) -> Annealed:
    """Run chains for each image; backwards, from an exact posterior sample, where there is one."""
    model, settings, found, done = subject.model, subject.settings.annealing, [], 0
    path = Path(settings.steps, LEAPFROG)
    with counting("annealing" if exact is None else "annealing back", len(x) * evaluations(path)) as advance:
        for part in image_chunks(x, settings.chains, model.likelihood.outputs):

            def log_likelihood(z: Tensor, part: Tensor = part) -> Tensor:
                advance(len(part))
                outputs = torch.unflatten(model.output(z.flatten(0, 1)), 0, z.shape[:2])
                return model.likelihood.log_prob(outputs, part)

            if exact is None:
                start = torch.randn(settings.chains, len(part), subject.scores.means.shape[1])
                found.append(annealed_log_likelihood(log_likelihood, start.to(x.device), path))
            else:
                start = exact[done : done + len(part)]
                found.append(reverse_log_likelihood(log_likelihood, start, settings.chains, path))
            done += len(part)
    return concatenate(found)
