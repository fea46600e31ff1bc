"""Linear layers whose large products go to oneDNN."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from reparam.models import linear
from reparam.models.linear import Linear, Product

ROWS, INPUTS, OUTPUTS = 64, 300, 256  # more multiplications than WORTH_IT

needs_onednn = pytest.mark.skipif(not linear.IS_FASTER, reason="oneDNN is no faster than MKL on this processor")


def layers(inputs: int = INPUTS, outputs: int = OUTPUTS, *, bias: bool = True) -> tuple[nn.Linear, Linear]:
    """Return torch's layer and ours, with the same weights."""
    theirs, ours = nn.Linear(inputs, outputs, bias), Linear(inputs, outputs, bias)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def derivatives(layer: nn.Linear, x: Tensor) -> list[Tensor]:
    """Return output, gradients, and gradients of the gradients' squares."""
    x = x.clone().requires_grad_()
    y = layer(x)
    over = [x, *layer.parameters()]
    gradients = torch.autograd.grad(y.square().sum() / y.numel(), over, create_graph=True)
    seconds = torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), over)
    return [y, *gradients, *seconds]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Return the shapes of the first factors of all products that went to oneDNN."""
    shapes = list[torch.Size]()
    forward = Product.forward

    def counted(ctx: object, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append(a.shape)
        return forward(ctx, a, b, bias)

    monkeypatch.setattr(Product, "forward", staticmethod(counted))
    return shapes


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_a_large_layer_computes_what_torchs_does_with_first_and_second_derivatives(
    calls: list[torch.Size], bias: bool
) -> None:
    torch.manual_seed(0)
    theirs, ours = layers(bias=bias)
    x = torch.randn(ROWS, INPUTS)
    for wanted, found in zip(derivatives(theirs, x), derivatives(ours, x), strict=True):
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert calls[:3] == [(ROWS, INPUTS), (ROWS, OUTPUTS), (OUTPUTS, ROWS)]  # y, then the gradients of x and weight


@needs_onednn
def test_products_are_as_exact_as_torchs() -> None:
    torch.manual_seed(0)
    theirs, ours = layers()
    x = torch.randn(ROWS, INPUTS)
    exact = nn.functional.linear(x.double(), theirs.weight.double(), theirs.bias.double())
    errors = [(layer(x).double() - exact).abs().max().item() for layer in (theirs, ours)]
    assert errors[1] < 2 * errors[0]


@needs_onednn
def test_the_same_factors_give_the_same_bytes(calls: list[torch.Size]) -> None:
    torch.manual_seed(0)
    _, ours = layers()
    x = torch.randn(ROWS, INPUTS)
    first, second = derivatives(ours, x), derivatives(ours, x)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert calls


@needs_onednn
def test_only_what_can_be_trained_has_a_gradient(calls: list[torch.Size]) -> None:
    _, ours = layers()
    ours(torch.randn(ROWS, INPUTS)).sum().backward()  # pixels have no gradient
    assert calls == [(ROWS, INPUTS), (OUTPUTS, ROWS)]
    calls.clear()
    ours.requires_grad_(False)
    [gradient] = torch.autograd.grad(ours(x := torch.randn(ROWS, INPUTS, requires_grad=True)).sum(), x)
    assert calls == [(ROWS, INPUTS), (ROWS, OUTPUTS)]
    torch.testing.assert_close(gradient[0], ours.weight.sum(0), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_a_product_does_not_load_the_compiler() -> None:
    code = f"import sys, torch; from reparam.models.linear import Linear; layer = Linear({INPUTS}, {OUTPUTS}); "
    code += f"layer(torch.rand({ROWS}, {INPUTS})).sum().backward(); print('torch._dynamo' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False"]  # a second, and 160 MB


def test_whatever_is_not_a_large_float32_product_is_torchs_own(calls: list[torch.Size]) -> None:
    theirs, ours = layers()
    x = torch.randn(ROWS, INPUTS)
    few, cube = x[:4], x.view(4, ROWS // 4, INPUTS)
    for given in (few, cube, x[0]):
        assert torch.equal(ours(given), theirs(given))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.double()(x.double()), theirs.double()(x.double()))
    assert calls == []


def test_an_exported_layer_is_one_that_every_runtime_knows() -> None:
    _, ours = layers()
    batches = ({0: torch.export.Dim("batch")},)  # of any size: both sides of where oneDNN is worth it
    program = torch.export.export(ours, (torch.randn(ROWS, INPUTS),), dynamic_shapes=batches)
    assert program.module()(torch.randn(1, INPUTS)).shape == (1, OUTPUTS)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert operators == {"aten.linear.default"}


@pytest.mark.slow
@needs_onednn
def test_a_compiled_layer_computes_the_same_without_leaving_its_graph() -> None:
    torch.manual_seed(0)
    theirs, ours = layers()
    x = torch.randn(ROWS, INPUTS)
    found = []
    for layer in (theirs, torch.compile(ours, fullgraph=True)):
        layer.zero_grad()
        y = layer(x)
        y.square().mean().backward()
        found.append([y.detach(), *(parameter.grad.clone() for parameter in layer.parameters())])
    for wanted, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, wanted, rtol=1e-5, atol=1e-5)
