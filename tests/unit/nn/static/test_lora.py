"""Stacked adapters equal the individual adapters, and their gradients return to the right places."""

from __future__ import annotations

import pytest
import torch

from rankwise.nn.bank import AdapterSpec, Bank
from rankwise.nn.classifier import pooled
from rankwise.nn.ragged import lora as ragged_lora
from rankwise.nn.static import lora as static_lora
from rankwise.nn.static.batch import pack, unpack
from rankwise.nn.static.lora import StackedBank
from rankwise.nn.static.masks import StepMasks, keys
from tests.unit.nn import models
from tests.unit.nn.static.test_step import BATCHES, families, unlike

MODULES = {"h.0.q": (3, 4), "h.0.v": (3, 2)}


def numbered_bank() -> Bank:
    """Rank 2 on both target modules, a linear probe, and rank 1 on one module; parameter i is i + 1."""
    specs = [
        AdapterSpec(2, 1.0, 0.5, 1, 0.2, ("h.0.q", "h.0.v")),
        AdapterSpec(0, 1.0, 0.0, 2, 0.0, ()),
        AdapterSpec(1, 1.0, 2.0, 3, 0.0, ("h.0.v",)),
    ]
    bank = Bank(specs, MODULES, 5, 2)
    with torch.no_grad():
        bank.flat.copy_(torch.arange(1, 1 + len(bank.flat)))
    return bank


def test_leaves_are_the_tensors_padded_with_zeros() -> None:
    bank = numbered_bank()
    leaves = StackedBank(bank).leaves()
    assert {name: tuple(leaf.shape) for name, leaf in leaves.items()} == {
        "h.0.q.lora_A": (3, 2, 3),
        "h.0.q.lora_B": (3, 4, 2),
        "h.0.v.lora_A": (3, 2, 3),
        "h.0.v.lora_B": (3, 2, 2),
        "score": (3, 2, 5),
    }
    for name, leaf in leaves.items():
        for padded, tensors in zip(leaf.detach(), bank.tensors, strict=True):
            rows, columns = tensors[name].shape if name in tensors else (0, 0)
            if name in tensors:
                assert torch.equal(padded[:rows, :columns], tensors[name])
            assert not padded[rows:].any()
            assert not padded[:, columns:].any()


def test_gradients_are_added_where_the_parameters_are() -> None:
    """Each parameter's gradient equals its value; the gradient of the padding is discarded."""
    bank = numbered_bank()
    stacked = StackedBank(bank)
    gradients = [leaf.detach() + 1000 * (leaf.detach() == 0) for leaf in stacked.leaves().values()]
    stacked.add_gradients(gradients)
    assert torch.equal(bank.grad, bank.flat)
    stacked.add_gradients(gradients)
    assert torch.equal(bank.grad, 2 * bank.flat)


def test_scales() -> None:
    """Scales are 0 for adapters without the target module; with dropout, they are divided by 1 - rate."""
    stacked = StackedBank(numbered_bank())
    assert {name: scale.flatten().tolist() for name, scale in stacked.scales.items()} == {
        "h.0.q": [0.5, 0.0, 0.0],
        "h.0.v": [0.5, 0.0, 2.0],
    }
    assert stacked.dropout_scales["h.0.v"].flatten().tolist() == pytest.approx([0.625, 0.0, 2.0])


@families
def test_stacked_adapters_are_the_adapters_one_by_one(family: str) -> None:
    """On one static-shape batch with the same masks, including all dropout and its scales."""
    backbone = models.backbone(family)
    bank = models.trained_bank(backbone, unlike(backbone, dropout=0.4))
    seeds = [spec.seed for spec in bank.specs]
    shape, arrays = pack(BATCHES, seeds)
    packed = unpack(shape, {name: torch.from_numpy(array) for name, array in arrays.items()})
    masks = StepMasks(torch.from_numpy(keys(seeds, [3] * len(seeds))), packed, shape, {})
    stacked = static_lora.StackedBank(bank)
    leaves = stacked.leaves()
    hooks = static_lora.BankHook(stacked, leaves, masks), ragged_lora.BankHook(bank, packed, masks)
    outputs, expected = (
        torch.stack(hook.score(pooled(backbone, bank.first_layer, packed, hook))) for hook in hooks
    )
    torch.testing.assert_close(outputs, expected)
    torch.autograd.backward(expected.square().sum())
    theirs = bank.grad.clone()
    bank.grad.zero_()
    stacked.add_gradients(torch.autograd.grad(outputs.square().sum(), list(leaves.values())))
    for segment in bank.segments:
        assert models.close(bank.grad[segment], theirs[segment], 1e-5)
