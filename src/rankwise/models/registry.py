"""The model families. A new one is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as brief
from typing import Any

import torch

from rankwise.errors import ModelError
from rankwise.models import gpt2, gpt_neox, llama, opt, qwen2
from rankwise.models.config import ModelConfig
from rankwise.models.family import Family
from rankwise.nn.backbone import Backbone, Source

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        gpt2.FAMILY,
        llama.FAMILY,
        qwen2.FAMILY,
        gpt_neox.FAMILY,
        opt.FAMILY,
    )
}
"""The word in config.json -> family."""

KNOWN: dict[str, dict[str, Any]] = {
    name: json for each in FAMILIES.values() for name, json in each.known.items()
}
"""Name -> config.json of the models that can be planned for without a network."""


def family_of(json: Mapping[str, Any]) -> Family:
    """The family that a config.json names.

    Raises:
        ModelError: its model type is not supported.
    """
    kind = json.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        supported = f"supported are {', '.join(FAMILIES)}"
        raise ModelError(f"config.json: model_type {brief(kind)} is not supported", hint=supported)
    return FAMILIES[kind]


def parse_config(json: Mapping[str, Any]) -> ModelConfig:
    """The checked settings of a model from its config.json.

    Raises:
        ModelError: the model type or one of its settings is not supported.
    """
    return family_of(json).config.from_json(json)


def build(
    json: Mapping[str, Any], weights: Source, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Backbone:
    """A frozen backbone.

    Args:
        json: the model's config.json.
        weights: where its tensors come from, under transformers' names without the family's prefix.
        dtype: of the linear weights and of matrix products.
        device: where it shall live.

    Raises:
        ModelError: the model is not supported, or a tensor is missing or misshapen.
    """
    return family_of(json).backbone(parse_config(json), weights, dtype, device)
