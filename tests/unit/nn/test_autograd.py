"""The hand-written backward passes equal plain autograd through the formulas, written out here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.nn.activation import gelu_tanh, swiglu
from rankwise.nn.attention import attend
from rankwise.nn.bank import AdapterSpec, Bank
from rankwise.nn.batch import PackedBatch
from rankwise.nn.dropout import DropoutHook
from rankwise.nn.linear import Linear
from rankwise.nn.norms import rms_norm
from rankwise.nn.ragged.batch import pack
from rankwise.nn.ragged.lora import BankHook
from rankwise.nn.ragged.masks import SeededMasks
from rankwise.nn.rotary import rotate
from tests.unit.nn.models import close, texts

TIGHT = 2e-6  # relative, in float32


def leaves(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def compare(ours: Tensor, theirs: Tensor, inputs: Sequence[Tensor], relative: float = TIGHT) -> None:
    """Values, and the gradients of every input from the same random gradient of the output."""
    assert close(ours, theirs, relative)
    (direction,) = leaves(tuple(ours.shape), seed=99)
    mine = torch.autograd.grad(ours, inputs, direction.to(ours.dtype))
    other = torch.autograd.grad(theirs, inputs, direction.to(theirs.dtype))
    for a, b in zip(mine, other, strict=True):
        assert close(a, b, relative)


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
    masks = SeededMasks([1, 2], 0, packed).attention("attn", heads, rate, pooled) if rate else None
    mask = {
        text: mask
        for bucket, dense in zip(packed.buckets, masks or (), strict=bool(masks))
        for text, mask in zip(bucket.texts.tolist(), dense, strict=True)
    }
    ours = attend(packed, qkv, heads, masks, rate, pooled)
    q, k, v = qkv[:, :heads], qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]
    theirs = attention_by_text(packed, q[packed.last] if pooled else q, k, v, mask, rate, pooled)
    compare(ours, theirs, (qkv,))


def bank_of_four(modules: dict[str, tuple[int, int]]) -> Bank:
    """Adapters of unlike ranks, dropouts, scales and target modules; one is a head alone."""
    both = tuple(modules)
    specs = [
        AdapterSpec(2, 1.0, 0.5, 1, 0.3, both),
        AdapterSpec(0, 1.0, 0.0, 2, 0.0, ()),
        AdapterSpec(3, 6.0, 2.0, 3, 0.0, both[1:]),
        AdapterSpec(1, 0.8, 0.8, 4, 0.6, both[:1]),
    ]
    bank = Bank(specs, modules, 10, 2)
    with torch.no_grad():
        bank.flat.copy_(leaves((len(bank.flat),), seed=5)[0])
    return bank


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_bank_linear(pooled: bool, dropout: bool, bias: bool) -> None:
    packed = pack([texts([3, 9]), texts([4]), texts([1, 6, 2]), texts([5, 5])])
    weight, offset = (t.detach() for t in leaves((11, 10), (11,), seed=1))
    linear = Linear(weight, offset if bias else None, {"h.0.q": slice(0, 4), "h.0.v": slice(6, 11)})
    bank = bank_of_four({"h.0.q": (10, 4), "h.0.v": (10, 5)})
    slices = packed.text_rows() if pooled else packed.token_rows()
    (x,) = leaves((slices[-1].stop, 10), seed=2)
    masks = SeededMasks([spec.seed for spec in bank.specs], 3, packed) if dropout else None
    ours = BankHook(bank, packed, masks).linear(linear, x, pooled)

    theirs = F.linear(x, linear.weight, linear.bias)
    rates = [spec.dropout for spec in bank.specs]
    inputs = [x]
    for module, columns in linear.modules.items():
        mask = masks.rows(f"{module}.lora", 10, rates, pooled) if masks else torch.ones_like(x)
        for spec, tensors, rows in zip(bank.specs, bank.tensors, slices, strict=True):
            if module in spec.modules:
                a, b = tensors[f"{module}.lora_A"], tensors[f"{module}.lora_B"]
                dropped = x[rows] * mask[rows] / (1 - spec.dropout if masks else 1)
                term = torch.zeros_like(theirs)
                term[rows, columns] = spec.scale * dropped @ a.T @ b.T
                theirs = theirs + term
                inputs += [a, b]
    compare(ours, theirs, inputs)


def test_bank_linear_on_a_frozen_input() -> None:
    """The first layer's input needs no gradient; its adapters do."""
    packed = pack([texts([3, 9])])
    (weight,) = leaves((4, 10))
    linear = Linear(weight.detach(), None, {"h.0.q": slice(0, 4)})
    bank = Bank([AdapterSpec(2, 1.0, 0.5, 1, 0.0, ("h.0.q",))], {"h.0.q": (10, 4)}, 10, 2)
    (x,) = leaves((12, 10))
    torch.autograd.backward(BankHook(bank, packed).linear(linear, x.detach()).sum())
    assert bank.tensors[0]["h.0.q.lora_B"].grad is not None
    assert float(bank.tensors[0]["h.0.q.lora_B"].grad.abs().sum()) > 0


