"""Frozen linear layers, their weights laid out once as the CPU's matrix products want them.

An ordinary product rearranges its weight at every call into blocks that fit the CPU's caches and vector
registers. A frozen weight never changes, so here it is rearranged once. On x86 CPUs oneDNN has a blocked
layout for this: one for the forward pass, and one of the transpose for the backward pass::

    Linear(weight)                       plain      (out, in)
      first forward on a fitting CPU ->  packed     replaces `plain`
      first backward                 ->  transposed joins `packed`

Elsewhere the weight stays plain. The three live in one immutable `_Layout`, and a new layout is
published by one assignment under a lock: threads that share a layer see the old layout or the new one,
never half of each.
"""

from __future__ import annotations

from threading import Lock
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.nn.activation import Activation, gelu_tanh

_ROWS = 1024
"""Rows of the input that oneDNN lays a weight out for; it works for any other number as well."""

_FUSED: dict[Activation, tuple[str, str]] = {gelu_tanh: ("gelu", "tanh")}
"""Activations that oneDNN applies within a product, while the sums are still float32."""


class _Layout(NamedTuple):
    """A weight (out, in) in memory: either `plain` or `packed` is there."""

    plain: Tensor | None
    packed: Tensor | None = None
    transposed: Tensor | None = None  # packed, (in, out)

    def dense(self) -> Tensor:
        """(out, in)."""
        if self.plain is not None:
            return self.plain
        assert self.packed is not None
        return self.packed.to_dense()


class Linear:
    """A frozen linear layer. Layers that read the same input are stored as one, side by side.

    Query, key and value of a Llama, say, are one product whose output has three ranges of columns.
    Forward and backward passes may run in several threads at once; `merge` and `cast` may not run
    beside them.

    Args:
        weight: (out, in).
        bias: (out,), or none.
        modules: target module name -> its columns of the output.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, modules: dict[str, slice]) -> None:
        self.bias, self.modules = bias, modules
        self.n_out, self.n_in = weight.shape
        self._layout = _Layout(weight)
        self._lock = Lock()

    @property
    def weight(self) -> Tensor:
        """(out, in)."""
        return self._layout.dense()

    def merge(self, module: str, delta: Tensor) -> None:
        """Add `delta`, (out, in) float32, to the target module's weight, rounding once."""
        weight = self.weight
        rows = weight[self.modules[module]]
        rows.copy_(rows.float() + delta)
        self._layout = _Layout(weight)

    def cast(self, dtype: torch.dtype) -> None:
        """Round weight and bias to another dtype."""
        self._layout = _Layout(self.weight.to(dtype))
        self.bias = None if self.bias is None else self.bias.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """x (rows, in) -> (rows, out), differentiable in x."""
        if x.requires_grad and torch.is_grad_enabled():
            out: Tensor = _Frozen.apply(x, self)  # type: ignore[no-untyped-call]
            return out
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, in) -> (rows, out), without a gradient."""
        layout = self._laid_out(x)
        if layout.packed is None:
            return F.linear(x, layout.dense(), self.bias)
        return _packed_product(x, layout.packed, self.bias)

    def activated(self, x: Tensor, activation: Activation) -> Tensor:
        """`activation` of `forward(x)`, (rows, out), without a gradient; in one pass where possible."""
        layout = self._laid_out(x)
        if layout.packed is None or activation not in _FUSED:
            return activation(self.forward(x))
        return _packed_product(x, layout.packed, self.bias, *_FUSED[activation])

    def backward(self, dy: Tensor) -> Tensor:
        """dx = dy W: the gradient of the input (rows, in) from that of the output (rows, out)."""
        layout = self._layout
        if layout.packed is None:
            return dy @ layout.dense()
        if layout.transposed is None:
            layout = self._lay_out_transposed()
        assert layout.transposed is not None
        return _packed_product(dy, layout.transposed, None)

    def _laid_out(self, x: Tensor) -> _Layout:
        """The layout for products with x. `can_pack` takes long enough to be asked outside the lock."""
        layout = self._layout
        if layout.plain is None or not can_pack(x, layout.plain):
            return layout
        with self._lock:
            if self._layout.plain is not None:  # no other thread was here first
                self._layout = _Layout(None, _pack(self._layout.plain))
            return self._layout

    def _lay_out_transposed(self) -> _Layout:
        with self._lock:
            if self._layout.transposed is None:
                transposed = _pack(self._layout.dense().T.contiguous())
                self._layout = self._layout._replace(transposed=transposed)
            return self._layout


class _Frozen(torch.autograd.Function):
    """A frozen linear layer. The weight needs no gradient, so nothing is saved for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Linear) -> Tensor:
        ctx.linear = linear
        return linear.forward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.linear.backward(grads[0]), None


def can_pack(x: Tensor, weight: Tensor) -> bool:
    """Whether this machine's products of the two take a weight in oneDNN's layout.

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
