"""Networks without an idea of what they are used for."""

import itertools

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def mlp(widths: tuple[int, ...], activation: type[nn.Module]) -> nn.Sequential:
    """Stack linear layers of the given widths, an activation between each two.

    Shapes: (B, widths[0]) -> (B, widths[-1]).
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])
