"""Linear layers whose float32 products go to oneDNN where that is faster than what torch takes by itself."""

import torch
from torch import Tensor, nn

# torch sends float32 products to MKL, which on AMD's processors leaves half of each vector register empty.
IS_FASTER = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
WORTH_IT = 1 << 22  # multiplications; below, both take as long, and a call of oneDNN costs more

_LIBRARY = torch.library.Library("reparam", "DEF")
_LIBRARY.define("product(Tensor a, Tensor b, Tensor? bias) -> Tensor")


@torch.library.impl(_LIBRARY, "product", "CPU")
def _product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


@torch.library.register_fake("reparam::product", lib=_LIBRARY)
def _like_product(a: Tensor, b: Tensor, _bias: Tensor | None) -> Tensor:
    return a.new_empty(len(a), len(b))


class Product(torch.autograd.Function):
    """a b' + bias. Shapes: (N, K), (M, K) and (M,) or none -> (N, M)."""

    @staticmethod
    def forward(ctx, a, b, bias):
        ctx.save_for_backward(a, b)
        return torch.ops.reparam.product(a, b, bias)

    @staticmethod
    def backward(ctx, gradient):
        a, b = ctx.saved_tensors
        of_a, of_b, of_bias = ctx.needs_input_grad
        # Transposed in memory, because oneDNN is slow with a first factor that lies the other way.
        turned = gradient.t().contiguous()
        return (
            Product.apply(gradient, b.t(), None) if of_a else None,
            Product.apply(turned, a.t(), None) if of_b else None,
            gradient.sum(0) if of_bias else None,
        )


class Linear(nn.Linear):
    """As torch's, and as exact. Shapes: (..., inputs) -> (..., outputs)."""

    def forward(self, x: Tensor) -> Tensor:
        if self._is_for_onednn(x):
            return Product.apply(x, self.weight, self.bias)
        return super().forward(x)

    def _is_for_onednn(self, x: Tensor) -> bool:
        return (
            IS_FASTER
            and x.dim() == 2
            and x.dtype == self.weight.dtype == torch.float32
            and x.device.type == "cpu"
            and x.numel() * self.out_features >= WORTH_IT
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_exporting()
        )
