"""Attention and its hand-written backward pass equal plain autograd through the formulas."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from rankwise.nn.attention import attend
from rankwise.nn.batch import PackedBatch
from rankwise.nn.ragged.batch import pack
from rankwise.nn.ragged.masks import StepMasks
from tests.unit.nn.gradients import compare, leaves
from tests.unit.nn.models import texts


def attention_by_text(
    packed: PackedBatch, q: Tensor, k: Tensor, v: Tensor, mask: dict[int, Tensor], rate: float, pooled: bool
) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v, text by text and head by head, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    rows = []
    for text, (start, stop) in enumerate(pairwise([0, *(packed.last + 1).tolist()])):
        n = stop - start
        first = n - 1 if pooled else 0  # position of the first query
        queries = q[text, None] if pooled else q[start:stop]
        seen = torch.arange(n) <= torch.arange(first, n)[:, None]
        heads = []
        for head in range(q.shape[1]):
            shared = head * k.shape[1] // q.shape[1]  # the key head of a group of query heads
            scores = queries[:, head] @ k[start:stop, shared].T / q.shape[2] ** 0.5
            weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
            if mask:
                weights = weights * mask[text][head, : len(queries), :n] / (1 - rate)
            heads.append(weights @ v[start:stop, shared])
        rows.append(torch.cat(heads, -1))
    return torch.cat(rows)


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
def test_attention(heads: int, kv_heads: int, pooled: bool, rate: float) -> None:
    packed = pack([texts([7, 1, 20]), texts([8, 6, 33])])
    (qkv,) = leaves((len(packed.ids), heads + 2 * kv_heads, 4))
    masks = StepMasks([1, 2], [0, 0], packed).attention("attn", heads, rate, pooled) if rate else None
    mask = {
        text: mask
        for bucket, dense in zip(packed.buckets, masks or (), strict=bool(masks))
        for text, mask in zip(bucket.texts.tolist(), dense, strict=True)
    }
    ours = attend(packed, qkv, heads, masks, rate, pooled)
    q, k, v = qkv[:, :heads], qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]
    theirs = attention_by_text(packed, q[packed.last] if pooled else q, k, v, mask, rate, pooled)
    compare(ours, theirs, (qkv,))


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("length", [1, 9, 33])
def test_one_text_without_a_gradient(length: int, heads: int, kv_heads: int, pooled: bool) -> None:
    packed = pack([texts([length])], shared=True)
    (qkv,) = leaves((length, heads + 2 * kv_heads, 4))
    with torch.no_grad():
        ours = attend(packed, qkv, heads, None, 0.0, pooled)
    q, k, v = qkv[:, :heads], qkv[:, heads:-kv_heads], qkv[:, -kv_heads:]
    theirs = attention_by_text(packed, q[-1:] if pooled else q, k, v, {}, 0.0, pooled)
    assert not packed.layouts  # no length buckets were laid out
    torch.testing.assert_close(ours.double(), theirs.flatten(1).detach(), rtol=0, atol=1e-6)
