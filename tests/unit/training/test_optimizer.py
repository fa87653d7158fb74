"""The optimizer and its schedules equal torch's and transformers'."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import transformers

from rankwise.nn.bank import Bank
from rankwise.training.optimizer import AdamW
from rankwise.training.schedule import schedule
from tests.unit.nn import models


def three_adapters() -> Bank:
    backbone = models.backbone("gpt2")
    return models.bank(backbone, [models.spec(backbone, rank, seed=rank) for rank in (1, 0, 4)])


@pytest.mark.parametrize(("weight_decay", "max_grad_norm"), [(0.1, 1.0), (0.0, 0.3), (0.01, 0.0)])
def test_equals_torch(weight_decay: float, max_grad_norm: float) -> None:
    """Each adapter like a torch optimizer of its own, with its own clipping."""
    bank = three_adapters()
    optimizer = AdamW(bank, weight_decay, max_grad_norm)
    peers = [[tensor.detach().clone().requires_grad_() for tensor in each.values()] for each in bank.tensors]
    optimizers = [torch.optim.AdamW(peer, weight_decay=weight_decay) for peer in peers]
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        # One adapter's gradients are far above the limit, one's far below.
        for k, segment in enumerate(bank.segments):
            size = segment.stop - segment.start
            bank.grad[segment] = 10.0 ** (1 - 2 * k) * torch.randn(size, generator=generator)
        gradients = [[tensor.grad for tensor in each.values()] for each in bank.tensors]
        norms = []
        for peer, theirs, grads in zip(peers, optimizers, gradients, strict=True):
            for parameter, grad in zip(peer, grads, strict=True):
                assert grad is not None
                parameter.grad = grad.clone()
            norms.append(float(torch.nn.utils.clip_grad_norm_(peer, max_grad_norm or float("inf"))))
            theirs.param_groups[0]["lr"] = 1e-2 / (step + 1)
            theirs.step()
        assert optimizer.step(1e-2 / (step + 1)).tolist() == pytest.approx(norms, rel=1e-5)
        assert not bank.grad.any()
    for each, peer in zip(bank.tensors, peers, strict=True):
        for tensor, parameter in zip(each.values(), peer, strict=True):
            torch.testing.assert_close(tensor, parameter, rtol=1e-5, atol=1e-7)


def test_a_neighbor_that_is_no_number() -> None:
    """Its gradient touches neither the others' norms nor their weights."""
    sound, broken = three_adapters(), three_adapters()
    for bank in (sound, broken):
        bank.grad.fill_(0.5)
    broken.grad[broken.segments[1]] = torch.nan
    norms = [AdamW(bank, 0.1, 1.0).step(1e-2) for bank in (sound, broken)]
    for k in (0, 2):
        assert norms[0][k] == norms[1][k]
        assert torch.equal(sound.flat[sound.segments[k]], broken.flat[broken.segments[k]])
    assert norms[1][1].isnan()


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(50, 0), (50, 7), (1, 0), (5, 5), (4, 9)])
def test_schedules_equal_transformers(
    kind: Literal["linear", "cosine", "constant"], steps: int, warmup: int
) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = transformers.get_scheduler(
        "constant_with_warmup" if kind == "constant" else kind,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=steps,
    )
    for step in range(steps):
        assert schedule(kind, step, steps, warmup) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()
