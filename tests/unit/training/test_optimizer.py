"""The optimizer of a bank equals a separate torch optimizer for each adapter."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from rankwise.nn.bank import Bank
from rankwise.training.optimizer import AdamW
from tests.unit.nn import models


def three_adapters(weight_decay: float = 0.1) -> Bank:
    backbone = models.backbone("gpt2")
    specs = [models.spec(backbone, rank, seed=rank) for rank in (1, 0, 4)]
    return models.bank(backbone, [replace(spec, weight_decay=weight_decay) for spec in specs])


@pytest.mark.parametrize(("weight_decay", "max_grad_norm"), [(0.1, 1.0), (0.0, 0.3), (0.01, 0.0)])
def test_equals_torch(weight_decay: float, max_grad_norm: float) -> None:
    """Each adapter is updated as by its own torch optimizer with torch's gradient clipping."""
    bank = three_adapters(weight_decay)
    optimizer = AdamW(bank, max_grad_norm)
    peers = [[tensor.detach().clone().requires_grad_() for tensor in each.values()] for each in bank.tensors]
    optimizers = [torch.optim.AdamW(peer, weight_decay=weight_decay) for peer in peers]
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        # The gradients of one adapter are far above the limit, those of another far below.
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
        assert optimizer.step([1e-2 / (step + 1)] * 3).tolist() == pytest.approx(norms, rel=1e-5)
        assert not bank.grad.any()
    for each, peer in zip(bank.tensors, peers, strict=True):
        for tensor, parameter in zip(each.values(), peer, strict=True):
            torch.testing.assert_close(tensor, parameter, rtol=1e-5, atol=1e-7)


def test_a_neighbor_that_is_no_number() -> None:
    """A NaN gradient affects neither the norms nor the weights of the others."""
    sound, broken = three_adapters(), three_adapters()
    for bank in (sound, broken):
        bank.grad.fill_(0.5)
    broken.grad[broken.segments[1]] = torch.nan
    norms = [AdamW(bank, 1.0).step([1e-2] * 3) for bank in (sound, broken)]
    for k in (0, 2):
        assert norms[0][k] == norms[1][k]
        assert torch.equal(sound.flat[sound.segments[k]], broken.flat[broken.segments[k]])
    assert norms[1][1].isnan()


def test_it_goes_on_from_a_restored_state() -> None:
    """After restoring exp_avg, exp_avg_sq and steps, the next update is bit-identical."""
    whole, resumed = three_adapters(), three_adapters()
    first = AdamW(whole, 1.0)
    for step in range(3):
        whole.grad.fill_(0.5 + step)
        first.step([1e-2] * 3)
    second = AdamW(resumed, 1.0)
    with torch.no_grad():
        resumed.flat.copy_(whole.flat)
    second.exp_avg.copy_(first.exp_avg)
    second.exp_avg_sq.copy_(first.exp_avg_sq)
    second.steps = list(first.steps)
    for bank, optimizer in ((whole, first), (resumed, second)):
        bank.grad.fill_(-0.25)
        optimizer.step([1e-2] * 3)
    assert torch.equal(whole.flat, resumed.flat)


def test_a_step_does_not_import_the_compiler() -> None:
    """Constructing torch.optim.AdamW would import it, which takes most of a second and 75 MB."""
    code = """
import sys
from rankwise.nn.bank import AdapterSpec, Bank
from rankwise.training.optimizer import AdamW
AdamW(Bank([AdapterSpec(0, 1.0, 1.0, 7, 0.0, ())], {}, 3, 2), 1.0).step([1e-3])
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
