"""A frozen linear layer equals the plain product, in every weight layout and from several threads."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.nn import linear as linears
from rankwise.nn.activation import ACTIVATIONS, gelu_tanh
from rankwise.nn.linear import Linear
from tests.unit.nn.models import close

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1 / 256}
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE))


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@dtypes
@pytest.mark.parametrize("rows", [1, 7, 200])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("packs", [False, True])
def test_values_and_gradient(
    dtype: torch.dtype, rows: int, bias: bool, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packs:
        monkeypatch.setattr(linears, "can_pack", lambda x, weight: False)
    weight, offset = drawn(50, 30, dtype=dtype), drawn(50, dtype=dtype, seed=1)
    layer = Linear(weight.clone(), offset if bias else None, {})
    x = drawn(rows, 30, dtype=dtype, seed=2).requires_grad_()
    ours = layer(x)
    exact = x.detach().double().requires_grad_()
    theirs = F.linear(exact, weight.double(), offset.double() if bias else None)
    direction = drawn(rows, 50, dtype=dtype, seed=3)
    assert ours.dtype == dtype
    assert close(ours, theirs, TOLERANCE[dtype])
    (mine,) = torch.autograd.grad(ours, x, direction)
    (other,) = torch.autograd.grad(theirs, exact, direction.double())
    assert close(mine, other, TOLERANCE[dtype])
    assert torch.equal(layer.weight, weight)


@dtypes
@pytest.mark.parametrize("name", ["gelu_new", "gelu", "relu", "silu"])
@pytest.mark.parametrize("packs", [False, True])
def test_an_activation_within_the_product(
    dtype: torch.dtype, name: str, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packs:
        monkeypatch.setattr(linears, "can_pack", lambda x, weight: False)
    weight, offset, x = drawn(50, 30, dtype=dtype), drawn(50, dtype=dtype, seed=1), drawn(9, 30, dtype=dtype)
    exact: dict[str, Callable[[Tensor], Tensor]] = {
        **ACTIVATIONS,
        "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    }
    expected = exact[name](F.linear(x.double(), weight.double(), offset.double()))
    output = Linear(weight, offset, {}).activated(x, ACTIVATIONS[name])
    assert output.dtype == dtype
    assert close(output, expected, TOLERANCE[dtype])


@dtypes
def test_an_activation_of_large_sums_and_of_none(dtype: torch.dtype) -> None:
    layer = Linear(torch.full((1, 1), 1e4).to(dtype), None, {})
    x = torch.tensor([[1.0], [-1.0], [0.0], [float("nan")]]).to(dtype)
    large, nothing, zero, unknown = layer.activated(x, gelu_tanh).flatten().tolist()
    assert large == float(layer.weight) and nothing == zero == 0 and math.isnan(unknown)


@dtypes
def test_a_call_before_does_not_matter(dtype: torch.dtype) -> None:
    """The layout depends neither on the first input nor on gradients or inference mode."""
    weight, x = drawn(50, 30, dtype=dtype), drawn(200, 30, dtype=dtype, seed=2)
    fresh, used = Linear(weight, None, {}), Linear(weight, None, {})
    with torch.inference_mode():
        used(x[:1])
    used.backward(drawn(3, 50, dtype=dtype))
    assert torch.equal(fresh(x), used(x))
    assert torch.equal(fresh.backward(x[:, :1].expand(-1, 50)), used.backward(x[:, :1].expand(-1, 50)))


def test_rows_that_do_not_lie_together() -> None:
    weight, wide = drawn(50, 30), drawn(200, 60, seed=2)
    assert close(Linear(weight, None, {})(wide[:, ::2]), wide[:, ::2] @ weight.T, 1e-6)


def test_merge_and_cast_reach_a_weight_in_use() -> None:
    weight, x = drawn(50, 30), drawn(9, 30, seed=2)
    layer = Linear(weight.clone(), drawn(50, seed=1), {"a": slice(0, 20), "b": slice(20, 50)})
    layer(x)
    layer.backward(drawn(9, 50))
    layer.merge("b", torch.ones(30, 30))
    changed = weight.clone()
    changed[20:] += 1
    assert torch.equal(layer.weight, changed)
    assert close(layer(x), F.linear(x, changed, drawn(50, seed=1)), 1e-6)
    assert close(layer.backward(layer(x)), layer(x) @ changed, 1e-6)
    layer.cast(torch.bfloat16)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert (layer.n_in, layer.n_out) == (30, 50)


def test_a_nan_stays_in_its_row() -> None:
    layer, x = Linear(drawn(50, 30), None, {}), drawn(9, 30, seed=2)
    clean = layer(x)
    x[4] = float("nan")
    soiled = layer(x)
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(clean[others], soiled[others])
    assert bool(soiled[4].isnan().all())


def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Install a slow layout that works on every machine; returns the shapes of the packed weights."""
    laid_out: list[tuple[int, ...]] = []

    def pack(weight: Tensor) -> Tensor:
        time.sleep(0.05)
        laid_out.append(tuple(weight.shape))
        return weight.clone()

    monkeypatch.setattr(linears, "can_pack", lambda x, weight: True)
    monkeypatch.setattr(linears, "_pack", pack)
    monkeypatch.setattr(linears, "_packed_product", F.linear)
    return laid_out


def test_threads_lay_a_weight_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads run a new layer's first forward pass at the same time, then its first backward pass."""
    laid_out = stand_ins(monkeypatch)
    weight, x, dy = drawn(50, 30), drawn(9, 30, seed=2), drawn(9, 50, seed=3)
    layer, start = Linear(weight, None, {}), threading.Barrier(8)

    def work(_: int) -> tuple[Tensor, Tensor]:
        start.wait(10)
        y = layer(x)
        start.wait(10)
        return y, layer.backward(dy)

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(work, range(8)))
    for y, dx in results:
        assert torch.equal(y, x @ weight.T)
        assert close(dx, dy @ weight, 1e-6)
    assert laid_out == [(50, 30), (30, 50)]


def test_a_thread_that_comes_late_finds_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread reads the plain weight, and another thread replaces it before the first one continues."""
    laid_out = stand_ins(monkeypatch)
    weight, x = drawn(50, 30), drawn(9, 30, seed=2)
    layer, seen, replaced = Linear(weight, None, {}), threading.Event(), threading.Event()

    def can_pack(x: Tensor, weight: Tensor) -> bool:
        if threading.current_thread() is not threading.main_thread():
            seen.set()
            assert replaced.wait(10)
        return True

    monkeypatch.setattr(linears, "can_pack", can_pack)
    with ThreadPoolExecutor(1) as threads:
        late = threads.submit(layer, x)
        assert seen.wait(10)
        layer(x)
        replaced.set()
        assert torch.equal(late.result(10), x @ weight.T)
    assert laid_out == [(50, 30)]
