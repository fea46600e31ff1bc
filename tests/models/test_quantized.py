import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import small_section
from torch import Tensor
from vector_quantize_pytorch import FSQ

from reparam.config import ModelConfig
from reparam.errors import ParamsError
from reparam.models.build import build_model
from reparam.models.quantized import Quantized
from reparam.models.quantizers import FiniteScalars, LearnedCodes

SHAPE = (2, 4, 4)  # (C, H, W)
LEVELS = (8, 5, 4, 3)
every_kind = pytest.mark.parametrize("kind", ["fsq", "vq"])


def config(kind: str, **changes: Any) -> ModelConfig:
    small = {"kind": kind, "hidden": (6,), "latent": 8, "likelihood": "gaussian"}
    return small_section("model", **small | {"codes": 16, "commitment": 0.5, "restart": 0.0} | changes)


def model_of(kind: str, **changes: Any) -> Quantized:
    torch.manual_seed(0)
    model = build_model(config(kind, **changes), SHAPE)
    assert isinstance(model, Quantized)
    return model


def finite_scalars(levels: tuple[int, ...] = LEVELS) -> FiniteScalars:
    return FiniteScalars(config("fsq", levels=levels).fsq)


def learned_codes(**changes: Any) -> LearnedCodes:
    torch.manual_seed(0)
    return LearnedCodes(config("vq", **{"codes": 5, "dimensions": 3} | changes).vq)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(count: int = 6) -> Tensor:
    return torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(1))


# Finite scalars


