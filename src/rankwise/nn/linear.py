"""Frozen linear layers whose weights are packed once for the CPU's matrix products.

An ordinary matrix product repacks its weight on every call, into blocks that fit the CPU's caches and
vector registers. A frozen weight never changes, so here it is packed once. On x86 CPUs, oneDNN has a
blocked layout for the weight (forward pass) and for its transpose (backward pass)::

    Linear(weight)                     plain      (out, in)
      first forward, if supported  ->  packed     replaces `plain`
      first backward               ->  transposed added to `packed`

On other devices the weight stays plain. For prediction alone, `quantize` replaces either by int8. All four
are fields of an immutable `_Layout`, and a new layout is published by a single assignment under a lock:
threads that share a layer see either the old layout or the new one, never a mix.
"""

from __future__ import annotations

from threading import Lock
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.nn import gradient
from rankwise.nn.activation import Activation, gelu_tanh
from rankwise.nn.int8 import Inputs, Int8, OneScale, quantized

_ROWS = 1024
"""Number of input rows that oneDNN optimizes the layout for; any other number works as well."""

_FUSED: dict[Activation, tuple[str, str]] = {gelu_tanh: ("gelu", "tanh")}
"""Activations that oneDNN fuses into a product, applied to the float32 accumulators."""


class _Layout(NamedTuple):
    """The storage of a weight (out, in): `plain`, `packed` or `int8` is set."""

    plain: Tensor | None
    packed: Tensor | None = None
    transposed: Tensor | None = None  # packed, (in, out)
    int8: Int8 | None = None

    def dense(self) -> Tensor:
        """(out, in)."""
        if self.plain is not None:
            return self.plain
        if self.packed is None:
            raise RuntimeError("a layer in int8 only has a forward pass")
        return self.packed.to_dense()


class Linear:
    """A frozen linear layer. Layers with the same input are fused into one.

    In Llama, for example, query, key and value are one product whose output has three column ranges.
    Forward and backward passes are thread-safe; `merge`, `cast` and `quantize` must not run concurrently with
    them.

    Args:
        weight: (out, in).
        bias: (out,), or None.
        modules: target module name -> its output columns.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, modules: dict[str, slice]) -> None:
        self.bias, self.modules = bias, modules
        self.n_out, self.n_in = weight.shape
        self._layout = _Layout(weight)
        self._lock = Lock()

    @property
    def weight(self) -> Tensor:
        """The weight as a dense tensor (out, in)."""
        return self._layout.dense()

    def merge(self, module: str, delta: Tensor) -> None:
        """Add `delta` (out, in) float32 to the target module's weight, rounding once."""
        weight = self.weight
        rows = weight[self.modules[module]]
        rows.copy_(rows.float() + delta)
        self._layout = _Layout(weight)

    def cast(self, dtype: torch.dtype) -> None:
        """Cast weight and bias to `dtype`."""
        self._layout = _Layout(self.weight.to(dtype))
        self.bias = None if self.bias is None else self.bias.to(dtype)

    def quantize(self, inputs: Inputs) -> None:
        """Convert the weight to int8, unless that would not make the layer faster.

        From then on, a layer in int8 has no backward pass, and cannot be changed.

        Args:
            inputs: its inputs on calibration texts.
        """
        int8 = quantized(self.weight, self.bias, inputs)
        if int8 is not None:
            self._layout = _Layout(None, int8=int8)

    def __call__(self, x: Tensor) -> Tensor:
        """x (rows, in) -> (rows, out), differentiable in x, unless it is in int8."""
        if gradient.is_needed(x):
            out: Tensor = _Frozen.apply(x, self)  # type: ignore[no-untyped-call]
            return out
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """x (rows, in) -> (rows, out), without a gradient."""
        layout = self._laid_out(x)
        if layout.int8 is not None:
            return layout.int8(x)
        if layout.packed is None:
            return F.linear(x, layout.dense(), self.bias)
        return _packed_product(x, layout.packed, self.bias)

    def activated(self, x: Tensor, activation: Activation) -> Tensor:
        """`activation(forward(x))`, (rows, out), without a gradient; fused where possible."""
        layout = self._laid_out(x)
        if isinstance(layout.int8, OneScale) and activation in _FUSED:
            return layout.int8(x, *_FUSED[activation])
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
        """The layout for products with x. `can_pack` is slow, so it is called outside the lock."""
        layout = self._layout
        if layout.plain is None or not can_pack(x, layout.plain):
            return layout
        with self._lock:
            if self._layout.plain is not None:  # no other thread has packed it meanwhile
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
    """Whether oneDNN's packed layout can be used for products of x and this weight.

    The operators are those that torch.compile uses on CPUs. With bfloat16 they need AVX-512.
    """
    if x.device.type != "cpu" or x.dtype != weight.dtype:
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("architecture") != "x86_64" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and bool(capabilities.get("avx512_bw")))


@torch.no_grad()
def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
    return packed


def _packed_product(
    x: Tensor, packed: Tensor, bias: Tensor | None, activation: str = "none", form: str = ""
) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), packed, bias, activation, [], form)
    return y
