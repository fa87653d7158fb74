"""Adapters cut to a smaller rank after training.

The update of a target module, scale * B A, has at most the rank of the adapter. Its best approximation of a
smaller rank in the Frobenius norm is its truncated singular value decomposition (Eckart and Young 1936,
doi 10.1007/BF02288367). The (out, in) product is never formed: with the QR decompositions B = Q_b R_b and
A^T = Q_a R_a, the decomposition of a core with as many rows and columns as the adapter has ranks is enough::

    R_b R_a^T = U diag(s) V^T        B A = (Q_b U) diag(s) (Q_a V)^T
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.nn.bank import AdapterSpec


@dataclass(frozen=True)
class Truncated:
    """Factors of a truncated product B A, with squared Frobenius norms."""

    a: Tensor  # (rank, in) float32
    b: Tensor  # (out, rank) float32
    kept: float  # squared norm of the truncated product
    total: float  # squared norm of B A


@dataclass(frozen=True)
class CutAdapter:
    """An adapter that was cut to a smaller rank. Shares are fractions from 0 to 1."""

    spec: AdapterSpec
    state: dict[str, Tensor]  # names as in `Bank.tensors`, float32
    from_rank: int
    kept: float  # share of the update's squared Frobenius norm, over all target modules
    kept_by_module: dict[str, float]  # the same share for each target module


def truncate(a: Tensor, b: Tensor, rank: int) -> Truncated:
    """The best approximation of a product B A by a product of a given rank, in the Frobenius norm.

    The singular values are divided evenly between the two factors. If the rank exceeds that of B A, the
    remaining rows and columns are 0.

    Args:
        a: (r, in) float32, on the CPU.
        b: (out, r) float32, on the CPU.
        rank: rank of the result, at least 1.
    """
    q_b, r_b = torch.linalg.qr(b.double())  # (out, k), (k, r)
    q_a, r_a = torch.linalg.qr(a.double().T)  # (in, l), (l, r)
    u, values, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    roots = values[:rank].sqrt()
    missing = rank - len(roots)
    left = q_b @ (u[:, :rank] * roots)  # (out, rank - missing)
    right = (roots[:, None] * v[:rank]) @ q_a.T  # (rank - missing, in)
    return Truncated(
        a=F.pad(right, (0, 0, 0, missing)).float(),
        b=F.pad(left, (0, missing)).float(),
        kept=float(values[:rank].square().sum()),
        total=float(values.square().sum()),
    )


def cut(spec: AdapterSpec, state: Mapping[str, Tensor], rank: int) -> CutAdapter:
    """Cut the update of every target module of an adapter to a smaller rank. The score head stays.

    The scale stays, so alpha is `scale * rank`: PEFT computes the same scale from alpha and the new rank.

    Args:
        spec: the adapter.
        state: its tensors, named as in `Bank.tensors`, float32, on the CPU.
        rank: the new rank, from 1 to below the adapter's.
    """
    found = {
        module: truncate(state[f"{module}.lora_A"], state[f"{module}.lora_B"], rank)
        for module in spec.modules
    }
    factors = {
        name: tensor
        for module, each in found.items()
        for name, tensor in ((f"{module}.lora_A", each.a), (f"{module}.lora_B", each.b))
    }
    return CutAdapter(
        spec=replace(spec, rank=rank, alpha=spec.scale * rank, name=f"{spec.name}-cut{rank}"),
        state=dict(state) | factors,
        from_rank=spec.rank,
        kept=_share(sum(each.kept for each in found.values()), sum(each.total for each in found.values())),
        kept_by_module={module: _share(each.kept, each.total) for module, each in found.items()},
    )


def _share(kept: float, total: float) -> float:
    """The kept share; an update of zeros loses nothing."""
    return kept / total if total else 1.0
