"""Losses of several adapters computed together equal those computed separately."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rankwise.nn.backbone import Hook
from rankwise.nn.bank import HEAD
from rankwise.nn.classifier import logits
from rankwise.nn.loss import CrossEntropy
from rankwise.nn.ragged.batch import pack
from tests.unit.nn import models

TARGETS = [torch.tensor([0, 2, 1, 1]), torch.tensor([2, 0])]


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 4.0])])
def test_losses(weights: torch.Tensor | None) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(len(t), 3, generator=generator) for t in TARGETS]
    of_adapters = CrossEntropy(weights)(outputs, TARGETS)
    for loss, output, target in zip(of_adapters, outputs, TARGETS, strict=True):
        chosen = -output.log_softmax(-1)[range(len(target)), target]
        w = torch.ones(len(target)) if weights is None else weights[target]
        assert float(loss) == pytest.approx(float((w * chosen).sum() / w.sum()), rel=1e-5)


def test_the_sum_has_each_adapters_own_gradient() -> None:
    backbone = models.backbone("llama")
    specs = [models.spec(backbone, 2, seed=1), models.spec(backbone, 4, seed=2)]
    batches = [models.texts([3, 20, 9, 9]), models.texts([1, 7])]
    together = models.trained_bank(backbone, specs)
    torch.autograd.backward(CrossEntropy()(logits(backbone, together, pack(batches)), TARGETS).sum())
    for k, spec in enumerate(specs):
        alone = models.trained_bank(backbone, [spec])
        (output,) = logits(backbone, alone, pack([batches[k]]))
        torch.autograd.backward(F.cross_entropy(output, TARGETS[k]))
        assert models.close(together.grad[together.segments[k]], alone.grad, 1e-6)


def test_one_adapters_loss_reaches_no_other_adapter() -> None:
    backbone = models.backbone("gpt2")
    bank = models.trained_bank(backbone, [models.spec(backbone, 2, seed=1), models.spec(backbone, 4, seed=2)])
    outputs = logits(backbone, bank, pack([models.texts([3, 20]), models.texts([20, 7])]))
    torch.autograd.backward(outputs[1].square().sum())
    assert not bank.grad[bank.segments[0]].any()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in bank.tensors[1].values())


@pytest.mark.parametrize("family", models.FAMILIES)
@pytest.mark.parametrize("targets", [(), "last layer"])
def test_shared_prefixes_change_no_logits(family: str, targets: str | tuple[str, ...]) -> None:
    """Texts that share a prefix, one that is a prefix of another, and a duplicate."""
    backbone = models.backbone(family)
    chosen = list(backbone.modules())[-3:] if targets else ()
    specs = [models.spec(backbone, rank, seed=rank, targets=chosen) for rank in (1, 4)]
    bank = models.trained_bank(backbone, specs)
    (long,) = models.texts([30])
    batch = [long, np.append(long[:9], [3, 4]), long[:9], long, *models.texts([5, 12], seed=3)]
    with torch.no_grad():
        plain = logits(backbone, bank, pack([batch, batch], same=[0, 0]))
        packed = pack([batch, batch], same=[0, 0], shared=True)
        shared = logits(backbone, bank, packed)
    assert len(packed.ids) == 2 * (30 + 2 + 5 + 12)
    torch.testing.assert_close(shared, plain)


@pytest.mark.parametrize("family", models.FAMILIES)
def test_below_the_adapters_the_backbone_is_itself(family: str) -> None:
    """The faster code paths for frozen layers give the backbone's own values."""
    backbone = models.backbone(family)
    bank = models.trained_bank(backbone, [models.spec(backbone, 0)])
    packed = pack([models.texts([3, 20, 9, 1])])
    assert bank.first_layer is None
    (found,) = logits(backbone, bank, packed)
    assert models.close(found, backbone(packed, Hook()) @ bank.tensors[0][HEAD].T, 1e-6)
