"""Registry of model families. To add a family, add its module here."""

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
"""`model_type` in config.json -> family."""

KNOWN: dict[str, dict[str, Any]] = {
    name: json for each in FAMILIES.values() for name, json in each.known.items()
}
"""Name or Hub id -> config.json of models whose sweeps can be planned offline."""


def family_of(json: Mapping[str, Any]) -> Family:
    """The family that a config.json names.

    Raises:
        ModelError: its model type is not supported.
    """
    kind = json.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        supported = f"supported types are {', '.join(FAMILIES)}"
        raise ModelError(f"config.json: model_type {brief(kind)} is not supported", hint=supported)
    return FAMILIES[kind]


def parse_config(json: Mapping[str, Any]) -> ModelConfig:
    """Validate a model's config.json.

    Raises:
        ModelError: the model type or one of its settings is not supported.
    """
    return family_of(json).config.from_json(json)


def build(
    json: Mapping[str, Any], weights: Source, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Backbone:
    """Build a frozen backbone.

    Args:
        json: the model's config.json.
        weights: source of the tensors, under transformers' names without the family's prefix.
        dtype: dtype of linear weights and matrix products.
        device: device for the model.

    Raises:
        ModelError: the model is not supported, or a tensor is missing or has the wrong shape.
    """
    return family_of(json).backbone(parse_config(json), weights, dtype, device)
