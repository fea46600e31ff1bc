"""Measure a model: likelihood, latents, labels, generated images, other data, annealed importance."""

import math
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from reparam.cards.evaluation import (
    AnnealingFacts,
    Bound,
    DisentanglementFacts,
    GeneratedFacts,
    MutualInformationFacts,
    OutlierFacts,
)
from reparam.data.store import Labels, Split, evenly_spaced
from reparam.distributed import ALONE, World
from reparam.evaluate.aggregate import aggregate, collapse_message, collapsed
from reparam.evaluate.annealing import (
    Annealed,
    Joint,
    Schedule,
    annealed_log_likelihood,
    concatenate,
    evaluations,
    image_chunks,
    reverse_log_likelihood,
)
from reparam.evaluate.codebook import codebook_collapse, codebook_use
from reparam.evaluate.disentanglement import disentanglement
from reparam.evaluate.fidelity import fidelity
from reparam.evaluate.findings import Findings
from reparam.evaluate.importance import importance, read_curve
from reparam.evaluate.outliers import auroc
from reparam.evaluate.representation import Labelled, probe
from reparam.evaluate.sample_quality import fit_projection, grey, pca_quality, standard_errors
from reparam.evaluate.scoring import dealt, scoring_in
from reparam.evaluate.subject import Subject
from reparam.metrics import METRICS, VALIDATED, VALIDATION
from reparam.progress import counting
from reparam.runtime import random_stream

MIXED = 2_500  # images whose posteriors are mixed, at most: the time grows with their square
MIXED_NUMBERS = MIXED**2 * 128  # pairs of them times latent dimensions, at most
DRAWN = 4  # samples of each posterior
LEARNED_FROM = 10_000  # images that classifiers learn from
ENCODED = 256  # images whose codes are looked up together
LEAPFROG = 10  # steps of each transition of annealed importance sampling
FEWEST = 30  # images that scores of disentanglement need
FEW = 10  # effective samples: the estimate of a logarithm is then off by some 0.05 nats
SATURATED = 0.9  # share of log N, its maximum, beyond which mutual information is not to be trusted
LOW_COVERAGE = 0.5  # share of the coverage of equally many real images; good models of the recipes reach 0.7 to 0.95
LOW_RECALL = 0.01  # share of the recall of equally many real images; 0 if all generated images are the same


def measure(subject: Subject, outliers: Split | None, world: World = ALONE) -> Findings:
    """Measure all that the settings ask for, each on a random stream of its own.

    `outliers` are images that the NLL should distinguish from the scored ones. Several processes score them together;
    the first one measures, and the others find nothing.
    """
    findings, settings, nll = Findings(), subject.settings, None
    if outliers is not None and subject.has_elbo and not subject.data.is_conditional:
        nll = _score_outliers(subject, outliers, world)  # at once, so that no process waits for the rest
    if not world.is_first:
        return findings
    for name, function in _asked(subject).items():
        with random_stream(settings.seed, name):
            function(subject, findings)
    if outliers is not None and subject.data.is_conditional:
        findings.leave_out("outliers", "not measured: a conditional model has p(x|y) alone, and outliers no label")
    elif nll is not None:
        _outliers(subject, findings, nll)
    if not subject.has_elbo:
        for name, is_asked in {"outliers": outliers is not None, "annealed": settings.annealing.images > 0}.items():
            if is_asked:
                reason = "not measured: this model has no likelihood of these pixels"
                findings.leave_out(name, reason, is_warned_of=True)
    return findings


def _asked(subject: Subject) -> dict[str, Callable[[Subject, Findings], None]]:
    """Return the measurements that apply to this model, its codes and its images."""
    settings, data = subject.settings, subject.data
    every: tuple[tuple[str, Callable[[Subject, Findings], None], object], ...] = (
        ("likelihood", _likelihood, True),
        ("latents", _latents, True),
        ("labels", _labels, True),
        ("codebook", _codebook, subject.model.codebook),
        ("validation", _validation, len(data.validation.images)),
        ("fidelity", _fidelity, not (data.is_black_and_white or data.pixels.is_drawn)),
        ("generated", _generated, settings.generated.images),
        ("annealed", _annealed, settings.annealing.images and subject.has_elbo),
        ("disentanglement", _disentangled, settings.disentanglement.images),
    )
    return {name: function for name, function, is_asked in every if is_asked}