def test_bank_linear_without_adapters() -> None:
    """A linear layer that no adapter is put on stays the frozen layer."""
    packed = pack([texts([3, 9])])
    weight, x = leaves((4, 10), (12, 10))
    linear = Linear(weight.detach(), None, {"h.0.q": slice(0, 4)})
    bank = Bank([AdapterSpec(0, 1.0, 0.0, 1, 0.0, ())], {"h.0.q": (10, 4)}, 10, 2)
    compare(BankHook(bank, packed).linear(linear, x), F.linear(x, weight.detach()), (x,))


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
    """On the query and key heads of a row; the value heads beside them stay."""
    x, angles = leaves((7, 5, 8), (7, 4))
    cos, sin = angles.detach().cos()[:, None], angles.detach().sin()[:, None]
    a, b = x[:, :turned, :4], x[:, :turned, 4:]
    rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    compare(rotate(x, turned, cos, sin), torch.cat([rotated, x[:, turned:]], 1), (x,))


def test_rotate_a_part_of_each_head() -> None:
    """Of six numbers the first four; the last two have no position."""
    x, angles = leaves((7, 5, 6), (7, 2))
    cos, sin = angles.detach().cos()[:, None], angles.detach().sin()[:, None]
    a, b, rest = x[:, :3, :2], x[:, :3, 2:4], x[:, :3, 4:]
    rotated = torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)
    compare(rotate(x, 3, cos, sin), torch.cat([rotated, x[:, 3:]], 1), (x,))


@pytest.mark.parametrize("pooled", [False, True])
def test_add_with_dropout(pooled: bool) -> None:
    packed = pack([texts([3, 9]), texts([4])])
    rows = len(packed.last if pooled else packed.ids)
    x, branch = leaves((rows, 10), (rows, 10))
    masks = SeededMasks([1, 2], 0, packed)
    ours = DropoutHook(masks).add("site", x, branch, 0.4, pooled)
    mask = masks.rows("site", 10, [0.4, 0.4], pooled)
    compare(ours, x + branch * mask / 0.6, (x, branch))


def test_add_without_dropout() -> None:
    x, branch = leaves((7, 10), (7, 10))
    compare(DropoutHook(None).add("site", x, branch, 0.4), x + branch, (x, branch))


@pytest.mark.parametrize("shape", [(1, 3), (7, 12), (300, 1000)])
def test_gelu(shape: tuple[int, int]) -> None:
    (x,) = leaves(shape)
    compare(gelu_tanh(3 * x), F.gelu(3 * x.double(), approximate="tanh"), (x,))


def test_gelu_far_out() -> None:
    """Where the gate is shut or open, the value is 0 or x, and the slope 0 or 1."""
    x = torch.tensor([[-1e4, -100.0, -12.0, 0.0, 12.0, 100.0, 1e4]], requires_grad=True)
    y = gelu_tanh(x)
    assert torch.equal(y.detach(), x.detach().clamp(min=0))
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, torch.tensor([[0.0, 0, 0, 0.5, 1, 1, 1]]))


def test_gelu_in_bfloat16() -> None:
    """As near as rounding lets it be: a step of bfloat16 is 1/256 of the number."""
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
    compare(swiglu(x), gate * torch.sigmoid(gate) * up, (x,))