def test_finite_scalars_are_bounded_and_rounded_as_in_the_paper() -> None:
    z = noise(50, 7, 4)
    # Mentzer et al. 2024, app. A.1, in float64.
    levels, eps = np.array(LEVELS), 1e-3
    half = (levels - 1) * (1 + eps) / 2
    offset = np.where(levels % 2 == 0, 0.5, 0.0)
    bounded = np.tanh(z.double().numpy() + np.arctanh(offset / half)) * half - offset
    wanted = np.round(bounded) / (levels // 2)
    basis = np.concatenate([[1], np.cumprod(levels[:-1])])
    numbers = ((np.round(bounded) + levels // 2) * basis).sum(-1)

    quantizer = finite_scalars()
    found = quantizer.quantized(z)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-7)
    assert torch.equal(quantizer.codes(found), torch.from_numpy(numbers).long())
    torch.testing.assert_close(quantizer(z), found, rtol=0, atol=1e-6)
    inner = FSQ(list(LEVELS))
    assert torch.equal(quantizer.codes(found), inner.codes_to_indices(found).long())


def test_each_number_of_levels_takes_its_values_about_zero() -> None:
    for level, values in {3: [-1, 0, 1], 4: [-1, -0.5, 0, 0.5], 5: [-1, -0.5, 0, 0.5, 1]}.items():
        found = finite_scalars((level,)).quantized(torch.linspace(-20, 20, 4001)[:, None])
        assert found.unique().tolist() == values


def test_the_gradient_through_rounding_is_that_of_the_bound() -> None:
    z = noise(20, 3, 4).requires_grad_()
    quantizer = finite_scalars()
    quantizer(z).sum().backward()
    levels = torch.tensor(LEVELS)
    half = (levels - 1) * 1.001 / 2
    offset = torch.where(levels % 2 == 0, 0.5, 0.0)
    slope = (1 - torch.tanh(z.detach() + torch.atanh(offset / half)).square()) * half / (levels // 2)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, slope)


# Learned codes


def test_a_vector_becomes_the_nearest_one_of_the_codebook() -> None:
    quantizer, z = learned_codes(), noise(40, 2, 3)
    nearest = (z[..., None, :] - quantizer.vectors()).square().sum(-1).argmin(-1)
    assert torch.equal(quantizer.codes(z), nearest)
    assert torch.equal(quantizer.quantized(z), quantizer.vectors()[nearest])
    wanted = quantizer.vectors()[nearest]  # a copy, because this step teaches the codebook
    torch.testing.assert_close(quantizer(z), wanted, rtol=0, atol=1e-6)


def test_gradients_pass_a_codebook_unchanged() -> None:
    z, slopes = noise(20, 2, 3).requires_grad_(), noise(20, 2, 3, seed=2)
    (learned_codes()(z) * slopes).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, slopes)


def averaged(counts: npt.NDArray[Any], sums: npt.NDArray[Any], z: Tensor, decay: float) -> tuple[Any, Any, Any]:
    """Move running averages towards those of a batch; return them, and the codebook that they make."""
    flat = z.double().numpy().reshape(-1, z.shape[-1])
    table = codebook(counts, sums)
    nearest = np.square(flat[:, None] - table).sum(-1).argmin(-1)
    of_batch = np.eye(len(table))[nearest]
    counts = decay * counts + (1 - decay) * of_batch.sum(0)
    sums = decay * sums + (1 - decay) * of_batch.T @ flat
    return counts, sums, codebook(counts, sums)


def codebook(counts: npt.NDArray[Any], sums: npt.NDArray[Any]) -> npt.NDArray[Any]:
    smooth = (counts + 1e-5) / (counts.sum() + len(counts) * 1e-5) * counts.sum()
    return sums / smooth[:, None]


def test_the_codebook_follows_its_vectors_as_running_averages() -> None:
    quantizer = learned_codes(decay=0.7)
    counts, sums = np.ones(5), quantizer.vectors().double().numpy()
    for seed in (1, 2):
        z = noise(8, 2, 3, seed=seed)
        quantizer(z)
        counts, sums, wanted = averaged(counts, sums, z, 0.7)
        np.testing.assert_allclose(quantizer.vectors().numpy(), wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(quantizer.averages.cluster_size[0].numpy(), counts, rtol=1e-6)


def test_codes_that_the_first_batch_does_not_use_start_at_its_vectors() -> None:
    quantizer, z = learned_codes(codes=50, restart=0.5), noise(8, 2, 3)
    used = quantizer.codes(z).unique()
    quantizer(z)
    found = quantizer.vectors()
    is_fresh = torch.ones(50, dtype=torch.bool).index_fill(0, used, value=False)
    distances = torch.cdist(found[is_fresh], z.flatten(0, 1)).min(1).values
    assert distances.max().item() < 1e-5
    assert len(found[is_fresh].unique(dim=0)) > 8
    assert quantizer.averages.cluster_size.min().item() > 0


def test_codes_in_use_are_let_be() -> None:
    quantizer = learned_codes(codes=2, dimensions=1, restart=0.5, decay=0.0)
    quantizer.averages.embed.copy_(torch.tensor([[[-1.0], [1.0]]]))
    quantizer(torch.tensor([[[-3.0], [-1.0], [2.0]]]))
    torch.testing.assert_close(quantizer.vectors(), torch.tensor([[-2.0], [2.0]]), rtol=1e-4, atol=0)
    quantizer(torch.tensor([[[2.5], [1.5], [1.0]]]))  # none is near the first: below half of the mean use
    fresh, other = quantizer.vectors().flatten().tolist()
    assert fresh in (2.5, 1.5, 1.0)
    assert other == pytest.approx(5 / 3, rel=1e-4)


# The model


@every_kind
def test_codes_and_vectors_are_one_to_one(kind: str) -> None:
    model = model_of(kind, levels=LEVELS)
    quantizer = model.quantizer
    assert torch.equal(quantizer.codes(quantizer.vectors()), torch.arange(quantizer.size))
    vectors, log_variance = model.posterior(images())
    codes = model.codebook.codes(vectors)
    assert codes.shape == (6, 2)
    assert codes.dtype == torch.int64
    assert torch.equal(quantizer.vectors()[codes].flatten(1), vectors)
    assert torch.equal(model.codebook.nearest(vectors), vectors)
    assert log_variance.exp().tolist() == [[0.0] * 8] * 6


@every_kind
def test_other_vectors_have_the_nearest_code(kind: str) -> None:
    model, z = model_of(kind), noise(30, 8)
    distances = (z.view(30, 2, 1, 4) - model.quantizer.vectors()).square().sum(-1)
    found = (z - model.codebook.nearest(z)).view(30, 2, 4).square().sum(-1)
    torch.testing.assert_close(found, distances.min(-1).values)


@every_kind
def test_it_scores_what_is_decoded_from_the_codes(kind: str) -> None:
    model, x = model_of(kind).eval(), images()
    draw = model.draw(x, x, 3)
    wanted = model.likelihood.log_prob(model.decoder(model.posterior(x)[0]), x)
    torch.testing.assert_close(draw.log_px, wanted.expand(3, 6))
    assert draw.kl.tolist() == draw.log_pz.tolist() == draw.log_qz.tolist() == [[0.0] * 6] * 3
    assert model.stochastic_layers == 0


def test_commitment_costs_the_squared_distance_of_each_image_to_its_codes() -> None:
    model, x = model_of("vq"), images()
    vectors, encoded = model.posterior(x)[0], model.encode(x)
    found, z = model.draw_from(encoded, x, 1).auxiliary, encoded[0][0]
    assert found is not None
    torch.testing.assert_close(found, 0.5 * (z - vectors).square().sum(1))
    [slope] = torch.autograd.grad(found.sum(), z)
    torch.testing.assert_close(slope, z - vectors)
    assert model_of("fsq").draw(x, x, 1).auxiliary is None
    assert model_of("vq", commitment=0.0).draw(x, x, 1).auxiliary is None


def test_only_a_draw_in_training_teaches_the_codebook() -> None:
    model, x = model_of("vq"), images()
    before = model.quantizer.vectors().clone()
    model.posterior(x)
    model.encode(x)
    model.eval().draw(x, x, 1)
    assert torch.equal(model.quantizer.vectors(), before)
    model.train().draw(x, x, 1)
    assert not torch.equal(model.quantizer.vectors(), before)


# What cannot be built


def test_latents_are_whole_codes() -> None:
    with pytest.raises(ParamsError, match=r"^params\.yaml: model\.latent: wanted a multiple of 4 \(the number of "):
        model_of("fsq", latent=6)
    with pytest.raises(ParamsError, match=r"wanted a multiple of 3 \(model\.vq\.dimensions\), .*, found 8$"):
        model_of("vq", dimensions=3)


def test_a_codebook_that_is_too_large_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"^params\.yaml: model\.fsq\.levels: wanted at most 65,536 .* 16,777,216;"):
        model_of("fsq", levels=(256, 256, 256))


def test_without_its_package_the_next_step_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "reparam.models.quantizers", raising=False)
    monkeypatch.delattr("reparam.models.quantizers", raising=False)
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(
        ParamsError, match=r"^params\.yaml: model\.kind: .* with 'vq', .*`pip install 'reparam\[discrete\]'`$"
    ):
        model_of("vq")


@every_kind
def test_an_image_of_latents_has_a_code_at_each_pixel(kind: str) -> None:
    network = {"network": "resnet", "channels": [4, 4], "groups": 2, "latent_channels": 3, "latent": None}
    model = model_of(kind, levels=(4, 5, 3), dimensions=3, **network).eval()
    assert (model.latent_shape, model.codebook.positions) == ((3, 2, 2), 4)
    z = noise(2, 12)
    split = model.codebook.split(z)
    assert torch.equal(split[:, 1], z.view(2, 3, 2, 2)[:, :, 0, 1])
    assert torch.equal(model.codebook.joined(split), z)
    vectors, _ = model.posterior(images())
    assert torch.equal(model.codebook.nearest(vectors), vectors)


@every_kind
def test_pixels_of_latents_have_as_many_channels_as_a_code_has_numbers(kind: str) -> None:
    network = {"network": "resnet", "channels": [4, 4], "groups": 2, "latent_channels": 2, "latent": None}
    wanted = r"model\.kind: wanted latents of 3 channels \(.*\), because .*, found 2; or set .*latent_channels to 3$"
    with pytest.raises(ParamsError, match=wanted):
        model_of(kind, levels=(4, 5, 3), dimensions=3, **network)
