"""Frozen backbones: their target modules, merging, precision, and the checks of their configs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rankwise.models import registry as families
from rankwise.nn.backbone import Backbone, Hook
from rankwise.nn.bank import HEAD
from rankwise.nn.classifier import logits
from rankwise.nn.ragged.batch import pack
from tests.unit.nn import models

family = pytest.mark.parametrize("family", models.FAMILIES)
TEXTS = models.texts([5, 30, 1, 12])


def hidden(backbone: Backbone) -> Tensor:
    return backbone(pack([TEXTS]), Hook())


@family
def test_target_modules_and_parameters(family: str) -> None:
    """The backbone has the target modules that its config lists, and uses every weight once."""
    taken: list[int] = []

    class Counting(models.RandomWeights):
        def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
            tensor = super().take(name, shape)
            taken.append(tensor.numel())
            return tensor

    config = families.parse_config(models.CONFIGS[family])
    backbone = families.build(models.CONFIGS[family], Counting(), torch.float32)
    assert backbone.modules() == config.module_shapes()
    assert sum(taken) == config.parameters()
    assert hidden(backbone).shape == (len(TEXTS), config.d_model)


@family
def test_merged_is_the_same_model(family: str) -> None:
    """Also if several target modules are stored as one matrix."""
    backbone = models.backbone(family)
    bank = models.trained_bank(backbone, [models.spec(backbone, 3, targets=["all-linear"])])
    (before,) = logits(backbone, bank, pack([TEXTS]))
    tensors = bank.tensors[0]
    with torch.no_grad():
        for linear in backbone.linears():
            for module in linear.modules:
                linear.merge(module, 0.5 * tensors[f"{module}.lora_B"] @ tensors[f"{module}.lora_A"])
        after = hidden(backbone) @ tensors[HEAD].T
    assert models.close(after, before, 1e-5)
    assert not models.close(hidden(models.backbone(family)), hidden(backbone), 1e-2)


@family
def test_bfloat16_is_near_float32(family: str) -> None:
    """Within a few bfloat16 rounding errors (1 in 256), whether built in bfloat16 or cast later."""
    exact = hidden(models.backbone(family))
    rounded = models.backbone(family, torch.bfloat16)
    late = models.backbone(family)
    late.cast(torch.bfloat16)
    for backbone in (rounded, late):
        assert {linear.weight.dtype for linear in backbone.linears()} == {torch.bfloat16}
        found = hidden(backbone)
        assert found.dtype == torch.float32
        assert models.close(found, exact, 0.03)
        assert not models.close(found, exact, 1e-4)
    assert torch.equal(hidden(rounded), hidden(late))


@family
def test_a_bank_learns_in_float32_on_a_bfloat16_backbone(family: str) -> None:
    backbone, exact = models.backbone(family, torch.bfloat16), models.backbone(family)
    gradients = []
    for each in (backbone, exact):
        bank = models.trained_bank(each, [models.spec(each, 2)])
        torch.autograd.backward(logits(each, bank, pack([TEXTS]))[0].square().sum())
        gradients.append(bank.grad)
    assert gradients[0].dtype == torch.float32
    assert models.close(gradients[0], gradients[1], 0.05)
