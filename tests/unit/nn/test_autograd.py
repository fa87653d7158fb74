"""The hand-written backward passes equal plain autograd through the formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.nn.activation import gelu_tanh, swiglu
from rankwise.nn.norms import rms_norm
from rankwise.nn.rotary import rotate
from tests.unit.nn.gradients import compare, leaves
from tests.unit.nn.models import close


def test_rms_norm() -> None:
    x, weight = leaves((7, 10), (10,))
    weight = weight.detach()
    for eps in (1e-6, 0.5):
        theirs = weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
        compare(rms_norm(x, weight, eps, torch.float32), theirs, (x,))


def test_rms_norm_into_bfloat16() -> None:
    x, weight = leaves((7, 10), (10,))
    weight = weight.detach()
    ours = rms_norm(x, weight, 1e-6, torch.bfloat16)
    assert ours.dtype == torch.bfloat16
    theirs = weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert close(ours, theirs, 0.01)
    (gradient,) = torch.autograd.grad(ours.float().sum(), x)
    assert gradient.dtype == torch.float32
    assert close(gradient, torch.autograd.grad(theirs.sum(), x)[0], 0.01)


@pytest.mark.parametrize("turned", [3, 5])
def test_rotate(turned: int) -> None:
    """Rotates the query and key heads of a row; the value heads are unchanged."""
    x, angles = leaves((7, 5, 8), (7, 4))
    cos, sin = angles.detach().cos()[:, None], angles.detach().sin()[:, None]
    a, b = x[:, :turned, :4], x[:, :turned, 4:]
    rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    compare(rotate(x, turned, cos, sin), torch.cat([rotated, x[:, turned:]], 1), (x,))


def test_rotate_a_part_of_each_head() -> None:
    """Rotates the first four of six elements; the last two are unchanged."""
    x, angles = leaves((7, 5, 6), (7, 2))
    cos, sin = angles.detach().cos()[:, None], angles.detach().sin()[:, None]
    a, b, rest = x[:, :3, :2], x[:, :3, 2:4], x[:, :3, 4:]
    rotated = torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)
    compare(rotate(x, 3, cos, sin), torch.cat([rotated, x[:, 3:]], 1), (x,))


@pytest.mark.parametrize("shape", [(1, 3), (7, 12), (300, 1000)])
def test_gelu(shape: tuple[int, int]) -> None:
    (x,) = leaves(shape)
    compare(gelu_tanh(3 * x), F.gelu(3 * x.double(), approximate="tanh"), (x,))


def test_gelu_far_out() -> None:
    """If the gate is closed or open, the value is 0 or x, and the slope is 0 or 1."""
    x = torch.tensor([[-1e4, -100.0, -12.0, 0.0, 12.0, 100.0, 1e4]], requires_grad=True)
    y = gelu_tanh(x)
    assert torch.equal(y.detach(), x.detach().clamp(min=0))
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, torch.tensor([[0.0, 0, 0, 0.5, 1, 1, 1]]))


def test_gelu_in_bfloat16() -> None:
    """Within bfloat16's rounding error, 1/256 of the value."""
    (x,) = leaves((40, 64))
    x = x.detach().bfloat16().requires_grad_()
    exact = x.detach().double().requires_grad_()
    ours, theirs = gelu_tanh(x), F.gelu(exact, approximate="tanh")
    assert close(ours, theirs, 1 / 256)
    mine, other = torch.autograd.grad(ours.sum(), x)[0], torch.autograd.grad(theirs.sum(), exact)[0]
    assert close(mine, other, 1 / 256)


def test_swiglu() -> None:
    (x,) = leaves((7, 12))
    gate, up = x[:, :6], x[:, 6:]
    compare(swiglu(x * 1), gate * torch.sigmoid(gate) * up, (x,))  # a copy, because it is overwritten


def test_swiglu_refuses_a_second_backward_pass() -> None:
    """The first one overwrites the input, so a second one would be wrong."""
    (x,) = leaves((7, 12))
    y = swiglu(x * 1).sum()
    torch.autograd.grad(y, x, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y, x)


def _rotated(x: Tensor) -> Tensor:
    angles = leaves((7, 1, 2))[0].detach()
    return rotate(x.view(7, 2, 6), 1, angles.cos(), angles.sin())


@pytest.mark.parametrize(
    "function", [swiglu, _rotated, lambda x: rms_norm(x, torch.arange(12.0), 1e-6, torch.float32)]
)
def test_without_a_gradient(function: Callable[[Tensor], Tensor]) -> None:
    """The autograd function is left out, and the result is bit-identical."""
    (x,) = leaves((7, 12))
    ours = function(x)
    assert ours.requires_grad
    assert torch.equal(function(x.detach().clone()), ours.detach())