def _likelihood(subject: Subject, findings: Findings) -> None:
    """Reduce scores to means over images. Units: nats per image."""
    scores = subject.scores
    for name, values in _of_images(subject).items():
        findings.add_mean(name, values)
    if subject.has_elbo:
        _nll(subject, findings)
    if len(scores.layer_sizes) > 1:
        for number, values in enumerate(scores.layer_kl.unbind(1), start=1):
            findings.add_mean(f"kl_layer_{number}", values)
    findings.add("active_units", int(subject.active.sum()))
    findings.add("images", len(scores.kl))


def _of_images(subject: Subject) -> dict[str, Tensor]:
    """Return the metrics that are means over images, for each image. Shapes: (N,) each."""
    return {name: metric.each(subject) for name, metric in METRICS.items() if metric.each and metric.needs(subject)}


def _validation(subject: Subject, findings: Findings) -> None:
    """Score the validation split as well: experiments are chosen by it, because the test split must not choose."""
    scores = _of_images(subject.on_validation())
    for name in VALIDATED:
        if name in scores:
            findings.add_mean(f"{name}{VALIDATION}", scores[name])


def _nll(subject: Subject, findings: Findings) -> None:
    """Estimate the NLL, also in bits, and check how far it can be trusted."""
    scores, count = subject.scores, subject.settings.nll_samples
    findings.add_mean("nll", scores.nll)
    if subject.model.likelihood.is_discrete:
        findings.add_mean("bits_per_dim", scores.nll / (math.log(2) * subject.data.scored.images[0].size))
    effective = scores.effective.median().item()
    findings.add("nll_effective_samples", round(effective, 1))
    findings.note(
        bounds=tuple(
            Bound(samples=samples, bound=round(bound, 4), bound_se=round(error, 4))
            for samples, bound, error in zip(*read_curve(scores.bounds, count), strict=True)
        )
    )
    if effective < FEW:
        findings.warn(
            f"nll has only {effective:.1f} effective samples of {count:,} in the median image, so it is too high; "
            "raise evaluate.nll_samples"
        )


