"""Linear layers whose large products in float32 go to oneDNN, which is faster than what torch takes by itself."""

from typing import Any

import torch
from torch import Tensor, nn

# torch sends float32 products to MKL, which uses half of AVX-512 on AMD's processors: half the rate. (On Intel's, where
# both use all of it, nothing was measured.)
HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
IS_FASTER = HAS_ONEDNN and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
WORTH_IT = 1 << 22  # multiplications; smaller products take equally long, but oneDNN takes longer to call


def product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a b' + bias by oneDNN. Shapes: (N, K), (M, K), (M,) or None -> (N, M); all float32, on the CPU."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return result


# The same as an operator of ours: torch.compile can trace oneDNN's own only if the weights never change.
_opaque_product = torch.library.custom_op("reparam::product", product, mutates_args=(), device_types="cpu")


@_opaque_product.register_fake
def _shape_of_product(a: Tensor, b: Tensor, _bias: Tensor | None) -> Tensor:
    return a.new_empty(len(a), len(b))


class Product(torch.autograd.Function):
    """`product`, with derivatives of any order. Shapes as there."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the product, and keep its factors."""
        ctx.save_for_backward(a, b)
        y: Tensor = (_opaque_product if torch.compiler.is_compiling() else product)(a, b, bias)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Compute the gradients of what can be trained, by products that have gradients themselves."""
        a, b = ctx.saved_tensors
        of_a, of_b, of_bias = ctx.needs_input_grad
        return (
            Product.apply(gradient, b.t(), None) if of_a else None,
            # Transposed in memory, because a first factor that lies the other way can cost half of the rate.
            Product.apply(gradient.t().contiguous(), a.t(), None) if of_b else None,
            gradient.sum(0) if of_bias else None,
        )


class Linear(nn.Linear):
    """Compute the same as torch's layer, as exactly. Shapes: (..., inputs) -> (..., outputs)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map the last dimension."""
        if not self._is_for_onednn(x):
            return super().forward(x)
        y: Tensor = Product.apply(x, self.weight, self.bias)
        return y

    def _is_for_onednn(self, x: Tensor) -> bool:
        return (
            IS_FASTER
            and not torch.compiler.is_exporting()  # first, because the size of a batch is no number then
            and x.dim() == 2
            and x.numel() * self.out_features >= WORTH_IT
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
        )
