"""Evaluation on a GPU that is not there: no tensor of the CPU meets one of the GPU, and no batch is waited for."""

import numpy as np
import pytest
import torch
from fake_gpu import GPU, fake_gpu, needs_cuda_build
from some_cards import image_facts
from subjects import settings, some_data, some_model, some_split
from torch import Tensor
from training import KINDS

from reparam.evaluate import gallery, measures
from reparam.evaluate.annealing import Joint, Schedule, annealed_log_likelihood
from reparam.evaluate.samplers import draw_codes
from reparam.evaluate.subject import Subject
from reparam.models import logistic
from reparam.models.latent import LatentModel
from reparam.models.likelihoods import LIKELIHOODS
from reparam.models.priors import PRIORS

pytestmark = needs_cuda_build
SHAPE = (1, 4, 4)
LATENT = 3
IMAGES = some_split([0, 1, 0, 1, 2, 2], SHAPE)  # in two batches
LITTLE = {"elbo_samples": 1, "nll_samples": 2, "annealing": {"images": 2, "chains": 2, "steps": 2}}
SETTINGS = settings(precision="bf16", generated={"images": 4}, **LITTLE)


def model_of(kind: str, likelihood: str = "gaussian_per_pixel") -> LatentModel:
    changes = {"prior": kind} if kind in PRIORS else KINDS[kind]
    return some_model(SHAPE, **changes, latent=LATENT, likelihood=likelihood).requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
def test_scoring_waits_for_the_draw_of_pixels_and_at_last_for_its_results(kind: str) -> None:
    model, data = model_of(kind), some_data(IMAGES, image_facts())
    with fake_gpu() as gpu:
        model, _ = model.to(GPU), data.pixels.to(GPU)
        gpu.waits.clear()
        scores = Subject.scored(model, data, SETTINGS).scores
    assert {values.device.type for values in vars(scores).values() if isinstance(values, Tensor)} == {"cpu"}
    of_batches = [wait for wait in gpu.waits if not wait.startswith("score: ")]
    assert of_batches == [
        "Batches.__init__: cpu to cuda",
        "Batches.visit: cpu to cuda",
        *["Pixels.forward: cpu to cuda"] * 2,
    ]
    assert gpu.waits[: len(of_batches)] == of_batches


# Of codes, of distributions, and with each prior that `top_down` has not.
@pytest.mark.parametrize("kind", ["autoencoder", "top_down", *(name for name in PRIORS if name != "standard")])
def test_measures_and_figures_keep_to_their_devices(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "LEAPFROG", 1)
    # What the CPU makes of numbers, of which there are none.
    monkeypatch.setattr(measures, "collapsed", lambda *_: [])
    monkeypatch.setattr(measures, "auroc", lambda *nlls: (0.5, torch.cat(nlls).mean().item()))
    monkeypatch.setattr(Subject, "pairs", lambda *_: (np.array([0]), np.array([1])))
    monkeypatch.setattr(gallery, "plot_deviations", lambda *_: None)
    model, data = model_of(kind), some_data(IMAGES, image_facts())
    with fake_gpu():
        model, _ = model.to(GPU), data.pixels.to(GPU)
        subject = Subject.scored(model, data, SETTINGS)
        found = measures.measure(subject, IMAGES).metrics.keys() | gallery.plot_all(subject).keys()
        gallery.tiles(subject)
        assert draw_codes(model, subject.images).device.type == "cuda"
    assert {"pca_precision", "interpolation", "sigma"} <= found
    assert ({"ais_gap", "auroc", "bounds"} <= found) == (kind != "autoencoder")


def test_chains_wait_for_nothing() -> None:
    model = model_of("vae")
    with fake_gpu() as gpu:
        model, x = model.to(GPU), torch.zeros(3, *SHAPE, device=GPU)

        def log_likelihood(z: Tensor) -> Tensor:
            return model.likelihood.log_prob(model.output(z.flatten(0, 1)).unflatten(0, z.shape[:2]), x)

        start = torch.randn(2, 3, LATENT, device=GPU)
        with gpu.never_waits():
            found = annealed_log_likelihood(
                Joint(model.prior, log_likelihood), start, Schedule(temperatures=2, leapfrog=2)
            )
    assert {values.device.type for values in vars(found).values()} == {"cuda"}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_pixels_are_drawn_and_described_where_the_decoder_put_them_out(
    likelihood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logistic, "GREYS", 4)  # which are looked at one after the other
    model = model_of("vae", likelihood)
    with fake_gpu():
        model = model.to(GPU)
        output = model.output(torch.zeros(2, LATENT, device=GPU))
        for describe in (model.likelihood.sample, model.likelihood.mean, model.likelihood.deviation):
            described = describe(output)
            assert (described.device.type, described.shape) == ("cuda", (2, *SHAPE))
