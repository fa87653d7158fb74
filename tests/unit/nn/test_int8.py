"""Layers in int8 are close to those in float32, whatever the range of their inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.nn import int8
from rankwise.nn.activation import Activation, gelu_tanh, swiglu
from rankwise.nn.inference import bank_logits
from rankwise.nn.int8 import Inputs, OneScale, RowScales
from rankwise.nn.linear import Linear
from rankwise.nn.quantize import quantize
from tests.unit.nn import models
from tests.unit.nn.models import close

pytestmark = pytest.mark.skipif(not int8.is_supported(), reason="this CPU has no AVX512-VNNI")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def even(rows: int = 300) -> Tensor:
    """Inputs with two large columns."""
    return drawn(rows, 96, seed=1) * torch.tensor([1.0] * 94 + [2.0, 2.0])


def uneven(rows: int = 300) -> Tensor:
    """Inputs of which one row in ten is a thousand times larger, in a single column."""
    x = drawn(rows, 96, seed=2)
    x[::10, 7] *= 1000
    return x


def layer(x: Tensor, bias: bool = True) -> Linear:
    made = Linear(drawn(40, 96), drawn(40, seed=3) if bias else None, {})
    made.quantize(Inputs(x.abs().amax(0), x))
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("x", "kind"), [(even(), OneScale), (uneven(), RowScales)])
def test_products(x: Tensor, kind: type, bias: bool) -> None:
    made = layer(x, bias)
    assert isinstance(made._layout.int8, kind)
    exact = F.linear(x, drawn(40, 96), drawn(40, seed=3) if bias else None)
    for rows in (slice(None), slice(1, 2)):
        assert close(made.forward(x[rows]), exact[rows], 0.02)


@pytest.mark.parametrize("x", [even(), uneven()])
@pytest.mark.parametrize("activation", [gelu_tanh, swiglu])
def test_activations(x: Tensor, activation: Activation) -> None:
    """GELU may be part of the product; SwiGLU never is."""
    exact = activation(F.linear(x, drawn(40, 96), drawn(40, seed=3)))
    assert close(layer(x).activated(x, activation), exact, 0.03)


def test_rows_do_not_depend_on_the_number_of_rows() -> None:
    """Rows are rounded in parts that fit a cache."""
    for x in (even(4000), uneven(4000)):
        made = layer(x[:300])
        assert torch.equal(made.forward(x)[-5:], made.forward(x[-5:]))


def test_each_row_has_its_own_scale() -> None:
    """A large row leaves the error of the others as it is, and a row of zeros is zero."""
    x, made = uneven(), layer(uneven(), bias=False)
    x[3] = 0
    exact, ours = F.linear(x, drawn(40, 96)), made.forward(x)
    assert close(ours[1:3], exact[1:3], 0.02)
    assert not ours[3].any()


def test_inputs_beyond_the_calibrated_range_are_clamped() -> None:
    x = even()
    made = layer(x, bias=False)
    at_most, beyond = made.forward(127 / 128 * _largest(x)), made.forward(3 * _largest(x))
    assert close(beyond, at_most, 0.02)


def _largest(x: Tensor) -> Tensor:
    """One row with the largest smoothed input in every column."""
    smoothing = x.abs().amax(0) ** 0.8 / drawn(40, 96).abs().amax(0) ** 0.2
    return (x.abs().amax(0) / smoothing).amax() * smoothing[None]


@pytest.mark.parametrize(("x", "kind"), [(even(), OneScale), (uneven(), RowScales)])
def test_wide_layers_in_bfloat16(x: Tensor, kind: type) -> None:
    made = Linear(drawn(1024, 96).bfloat16(), None, {})
    made.quantize(Inputs(x.abs().amax(0), x.bfloat16()))
    assert isinstance(made._layout.int8, kind)
    assert close(made.forward(x.bfloat16()).float(), F.linear(x, drawn(1024, 96)), 0.03)


def test_narrow_layers_in_bfloat16_with_uneven_inputs_stay() -> None:
    """A scale per row would cost more than the product saves."""
    x, weight = uneven().bfloat16(), drawn(40, 96).bfloat16()
    made = Linear(weight, None, {})
    made.quantize(Inputs(x.abs().amax(0).float(), x))
    assert made._layout.int8 is None
    assert torch.equal(made.forward(x), Linear(weight, None, {}).forward(x))


def test_there_is_no_way_back() -> None:
    made = layer(even())
    x = even().requires_grad_()
    with pytest.raises(RuntimeError, match="only has a forward pass"):
        torch.autograd.grad(made(x).sum(), x)
    with pytest.raises(RuntimeError, match="only has a forward pass"):
        made.cast(torch.bfloat16)


@pytest.mark.parametrize("family", models.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families(family: str, dtype: torch.dtype) -> None:
    texts = models.texts([3, 7, 12, 20] * 12)
    backbone = models.backbone(family, dtype)
    bank = models.bank(backbone, [models.spec(backbone, 0)])
    before = bank_logits(backbone, bank, texts)
    quantize(backbone, texts[::2])
    after = bank_logits(backbone, bank, texts)
    assert 0 < np.linalg.norm(after - before) < 0.2 * np.linalg.norm(before)
