"""MLP activations, including SwiGLU. The tanh GELU computes its derivative in the forward pass.

The backward pass of GELU needs the derivative, not the input. Computing both in the forward pass costs
one exponential per element instead of two tanh evaluations, and reduces the backward pass to one product.
When no gradient is needed, `Linear.activated` fuses the GELU into the preceding matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.nn import fused, gradient

Activation = Callable[[Tensor], Tensor]

CHUNK = 1 << 17
"""Elements per chunk; small enough for the intermediate results to stay in cache."""

_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR


def gelu_tanh(x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), of x (rows, width) in any dtype.

    Hendrycks and Gimpel 2016, arXiv 1606.08415. Computed in float32 as x * sigmoid(2 t),
    where t is the argument of tanh.
    """
    out: Tensor = _GeluTanh.apply(x)  # type: ignore[no-untyped-call]
    return out


ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020, arXiv 2002.05202) of (rows, 2 * d_ff), gate first -> (rows, d_ff).

    The backward pass may overwrite `gate_up`.
    """
    if fused.used_on(gate_up):
        return fused.swiglu(gate_up)
    if not gradient.is_needed(gate_up):
        return _swiglu(gate_up)
    out: Tensor = _SwiGLU.apply(gate_up)  # type: ignore[no-untyped-call]
    return out


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate).mul_(up)


class _SwiGLU(torch.autograd.Function):
    """Saves its input, which the backward pass overwrites with the gradient.

    Nothing else reads the input. A new tensor of this size would cost time: the system clears its pages.
    """

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return _swiglu(gate_up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor]:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        silu = F.silu(gate)
        torch.ops.aten.silu_backward.grad_input(up.mul_(grads[0]), gate, grad_input=gate)
        torch.mul(grads[0], silu, out=up)
        return (gate_up,)


class _GeluTanh(torch.autograd.Function):
    """On a CPU, saves only the slope, in x's dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            ctx.save_for_backward(x)
            return F.gelu(x, approximate="tanh")
        y = torch.empty_like(x)
        slope = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        rows = max(1, CHUNK // x.shape[1])
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            _gelu_tanh(x[part], y[part], None if slope is None else slope[part])
        if slope is not None:
            ctx.save_for_backward(slope)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor]:
        (saved,) = ctx.saved_tensors
        if saved.device.type != "cpu":
            return (torch.ops.aten.gelu_backward(grads[0], saved, approximate="tanh"),)
        return (grads[0] * saved,)


def _gelu_tanh(x: Tensor, y: Tensor, slope: Tensor | None) -> None:
    """Write gelu(x) to `y` and its derivative to `slope`."""
    x = x.float()
    twice = torch.addcmul(x.new_tensor(_LINEAR), x, x, value=_CUBIC).mul_(x)  # 2 t
    if slope is None:
        y.copy_(twice.sigmoid_().mul_(x))
        return
    gate = twice.sigmoid()
    torch.mul(x, gate, out=y) if y.dtype == x.dtype else y.copy_(x * gate)
    third = twice.add_(x, alpha=-2 / 3 * _LINEAR)  # x (2 t)' / 3
    # gate + gate (1 - gate) x (2 t)'
    slope.copy_(torch.addcmul(gate, third, torch.addcmul(gate, gate, gate, value=-1), value=3))
