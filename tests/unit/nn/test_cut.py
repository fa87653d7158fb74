"""Cut adapters are the best approximations of their rank, compared with NumPy's SVD of the full update."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.bank import AdapterSpec
from rankwise.nn.cut import cut, truncate

RANK = 6
MODULES = ("h.0.q", "h.1.q")
often = settings(max_examples=80, deadline=None, derandomize=True)


def factors(n_in: int, n_out: int, rank: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return (
        scale * torch.randn(rank, n_in, generator=random),
        scale * torch.randn(n_out, rank, generator=random),
    )


def product(a: Tensor, b: Tensor) -> NDArray[np.float64]:
    """B A in float64."""
    return np.asarray(b.double().numpy() @ a.double().numpy())


def squared_values(a: Tensor, b: Tensor) -> NDArray[np.float64]:
    """Squared singular values of the full product, largest first."""
    return np.asarray(np.linalg.svd(product(a, b), compute_uv=False) ** 2)


@often
@given(
    n_in=st.integers(1, 12),
    n_out=st.integers(1, 12),
    rank=st.integers(1, 8),
    data=st.data(),
    seed=st.integers(0, 10**6),
    power=st.integers(-6, 6),
)
def test_the_best_approximation(
    n_in: int, n_out: int, rank: int, data: st.DataObject, seed: int, power: int
) -> None:
    """Shapes, the error of Eckart and Young, and the kept norm; also where r exceeds in or out."""
    a, b = factors(n_in, n_out, rank, seed, 10.0**power)
    m = data.draw(st.integers(1, rank))
    found, squares = truncate(a, b, m), squared_values(a, b)
    assert found.a.shape == (m, n_in) and found.b.shape == (n_out, m)
    assert found.a.dtype == found.b.dtype == torch.float32
    assert found.total == pytest.approx(squares.sum(), rel=1e-9)
    assert found.kept == pytest.approx(squares[:m].sum(), rel=1e-9)
    error = np.linalg.norm(product(a, b) - product(found.a, found.b))
    assert error == pytest.approx(np.sqrt(squares[m:].sum()), abs=1e-6 * np.sqrt(found.total))


def test_no_other_product_of_that_rank_is_closer() -> None:
    a, b = factors(9, 7, RANK, 1)
    best = truncate(a, b, 2)
    least = np.linalg.norm(product(a, b) - product(best.a, best.b))
    random = np.random.default_rng(0)
    for size in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(20):
            near = [
                each.double().numpy() + size * random.normal(size=each.shape) for each in (best.a, best.b)
            ]
            assert np.linalg.norm(product(a, b) - near[1] @ near[0]) > least


def test_the_full_rank_is_the_same_function() -> None:
    a, b = factors(9, 7, RANK, 2)
    found = truncate(a, b, RANK)
    np.testing.assert_allclose(product(found.a, found.b), product(a, b), atol=1e-5)
    assert found.kept == found.total


def test_an_update_of_a_smaller_rank_is_kept_whole() -> None:
    """Rank 6 by name, but the last four ranks repeat the first two."""
    a, b = factors(9, 7, RANK, 3)
    a[2:4], a[4:] = a[:2], -2 * a[:2]
    for rank in (2, 3, 5):
        found = truncate(a, b, rank)
        np.testing.assert_allclose(product(found.a, found.b), product(a, b), atol=1e-5)
        assert found.kept == pytest.approx(found.total, rel=1e-12)


def test_an_update_of_zeros() -> None:
    a, b = factors(9, 7, RANK, 4)
    found = truncate(a, torch.zeros_like(b), 2)
    assert found.kept == found.total == 0
    assert not product(found.a, found.b).any()


def adapter(scale: float, alpha: float) -> tuple[AdapterSpec, dict[str, Tensor]]:
    """Rank 6 on two modules; the second update is three times as large."""
    state = {"score": torch.ones(3, 9)}
    for number, module in enumerate(MODULES):
        a, b = factors(9, 7, RANK, number)
        state |= {f"{module}.lora_A": a, f"{module}.lora_B": (1 + 2 * number) * b}
    return AdapterSpec(RANK, alpha, scale, 7, 0.1, MODULES), state


def test_an_adapter() -> None:
    spec, state = adapter(scale=0.5, alpha=3.0)
    found = cut(spec, state, 2)
    assert found.spec == replace(spec, rank=2, alpha=1.0, name="r6-s7-cut2")
    assert (found.from_rank, found.state.keys()) == (6, state.keys())
    assert torch.equal(found.state["score"], state["score"])
    squares = [squared_values(state[f"{m}.lora_A"], state[f"{m}.lora_B"]) for m in MODULES]
    shares = [each[:2].sum() / each.sum() for each in squares]
    assert list(found.kept_by_module.values()) == pytest.approx(shares)
    joint = sum(each[:2].sum() for each in squares) / sum(each.sum() for each in squares)
    assert found.kept == pytest.approx(joint)
    assert found.kept != pytest.approx(np.mean(shares), abs=1e-3)  # the larger update counts more


@pytest.mark.parametrize(("scale", "alpha"), [(0.5, 3.0), (2.0, 12.0), (3.0 / 6**0.5, 3.0)])
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_scale_stays(scale: float, alpha: float, rank: int) -> None:
    """Whatever the convention of the source, the cut adapter's scale is alpha / r."""
    found = cut(*adapter(scale, alpha), rank).spec
    assert found.scale == scale
    assert found.alpha / found.rank == pytest.approx(scale, rel=1e-15)


def test_a_module_of_zeros_keeps_everything() -> None:
    spec, state = adapter(scale=0.5, alpha=3.0)
    state["h.0.q.lora_B"].zero_()
    found = cut(spec, state, 2)
    assert found.kept_by_module["h.0.q"] == 1.0
    assert found.kept == found.kept_by_module["h.1.q"] < 1.0
    state["h.1.q.lora_B"].zero_()
    assert cut(spec, state, 2).kept == 1.0
