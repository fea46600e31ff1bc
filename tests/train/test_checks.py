"""Refusals of networks that have none of the parameters that others have."""

import math
from typing import Any

import pytest
from some_cards import image_facts, small_config
from torch import nn
from training import model_config, objective_config

from reparam.errors import ParamsError
from reparam.models.build import build_model
from reparam.models.networks import NETWORKS, Network
from reparam.train.checks import check_parts

SHAPE = (1, 8, 8)


class Bare(Network):
    """A network without parameters: batch norm alone, and latents that are an image."""

    def features(self, shape: tuple[int, ...]) -> tuple[nn.Sequential, int]:
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(math.prod(shape))), math.prod(shape)

    def decoder(self, _inputs: int, shape: tuple[int, ...]) -> nn.Sequential:
        return nn.Sequential(nn.Flatten(), nn.Unflatten(1, shape))

    def stack(self, _widths: tuple[int, ...]) -> nn.Sequential:
        return nn.Sequential()

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape


def refusal(
    changes: dict[str, Any], objective: dict[str, Any] | None = None, *, images: int = 10, processes: int = 1
) -> str:
    model = model_config(latent=None).model_copy(update={"network": "bare", **changes})
    config = small_config(model=model, objective=objective_config(**objective or {}))
    with pytest.raises(ParamsError) as caught:
        check_parts(build_model(model, SHAPE, classes=2), config, image_facts(), images=images, processes=processes)
    return str(caught.value).removeprefix("params.yaml: ")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "bare", Bare)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (
            {"latent": 3},
            "model.latent: wanted null, because 1 x 8 x 8 latents follow from model.network 'bare', found 3",
        ),
        (
            {"kind": "hierarchical"},
            "model.kind: wanted another one where latents are an image, found 'hierarchical', whose layers of latents "
            "are vectors",
        ),
        ({"condition": "label"}, "model.condition: wanted 'none' where latents are an image, found 'label'"),
        (
            {"kind": "vq"},
            "model.kind: wanted latents of 3 channels (model.vq.dimensions), because the code at each pixel has so "
            "many numbers, found 1",
        ),
    ],
)
def test_latents_that_are_an_image_blame_no_parameter_that_is_not_there(changes: dict[str, Any], wanted: str) -> None:
    if changes.get("kind") == "vq":
        changes = changes | {"vq": model_config(dimensions=3).vq}
    assert refusal(changes) == wanted


def test_a_batch_norm_blames_no_parameter_that_is_not_there() -> None:
    norm = "model.network: wanted one without batch norm"
    assert refusal({}, images=1).startswith(
        "train.batch_size: wanted more than one image in every batch with model.network 'bare', found "
    )
    assert refusal({}, processes=2) == (
        f"{norm} where several processes train, each of which sees a part of the batch, found 'bare'"
    )
    assert refusal({}, {"name": "contractive"}) == (
        f"{norm} with objective.name 'contractive', found 'bare': it makes an image's code depend on the other images "
        "of the batch"
    )
    assert refusal({"prior": "vamp"}) == (
        f"{norm} with model.prior 'vamp', whose images are no batch of the data, found 'bare'"
    )
