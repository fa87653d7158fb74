"""The fused kernels compute what the code for length buckets computes, on random texts and masks.

Without a CUDA device they run in Triton's interpreter if TRITON_INTERPRET=1 is set and Triton is installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from rankwise.nn import activation, attention, fused, norms, rotary
from rankwise.nn.bank import AdapterSpec, Bank
from rankwise.nn.fused import HeadMask
from rankwise.nn.inference import bank_logits
from rankwise.nn.loss import CrossEntropy
from rankwise.nn.static.batch import pack, unpack
from rankwise.nn.static.masks import MicroBatch, StepMasks, _crc, _decided, _hashed, keys
from rankwise.nn.static.step import StaticStep
from rankwise.training.optimizer import AdamW
from tests.gpu.devices import bank_on
from tests.unit.nn import models
from tests.unit.nn.static.test_step import BATCHES, done

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and fused.has_triton()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and not INTERPRETED, reason="needs a CUDA device, or Triton's interpreter"
)
LENGTHS = [[1, 5, 17, 30], [2, 2, 9, 40]]


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """Disable TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 16), (6, 2, 12)])
@pytest.mark.parametrize("micro", [False, True])
@pytest.mark.filterwarnings("ignore:overflow")  # of hashes in the interpreter, which uses NumPy's integers
def test_attention(
    heads: int,
    kv_heads: int,
    head_dim: int,
    rate: float,
    pooled: bool,
    micro: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Result and gradient, for grouped queries, sizes that are no power of two, and micro-batches."""
    texts = [[np.arange(n) for n in of_adapter] for of_adapter in LENGTHS]
    shape, arrays = pack(texts)
    packed = unpack(shape, {name: torch.from_numpy(array).to(DEVICE) for name, array in arrays.items()})
    numbers = torch.tensor([[0, 2, 4, 7], [1, 3, 5, 6]], device=DEVICE)
    micro_batch = MicroBatch(packed.ids.view(2, -1), numbers) if micro else None
    torch.manual_seed(0)
    qkv = torch.randn(len(packed.ids), heads + 2 * kv_heads, head_dim, device=DEVICE)
    step_keys = torch.from_numpy(keys([7, 8], [3, 4])).to(DEVICE)
    monkeypatch.setattr(fused, "fits", lambda packed: False)
    masks = StepMasks(step_keys, packed, shape, {}, micro_batch)
    drawn = masks.attention("h.0.attn", heads, rate, pooled) if rate else None
    of_texts = numbers.flatten() if micro else torch.arange(4, device=DEVICE).repeat(2)
    undrawn = HeadMask(masks.keys, of_texts.to(torch.int32), _crc("h.0.attn")) if rate else None
    rows = (
        packed.last
        if pooled
        else torch.cat([torch.arange(int(a), int(b) + 1) for a, b in _spans(packed.last)])
    )
    weight = torch.randn(len(packed.last if pooled else packed.ids), heads * head_dim, device=DEVICE)
    if not pooled:  # rows that belong to no text have no result
        weight = torch.zeros_like(weight).index_copy(0, rows.to(DEVICE), weight[rows])

    def done(mask: list[Tensor] | HeadMask | None, function: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        leaf = qkv.clone().requires_grad_()
        out = function(packed, leaf, heads, mask, rate, pooled)
        (gradient,) = torch.autograd.grad((out * weight).sum(), leaf)
        return out.detach(), gradient

    out, gradient = done(undrawn, fused.attend)
    expected, theirs = done(drawn, attention.attend)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, theirs, rtol=1e-4, atol=1e-5)


def compare(
    fast: Callable[[Tensor], Tensor], plain: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    """Result and gradient of two functions of a random tensor."""
    torch.manual_seed(0)
    x = torch.randn(shape, device=DEVICE)
    results = []
    for function in (fast, plain):
        leaf = x.clone().requires_grad_()
        out = function(leaf)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        results.append((out.detach(), *torch.autograd.grad((out * weight).sum(), leaf)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [48, 64, 100])
def test_norms(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "used_on", lambda x: False)
    weight, bias = torch.rand(2, width, device=DEVICE)
    weights = norms.NormWeights(weight, bias)
    compare(
        lambda x: fused.norm(3 + x, weight, bias, 1e-5, torch.float32),
        lambda x: norms.layer_norm(3 + x, weights, 1e-5, torch.float32),
        (7, width),
    )
    compare(
        lambda x: fused.norm(x, weight, None, 1e-5, torch.float32),
        lambda x: norms.rms_norm(x, weight, 1e-5, torch.float32),
        (7, width),
    )


def test_residual_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "used_on", lambda x: False)
    mask = (torch.rand(30, 100, generator=torch.Generator().manual_seed(0)) > 0.3).to(DEVICE, torch.uint8)
    x = torch.ones(30, 100, device=DEVICE)
    compare(
        lambda branch: fused.add_dropped(x + branch, branch, mask, 1.25),
        lambda branch: x + branch + branch * mask * 1.25,
        (30, 100),
    )


def test_swiglu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "used_on", lambda x: False)
    compare(fused.swiglu, activation.swiglu, (5, 2 * 1100))


@pytest.mark.parametrize(("head_dim", "half"), [(16, 8), (12, 6), (20, 3)])
def test_rotation(head_dim: int, half: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whole heads and of a part; a gradient is a rotation in the opposite direction."""
    monkeypatch.setattr(fused, "used_on", lambda x: False)
    torch.manual_seed(0)
    x = torch.randn(5, 7, head_dim, device=DEVICE)
    angles = torch.rand(5, 1, half, device=DEVICE)
    for sign in (1, -1):
        expected = rotary._turn(x, 4, angles.cos(), angles.sin(), sign)
        torch.testing.assert_close(fused.turn(x, 4, angles.cos(), angles.sin(), sign), expected)


def test_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters that differ in learning rate, weight decay, LoRA+ ratio and number of steps; clipped."""
    specs = [
        AdapterSpec(
            2, 1.0, 1.0, 1, 0.0, ("h.0.q",), learning_rate=1e-3, weight_decay=0.1, lora_plus_ratio=4.0
        ),
        AdapterSpec(1, 1.0, 1.0, 2, 0.0, ("h.0.q",), learning_rate=3e-3),
    ]
    found = []
    for together in (True, False):
        monkeypatch.setattr(fused, "used_on", lambda x, together=together: together)
        bank = Bank(specs, {"h.0.q": (40, 30)}, d_model=8, classes=3, device=DEVICE)
        optimizer = AdamW(bank, max_grad_norm=1.0)
        optimizer.steps = [0, 5]
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            gradient = torch.randn(bank.flat.shape, generator=generator).to(DEVICE)
            bank.grad.copy_(gradient * torch.where(torch.arange(len(gradient), device=DEVICE) < 100, 9, 0.01))
            norms = optimizer.step([1e-3, 3e-3])
            assert not bank.grad.any()
        found.append([bank.flat.detach(), optimizer.exp_avg, optimizer.exp_avg_sq, norms])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", models.FAMILIES)
@pytest.mark.filterwarnings("ignore:overflow")
def test_whole_models(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training step, and the logits of texts that share prefixes, whose rows are not adjacent."""
    backbone, bank = bank_on(DEVICE, family)
    texts = [np.array(text) for text in ([1, 2, 3], [1, 2, 4, 5], [1, 6], [1, 2, 4, 7, 8])]
    found = []
    for is_fused in (True, False):
        monkeypatch.setattr(fused, "used_on", lambda x, is_fused=is_fused: is_fused)
        logits = bank_logits(backbone, bank, texts)
        step = StaticStep(backbone, bank, CrossEntropy(), base_dropout=False)
        found.append([torch.from_numpy(logits), *flatten(done(step, bank, BATCHES))])
    for ours, theirs in zip(*found, strict=True):
        assert models.close(ours, theirs, 1e-4)


def flatten(result: tuple[Tensor, list[Tensor]]) -> list[Tensor]:
    losses, gradients = result
    return [losses, *gradients]


def _spans(last: Tensor) -> list[tuple[int, int]]:
    """First and last row of each text."""
    lengths = [n for of_adapter in LENGTHS for n in of_adapter]
    return [(end - n + 1, end) for end, n in zip(last.tolist(), lengths, strict=True)]


@pytest.mark.parametrize("rates", [[0.1, 0.1], [0.0, 0.999]])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.filterwarnings("ignore:overflow")
def test_mask_bits(rates: list[float], own: bool) -> None:
    names = _hashed(torch.arange(6, dtype=torch.int32, device=DEVICE)).view(3, 2)
    numbers = torch.arange(2000, dtype=torch.int32, device=DEVICE)
    numbers = torch.stack([numbers, numbers.flip(0)]) if own else numbers
    assert torch.equal(fused.decided(names, numbers, rates), _decided(names, numbers, rates))
