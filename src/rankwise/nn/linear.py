"""Frozen linear layers, their weights laid out beforehand as the CPU's matrix products want them.

A weight that never changes need not be laid out anew at every call, which is what an ordinary
product does with it. On x86 CPUs oneDNN takes weights in its own blocked layout, one for the
forward pass and one of the transpose for the backward pass. Elsewhere the weight stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.nn.activation import Activation, gelu_tanh

_ROWS = 1024
"""Rows of the input that oneDNN lays a weight out for; other numbers work as well."""

_FUSED: dict[Activation, tuple[str, str]] = {gelu_tanh: ("gelu", "tanh")}
"""Activations that oneDNN applies within a product, while the sums are still float32."""


class Linear:
    """A frozen linear layer. Layers that read the same input are held as one, side by side.

    Args:
        weight: (out, in).
        bias: (out,), or none.
        target modules: target module name -> its columns of the output.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, modules: dict[str, slice]) -> None:
        self._weight, self.bias, self.modules = weight, bias, modules
        self.n_out, self.n_in = weight.shape
        self._packed: Tensor | None = None  # holds the weight once it is there
        self._transposed: Tensor | None = None  # beside it, from the first backward pass on

    @property
    def weight(self) -> Tensor:
        """(out, in)."""
        return self._weight if self._packed is None else self._packed.to_dense()

    def merge(self, module: str, delta: Tensor) -> None:
        """Add `delta`, (out, in) float32, to the target module's weight, rounding once."""
        weight = self.weight
        rows = weight[self.modules[module]]
        rows.copy_(rows.float() + delta)
        self._replace(weight)

    def cast(self, dtype: torch.dtype) -> None:
        """Round weight and bias to another dtype."""
        self._replace(self.weight.to(dtype))
        self.bias = None if self.bias is None else self.bias.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """x (rows, in) -> (rows, out), differentiable in x."""
        if x.requires_grad and torch.is_grad_enabled():
            out: Tensor = _Frozen.apply(x, self)  # type: ignore[no-untyped-call]
            return out
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, in) -> (rows, out), without a gradient."""
        self._lay_out(x)
        if self._packed is None:
            return F.linear(x, self._weight, self.bias)
        return _packed_product(x, self._packed, self.bias)

    def activated(self, x: Tensor, activation: Activation) -> Tensor:
        """`activation` of `forward(x)`, (rows, out), without a gradient; in one pass where possible."""
        self._lay_out(x)
        if self._packed is None or activation not in _FUSED:
            return activation(self.forward(x))
        return _packed_product(x, self._packed, self.bias, *_FUSED[activation])

    def backward(self, dy: Tensor) -> Tensor:
        """The gradient of the input, (rows, in), from that of the output, (rows, out)."""
        if self._packed is None:
            return dy @ self._weight
        if self._transposed is None:
            self._transposed = _pack(self._packed.to_dense().T.contiguous())
        return _packed_product(dy, self._transposed, None)

    def _lay_out(self, x: Tensor) -> None:
        if self._packed is None and can_pack(x, self._weight):
            self._packed, self._weight = _pack(self._weight), self._weight.new_empty(0)

    def _replace(self, weight: Tensor) -> None:
        self._weight, self._packed, self._transposed = weight, None, None


class _Frozen(torch.autograd.Function):
    """A frozen linear layer: nothing is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Linear) -> Tensor:
        ctx.linear = linear
        return linear.forward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.linear.backward(grads[0]), None


def can_pack(x: Tensor, weight: Tensor) -> bool:
    """Whether this machine's products of the two take a weight in a layout of its own.

    The operators are those that torch.compile calls on CPUs. bfloat16 needs AVX-512 for them.
    """
    if x.device.type != "cpu" or x.dtype != weight.dtype:
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    able = torch.cpu.get_capabilities()
    if able.get("architecture") != "x86_64" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and bool(able.get("avx512_bw")))


@torch.no_grad()
def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
    return packed


def _packed_product(
    x: Tensor, packed: Tensor, bias: Tensor | None, activation: str = "none", form: str = ""
) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), packed, bias, activation, [], form)
    return y
