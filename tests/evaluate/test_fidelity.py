import math

import numpy as np
import pytest
import torch
from some_cards import image_facts
from subjects import settings, some_data, some_model, some_split
from torch import Tensor

from reparam.evaluate.fidelity import fidelity, signal_to_noise, structural_similarity
from reparam.evaluate.measures import measure
from reparam.evaluate.subject import Subject


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_signal_to_noise_ratio_of_equal_errors_is_known() -> None:
    image = some(2, 3, 4, 5) * 0.5
    found = signal_to_noise(torch.stack([image[0] + 0.1, image[1] - 0.01]), image)
    torch.testing.assert_close(found, torch.tensor([20.0, 40.0]), rtol=1e-4, atol=0)
    assert signal_to_noise(image, image).tolist() == [100.0, 100.0]


def test_flat_images_have_the_similarity_of_their_brightness() -> None:
    first, second = torch.full((1, 3, 11, 13), 0.4), torch.full((1, 3, 11, 13), 0.8)
    wanted = (2 * 0.4 * 0.8 + 1e-4) / (0.4**2 + 0.8**2 + 1e-4)
    assert structural_similarity(first, second).item() == pytest.approx(wanted, abs=1e-4)
    assert structural_similarity(first, first).tolist() == [1.0]


def test_the_similarity_of_one_window_is_that_of_its_weighted_moments() -> None:
    first, second = some(1, 1, 11, 11).double(), some(1, 1, 11, 11, seed=1).double()
    side = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights = np.outer(side, side) / side.sum() ** 2
    x, y = first.numpy()[0, 0], second.numpy()[0, 0]
    mx, my = (weights * x).sum(), (weights * y).sum()
    vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
    covariance = (weights * (x - mx) * (y - my)).sum()
    wanted = (2 * mx * my + 1e-4) * (2 * covariance + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert structural_similarity(first, second).item() == pytest.approx(wanted, abs=1e-12)


def test_both_agree_with_torchmetrics() -> None:
    from torchmetrics.functional import image  # here, because the import takes seconds

    first = some(5, 3, 32, 24)
    second = (first + 0.2 * some(5, 3, 32, 24, seed=1)).clamp(0, 1)
    # It also has windows that reach beyond the image, which it mirrors there.
    _, everywhere = image.structural_similarity_index_measure(second, first, data_range=1.0, return_full_image=True)
    within = everywhere[..., 5:-5, 5:-5].mean((1, 2, 3))
    torch.testing.assert_close(structural_similarity(second, first), within, rtol=1e-4, atol=1e-5)
    found = image.peak_signal_noise_ratio(second, first, data_range=1.0, dim=(1, 2, 3), reduction="none")
    torch.testing.assert_close(signal_to_noise(second, first), found)


@pytest.mark.parametrize("scaling", [(0.0, 1.0), (0.5, 0.5)])
def test_decoded_posterior_means_are_compared_with_images_as_they_are_stored(scaling: tuple[float, float]) -> None:
    shape, card = (1, 12, 14), image_facts("none", *scaling)
    subject = Subject.scored(
        some_model(shape, likelihood="laplace"), some_data(some_split([0, 1, 0], shape), card), settings()
    )
    found = measure(subject, None)
    images = torch.from_numpy(subject.data.scored.images / 255)
    x = (images - scaling[0]) / scaling[1]
    with torch.no_grad():
        mean = subject.model.decode(subject.model.posterior(x.float())[0]) * scaling[1] + scaling[0]
    errors = (mean.clamp(0, 1) - images).square().mean((1, 2, 3))
    each = [-10 * math.log10(error) for error in errors.tolist()]
    assert found.metrics["psnr"] == pytest.approx(np.mean(each), abs=1e-3)
    assert found.of_images["psnr"].tolist() == pytest.approx(each, abs=1e-3)
    assert found.metrics["psnr_se"] == pytest.approx(np.std(each, ddof=1) / 3**0.5, abs=1e-3)
    assert found.metrics["ssim"] == pytest.approx(fidelity(subject)["ssim"].mean().item(), abs=1e-4)


def test_images_below_the_window_have_no_similarity_and_black_and_white_ones_neither() -> None:
    small = Subject.scored(some_model(), some_data(some_split([0, 1])), settings())
    found = measure(small, None)
    assert "psnr" in found.metrics
    assert "ssim" not in found.metrics
    for binarization in ("dynamic", "threshold"):
        subject = Subject.scored(some_model(), some_data(some_split([0, 1]), image_facts(binarization)), settings())
        found = measure(subject, None)
        assert not {"psnr", "ssim"} & set(found.metrics)
