"""Texts of a packed batch, and adapters of a bank, are isolated from each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import Bank
from rankwise.nn.batch import Ids
from rankwise.nn.classifier import logits
from rankwise.nn.loss import CrossEntropy
from rankwise.nn.ragged.batch import pack
from rankwise.nn.ragged.lora import BankHook
from rankwise.nn.ragged.masks import StepMasks
from tests.unit.nn import models

TOLERANCE = 1e-6
LENGTHS = [[3, 40, 1, 17, 8], [1, 9, 33]]  # text lengths per adapter; more tokens in total than positions
family = pytest.mark.parametrize("family", models.FAMILIES)


def two_adapters(family: str) -> tuple[Backbone, Bank, list[list[Ids]]]:
    backbone = models.backbone(family)
    specs = [models.spec(backbone, 2, seed=1), models.spec(backbone, 4, seed=2, targets=["all-linear"])]
    return (
        backbone,
        models.trained_bank(backbone, specs),
        [models.texts(n, seed=i) for i, n in enumerate(LENGTHS)],
    )


def others(backbone: Backbone, bank: Bank, batches: list[list[Ids]], changed: int) -> tuple[Tensor, Tensor]:
    """The logits of all texts except one of the first adapter's, and their gradients for every tensor."""
    first, second = logits(backbone, bank, pack(batches))
    rest = torch.cat([first[:changed], first[changed + 1 :], second])
    tensors = [tensor for each in bank.tensors for tensor in each.values()]
    gradients = torch.autograd.grad(rest.square().sum(), tensors)
    return rest.detach(), torch.cat([gradient.flatten() for gradient in gradients])


@family
@pytest.mark.parametrize(
    ("changed", "length"), [(1, 40), (1, 1), (2, 1), (2, 64), (0, 3), (3, 18), (4, 9), (4, 7)]
)
def test_changing_one_text_changes_no_other(family: str, changed: int, length: int) -> None:
    backbone, bank, batches = two_adapters(family)
    before, gradient_before = others(backbone, bank, batches, changed)
    batches[0][changed] = models.texts([length], seed=77)[0]
    after, gradient_after = others(backbone, bank, batches, changed)
    assert before.abs().max() > 0.01
    torch.testing.assert_close(after, before, rtol=0, atol=TOLERANCE)
    assert models.close(gradient_after, gradient_before, TOLERANCE)


@family
def test_a_text_depends_on_its_own_tokens_alone(family: str) -> None:
    """The gradient with respect to the embeddings of every other text's tokens is exactly zero."""
    backbone, bank, _ = two_adapters(family)
    lengths = [3, 30, 1, 17, 8, 1, 9]
    unique = np.split(np.arange(1, 1 + sum(lengths)), np.cumsum(lengths)[:-1])
    packed = pack([unique[:4], unique[4:]])
    backbone.tokens.requires_grad_()
    for text, own in enumerate(unique):
        row = backbone(packed, BankHook(bank, packed))[text]
        (gradient,) = torch.autograd.grad(row[:5].sum(), backbone.tokens)
        touched = gradient.abs().sum(dim=1).nonzero().flatten().tolist()
        assert touched == own.tolist()


@family
def test_order_of_texts_does_not_matter(family: str) -> None:
    backbone, bank, batches = two_adapters(family)
    shuffles = [np.random.default_rng(i).permutation(len(batch)) for i, batch in enumerate(batches)]
    before = logits(backbone, bank, pack(batches))
    mixed = [[batch[i] for i in shuffle] for batch, shuffle in zip(batches, shuffles, strict=True)]
    after = logits(backbone, bank, pack(mixed))
    for a, b, shuffle in zip(after, before, shuffles, strict=True):
        torch.testing.assert_close(a, b[shuffle], rtol=0, atol=TOLERANCE)


@family
def test_order_of_adapters_does_not_matter(family: str) -> None:
    backbone, bank, batches = two_adapters(family)
    first, second = logits(backbone, bank, pack(batches))
    reversed_bank = models.trained_bank(backbone, bank.specs[::-1])
    second_now, first_now = logits(backbone, reversed_bank, pack(batches[::-1]))
    torch.testing.assert_close(first_now, first, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(second_now, second, rtol=0, atol=TOLERANCE)


@family
def test_positions_restart(family: str) -> None:
    """A text has the same logits alone, first, and after more tokens than the model has positions."""
    backbone, bank, batches = two_adapters(family)
    text, longest = batches[0][3], models.texts([64], seed=9)[0]
    alone = logits(backbone, bank, pack([[text], [text]]))
    packed = pack([[text, longest, text], [longest, text, text]])
    for k, output in enumerate(logits(backbone, bank, packed)):
        for row in (0, 2) if k == 0 else (1, 2):
            torch.testing.assert_close(output[row], alone[k][0], rtol=0, atol=TOLERANCE)


def three_adapters(backbone: Backbone) -> Bank:
    return models.trained_bank(
        backbone, [models.spec(backbone, rank, seed=rank, dropout=0.1) for rank in (2, 4, 1)]
    )


def outputs_and_gradients(backbone: Backbone, bank: Bank) -> tuple[list[Any], list[Tensor]]:
    """Each adapter's logits and gradients, dropout on."""
    packed = pack([models.texts([5, 20, 9], seed=k) for k in range(3)])
    outputs = logits(
        backbone, bank, packed, StepMasks([spec.seed for spec in bank.specs], [0] * len(bank.specs), packed)
    )
    torch.autograd.backward(CrossEntropy()(outputs, [torch.tensor([0, 1, 2])] * 3).sum())
    return [each.tolist() for each in outputs], [bank.grad[segment] for segment in bank.segments]


@family
def test_a_neighbor_that_is_no_number(family: str) -> None:
    """With NaN in every weight of one adapter, the others are bit-identical."""
    backbone = models.backbone(family)
    sound, broken = three_adapters(backbone), three_adapters(backbone)
    broken.flat[broken.segments[1]] = torch.nan
    outputs, gradients = outputs_and_gradients(backbone, sound)
    outputs_now, gradients_now = outputs_and_gradients(backbone, broken)
    assert np.isnan(outputs_now[1]).all()
    for k in (0, 2):
        assert outputs_now[k] == outputs[k]
        assert torch.equal(gradients_now[k], gradients[k])
        assert float(gradients[k].abs().max()) > 0
