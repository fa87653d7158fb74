"""Low-rank products and their hand-written backward pass equal a plain autograd reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rankwise.nn.bank import AdapterSpec, Bank
from rankwise.nn.linear import Linear
from rankwise.nn.ragged.batch import pack
from rankwise.nn.ragged.lora import BankHook
from rankwise.nn.ragged.masks import StepMasks
from tests.unit.nn.gradients import compare, leaves
from tests.unit.nn.models import texts


def bank_of_four(modules: dict[str, tuple[int, int]]) -> Bank:
    """Adapters with different ranks, dropout rates, scales and target modules; one is a linear probe."""
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
    seeds = [spec.seed for spec in bank.specs]
    masks = StepMasks(seeds, [3] * len(seeds), packed) if dropout else None
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
    """A linear layer without an adapter equals the frozen layer."""
    packed = pack([texts([3, 9])])
    weight, x = leaves((4, 10), (12, 10))
    linear = Linear(weight.detach(), None, {"h.0.q": slice(0, 4)})
    bank = Bank([AdapterSpec(0, 1.0, 0.0, 1, 0.0, ())], {"h.0.q": (10, 4)}, 10, 2)
    compare(BankHook(bank, packed).linear(linear, x), F.linear(x, weight.detach()), (x,))