def _latents(subject: Subject, findings: Findings) -> None:
    """Split the KL, and warn of a collapsed posterior."""
    scores = subject.scores
    if subject.is_code or len(scores.means) < 2:
        return  # a single image does not vary
    kl = scores.latent_kl.nan_to_num(0.0)  # NaN: dimensions have no KL each, so the variances of means decide alone
    still = collapsed(kl, scores.latent_variance, subject.settings.active_variance)
    if message := collapse_message(still, subject.model.latent_size):
        findings.warn(message)
    if subject.model.stochastic_layers > 1:
        return  # below the top of a hierarchy, posteriors are no Gaussians of their own
    noise = torch.randn(DRAWN, *scores.means.shape, dtype=scores.means.dtype)
    z = scores.means + noise * (0.5 * scores.log_variances).exp()
    mixed = min(MIXED, math.isqrt(MIXED_NUMBERS // subject.model.latent_size))
    found = aggregate(scores.means, scores.log_variances, z, subject.model.prior, mixed)
    for name in ("mutual_information", "marginal_kl", "total_correlation"):
        findings.add(name, getattr(found, name), getattr(found, f"{name}_se"))
    findings.note(mutual_information=MutualInformationFacts(bound=round(found.bound, 4), images=found.images))
    if found.mutual_information > SATURATED * found.bound:
        findings.warn(
            f"mutual_information is {found.mutual_information:.2f} nats, close to its maximum log N = {found.bound:.2f}"
            ": it is too low, and marginal_kl and total_correlation are too high by as much; evaluate more images"
        )


def _codebook(subject: Subject, findings: Findings) -> None:
    """Measure which codes the images use, and how often."""
    codebook, parts = subject.model.codebook, torch.split(subject.scores.means.float(), ENCODED)
    assert codebook is not None
    codes = torch.cat([codebook.codes(part.to(subject.images.device)).cpu() for part in parts])
    for name, value in codebook_use(codes, codebook.quantizer.size).items():
        findings.add(name, value)
    findings.warn(*codebook_collapse(codes, codebook.quantizer.size))


def _labels(subject: Subject, findings: Findings) -> None:
    """Guess labels from codes, if there are several labels and the scored images are not the training images."""
    train, scored = subject.data.train, subject.data.scored
    if subject.settings.split == "train" or len(np.unique(train.labels)) < 2:
        return
    if subject.data.is_conditional:
        findings.leave_out("accuracy", "not measured: the encoder receives the label that would be guessed")
        return
    learned = train.thinned(LEARNED_FROM)
    known = Labelled(subject.encode(learned), learned.labels)
    found = probe(known, Labelled(subject.scores.means, scored.labels), subject.settings.neighbours)
    if isinstance(found, str):
        findings.leave_out("accuracy", found)
        return
    for name, is_right in (("knn", found.knn), ("probe", found.linear)):
        share = is_right.double().mean().item()
        findings.add(f"{name}_accuracy", share, math.sqrt(share * (1 - share) / len(is_right)), is_right)


def _disentangled(subject: Subject, findings: Findings) -> None:
    """Compare latents with the factors that images were drawn from."""
    coded, settings = subject.coded, subject.settings.disentanglement
    reason = None
    if coded is None:
        reason = "wanted images with known factors, as of sprites, dsprites and a folder with attributes"
    elif len(coded.codes) < FEWEST:
        reason = f"wanted {FEWEST} images at least, found {len(coded.codes)}"
    elif not coded.facts:
        reason = "wanted a factor that differs between the images, found none"
    if coded is None or reason:
        findings.leave_out("disentanglement", f"not measured: {reason}", is_warned_of=True)
        return
    for name, value in disentanglement(coded, settings.bins, np.random.default_rng(subject.settings.seed)).items():
        findings.add(name, value)
    for factor in subject.data.factors or ():
        if factor not in coded.facts:
            findings.warn(f"disentanglement: {factor.name} is the same for all compared images, so no score counts it")
    facts = DisentanglementFacts(images=len(coded.codes), codes=settings.codes, bins=settings.bins)
    findings.note(disentanglement=facts)


def _fidelity(subject: Subject, findings: Findings) -> None:
    """Compare images with their reconstructions."""
    for name, values in fidelity(subject).items():
        findings.add_mean(name, values)


@torch.no_grad()
def _generated(subject: Subject, findings: Findings) -> None:
    """Compare generated images with scored ones, and for reference equally many training images with them."""
    settings, scored, train = subject.settings, subject.data.scored, subject.data.train
    count = min(len(scored.images), settings.generated.images)
    if count < 2 or len(train.images) < 2:
        return
    project = fit_projection(train.images, settings.generated.components)
    real, known = (project(grey(split.thinned(count).images)) for split in (scored, train))
    fake = project(subject.generate(count))
    found, errors = (function(real, fake, settings.neighbours) for function in (pca_quality, standard_errors))
    for name, value in found.items():
        findings.add(name, value, errors.get(name))
    floor = {name: round(value, 4) for name, value in pca_quality(real, known, settings.neighbours).items()}
    facts = GeneratedFacts(images=count, components=project.axes.shape[1], training_images=floor)
    findings.note(generated=facts)
    # Equally many real images would cover 1 - 2^-k: each of k neighbours comes from either set (Naeem et al. 2020).
    if found["pca_coverage"] < LOW_COVERAGE * (1 - 0.5**settings.neighbours):
        findings.warn(
            f"generated images come near only {found['pca_coverage']:.0%} of the real ones (pca_coverage): they vary "
            "too little, or look unlike them; pca_precision and pca_density may be high all the same"
        )
    elif found["pca_recall"] < LOW_RECALL * floor["pca_recall"]:
        findings.warn(
            f"hardly a real image lies among generated ones (pca_recall {found['pca_recall']:.3f}, of training images "
            f"{floor['pca_recall']:.3f}): they vary too little; pca_precision and pca_density may be high all the same"
        )


def _score_outliers(subject: Subject, outliers: Split, world: World) -> Tensor:
    """Return the NLL of other images, not more than were scored; several processes share them. Shapes: -> (M,)."""
    settings, view = subject.settings, subject.data.view(outliers.thinned(len(subject.images)))
    numbers, rows = world.deal(len(view), view.batches.batch_size)
    console = Console(stderr=True, quiet=not world.is_first)
    with (
        scoring_in(settings.precision, view.device),
        counting("scoring outliers", len(rows) * settings.nll_samples, console) as advance,
    ):
        batches = dealt(view, numbers, "outliers", settings.seed)
        own = importance(subject.model, batches, settings.nll_samples, advance).nll
    return world.put_together(rows, [own])[0].cpu()


def _outliers(subject: Subject, findings: Findings, nll: Tensor) -> None:
    """Measure how well the NLL distinguishes other images from those of the split. Shapes: (M,)."""
    findings.add_outliers(nll, *auroc(subject.scores.nll, nll))
    findings.note(outliers=OutlierFacts(images=len(nll), nll=round(nll.mean().item(), 4)))


def _annealed(subject: Subject, findings: Findings) -> None:
    """Check the NLL by chains from the prior, and bracket log p(x) of images that were drawn with known latents."""
    model, settings = subject.model, subject.settings
    rows = evenly_spaced(len(subject.images), settings.annealing.images)
    x, labels = subject.seen(rows), subject.data.scored.labels[rows]
    forward = _anneal(subject, x, labels)
    findings.add_mean("ais_nll", -forward.log_px)
    findings.add_mean("ais_minus_nll", -forward.log_px.cpu() - subject.scores.nll[rows])
    with torch.no_grad():
        exact = model.prior.sample(torch.empty(len(rows), subject.model.latent_size)).to(x.device)
        simulated = model.likelihood.sample(subject.given(labels).output(exact))
    lower, upper = _anneal(subject, simulated, labels), _anneal(subject, simulated, labels, exact)
    findings.add_mean("ais_gap", upper.log_px - lower.log_px)
    acceptance = forward.acceptance.mean().item()  # NaN where a single step leaves nothing to move
    facts = AnnealingFacts(
        images=len(rows),
        chains=settings.annealing.chains,
        steps=settings.annealing.steps,
        leapfrog=LEAPFROG,
        acceptance=None if math.isnan(acceptance) else round(acceptance, 3),
        effective_chains=round(forward.effective_chains.median().item(), 1),
    )
    findings.note(annealed=facts)


def _anneal(subject: Subject, x: Tensor, labels: Labels, exact: Tensor | None = None) -> Annealed:
    """Run chains for each image: from the prior, or from an exact posterior sample, if there is one, back to it.

    Shapes: x (B, C, H, W), labels (B,).
    """
    model, settings, found, done = subject.model, subject.settings.annealing, [], 0
    schedule = Schedule(settings.steps, LEAPFROG)
    with counting("annealing" if exact is None else "annealing back", len(x) * evaluations(schedule)) as advance:
        for part in image_chunks(x, settings.chains, model.likelihood.outputs):
            its = labels[done : done + len(part)]

            def log_likelihood(z: Tensor, part: Tensor = part, its: Labels = its) -> Tensor:
                advance(len(part))
                outputs = subject.given(np.tile(its, len(z))).output(z.flatten(0, 1))
                outputs = torch.unflatten(outputs, 0, z.shape[:2])
                return model.likelihood.log_prob(outputs, part)

            joint = Joint(model.prior, log_likelihood)
            if exact is None:
                like = torch.empty(settings.chains, len(part), subject.model.latent_size)
                found.append(annealed_log_likelihood(joint, model.prior.sample(like).to(x.device), schedule))
            else:
                start = exact[done : done + len(part)]
                found.append(reverse_log_likelihood(joint, start, settings.chains, schedule))
            done += len(part)
    return concatenate(found)
