"""Frozen backbones: their target modules, merging, precision, and the checks of their configs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rankwise.errors import ModelError
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
    """The target modules that the config promises are the backbone's; every number of it is taken once."""
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
    assert families.backbone_class(config) is type(backbone)


@family
def test_merged_is_the_same_model(family: str) -> None:
    """Also where several target modules are stored as one matrix."""
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
    """A few of bfloat16's roundings (1 in 256) away, whether built so or cast later."""
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


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("gpt2", {"model_type": "bert"}, "model_type 'bert' is not supported"),
    ("gpt2", {"model_type": None}, "model_type None is not supported"),
    ("gpt2", {"n_embd": 25}, "n_embd 25 is not a multiple of n_head 3"),
    ("gpt2", {"n_embd": True}, "n_embd must be a whole number"),
    ("gpt2", {"n_layer": 0}, "n_layer must be a whole number"),
    ("gpt2", {"n_layer": 10**9}, "n_layer must be a whole number"),
    ("gpt2", {"n_head": "3"}, "n_head must be a whole number"),
    ("gpt2", {"vocab_size": 1.5}, "vocab_size must be a whole number"),
    ("gpt2", {"attn_pdrop": 1.0}, "attn_pdrop must lie between 0 and 1"),
    ("gpt2", {"embd_pdrop": "0.1"}, "embd_pdrop must lie between 0 and 1"),
    ("gpt2", {"layer_norm_epsilon": 0}, "layer_norm_epsilon must be a positive number"),
    ("gpt2", {"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon must be a positive number"),
    ("gpt2", {"activation_function": "eval"}, "activation_function = 'eval' is not supported"),
    ("gpt2", {"activation_function": ["gelu"]}, "is not supported"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights = false is not supported"),
    ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn is not supported"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is not supported"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention is not supported"),
    ("llama", {"hidden_size": None}, "hidden_size must be a whole number"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
    ("llama", {"num_key_value_heads": 4}, "6 heads, 4 key-value heads of size 4 do not fit"),
    ("llama", {"head_dim": 5}, "key-value heads of size 5 do not fit"),
    ("llama", {"attention_bias": 1}, "attention_bias must be true or false"),
    ("llama", {"rope_scaling": "linear"}, "the rotary settings must be an object"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "rotary type 'linear' is not supported"),
    ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rotary type 'yarn' is not supported"),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": -1}}, "factor must be a positive"),
    ("llama", {"rope_theta": float("inf")}, "rope_theta must be a positive number"),
    ("llama", {"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window is not supported"),
]


@pytest.mark.parametrize(("family", "changes", "message"), BAD)
def test_bad_configs(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        families.parse_config(models.CONFIGS[family] | changes)
    assert str(caught.value).startswith("config.json: ")


def test_defaults_are_transformers_own() -> None:
    """An old GPT-2's config.json says next to nothing."""
    config = families.parse_config({"model_type": "gpt2"})
    assert config.parameters() == 124_439_808


def test_null_counts_as_missing() -> None:
    config = families.parse_config(models.CONFIGS["gpt2"] | {"n_inner": None})
    assert config.d_ff == 96


def test_rotary_theta_in_either_place() -> None:
    old = families.parse_config(models.CONFIGS["llama"] | {"rope_theta": 5e5})
    new = families.parse_config(models.CONFIGS["llama"] | {"rope_parameters": {"rope_theta": 5e5}})
    assert old == new != families.parse_config(models.CONFIGS["llama"])
