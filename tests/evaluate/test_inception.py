"""The network is initialised at random: no weights are downloaded."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception_v3

from reparam.errors import DamagedInputError, MissingInputError, UserError
from reparam.evaluate.inception import fid_torchvision, inception_features
from reparam.evaluate.sample_quality import frechet

WANTED = r"wanted the state_dict of torchvision\.models\.inception_v3"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """As torchvision publishes it: with the classifier on the side, and an input in units of ImageNet."""
    torch.manual_seed(0)
    network = inception_v3(weights=None, aux_logits=True, transform_input=True, init_weights=False).eval()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() == 4:
                weight *= 6**0.5  # from torch's initialisation to that of He et al. 2015: features must not vanish
    return network


@pytest.fixture(scope="module")
def weights(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


def images(count: int, channels: int = 3) -> Tensor:
    return torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(0))


def test_features_are_what_torchvisions_classifier_reads(network: nn.Module, weights: Path) -> None:
    seen: list[Tensor] = []
    hook = network.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = images(2)
    large = F.interpolate(pixels, (299, 299), mode="bilinear", antialias=True)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        network((large - mean) / deviation)
    hook.remove()
    state = torch.get_rng_state()
    features = inception_features(weights, pixels)
    assert torch.equal(torch.get_rng_state(), state)
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features, seen[0], rtol=1e-3, atol=1e-4)
    assert (features[0] - features[1]).abs().max().item() > 1e-3


def test_a_grey_image_is_red_green_and_blue_at_once(weights: Path) -> None:
    grey = images(2, channels=1)
    torch.testing.assert_close(inception_features(weights, grey), inception_features(weights, grey.repeat(1, 3, 1, 1)))


def test_the_distance_is_named_after_its_network(weights: Path) -> None:
    real, fake = images(5)[:2], images(5)[2:] / 2
    found = fid_torchvision(weights, real, fake)
    expected = frechet(inception_features(weights, real), inception_features(weights, fake))
    assert found == {"fid_torchvision": pytest.approx(expected, rel=1e-4)}
    assert expected > 0
    assert fid_torchvision(weights, real[:1], fake) == {}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=rf"nowhere\.pth: no such file; {WANTED}.*; save one there"):
        inception_features(tmp_path / "nowhere.pth", images(1))


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"cannot be read .*{WANTED}"):
        inception_features(tmp_path, images(1))


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 half an archive", b"\x80\x02}q\x00."])
def test_a_file_that_holds_no_weights_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "wrong.pth"
    path.write_bytes(content)
    with pytest.raises(DamagedInputError, match=rf"wrong\.pth: {WANTED}.*found something else \(.+\); name another"):
        inception_features(path, images(1))


@pytest.mark.parametrize(
    ("held", "found"),
    [
        ([1, 2], "a list"),
        ({"state_dict": {}}, "Missing key"),
        ({"conv1.weight": torch.zeros(3)}, "Missing key"),
        ({1: 2}, "Missing key"),
    ],
)
def test_other_content_is_named(held: object, found: str, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(held, path)
    with pytest.raises(DamagedInputError, match=rf"other\.pth: {WANTED}.*found something else \({found}"):
        inception_features(path, images(1))


def test_a_network_of_other_classes_is_not_torchvisions(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "ported.pth"
    changed = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    torch.save({**network.state_dict(), **changed}, path)
    with pytest.raises(DamagedInputError, match=r"size mismatch for fc\.weight.*\[1008, 2048\]"):
        inception_features(path, images(1))


def test_a_file_from_elsewhere_runs_no_code(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (trace,)

    torch.save({"fc.weight": Evil()}, path)
    with pytest.raises(DamagedInputError, match=r"evil\.pth"):
        inception_features(path, images(1))
    assert not trace.exists()
