import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from reparam.models.networks import ACTIVATIONS, mlp

DEFINITIONS: dict[str, Callable[[float], float]] = {
    "relu": lambda x: max(0.0, x),
    "tanh": math.tanh,
    "softplus": lambda x: math.log1p(math.exp(x)),
    "gelu": lambda x: x * (1 + math.erf(x / 2**0.5)) / 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
}
POINTS = [-2.0, -0.5, 0.0, 0.5, 3.0]


def with_unit_weights(network: nn.Module) -> nn.Module:
    for name, parameter in network.named_parameters():
        nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
    return network


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_one_activation_stands_between_two_layers(name: str) -> None:
    found = with_unit_weights(mlp((1, 1, 1), ACTIVATIONS[name]))(torch.tensor(POINTS)[:, None])
    torch.testing.assert_close(found[:, 0], torch.tensor([DEFINITIONS[name](x) for x in POINTS]))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_last_layer_is_linear(name: str) -> None:
    found = with_unit_weights(mlp((1, 1), ACTIVATIONS[name]))(torch.tensor(POINTS)[:, None])
    assert found[:, 0].tolist() == POINTS


def test_layers_have_the_given_widths() -> None:
    layers = [layer for layer in mlp((5, 4, 3, 2), nn.ReLU) if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(5, 4), (4, 3), (3, 2)]


def test_a_network_maps_the_last_dimension_of_any_batch() -> None:
    assert mlp((5, 4, 2), nn.Tanh)(torch.zeros(7, 3, 5)).shape == (7, 3, 2)
