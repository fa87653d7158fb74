"""Which backbone a model type has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rankwise.errors import ModelError
from rankwise.models.gpt2 import GPT2, GPT2Config
from rankwise.models.llama import Llama, LlamaConfig
from rankwise.nn.backbone import Backbone, Source

Config = GPT2Config | LlamaConfig
_CONFIGS: dict[str, type[GPT2Config] | type[LlamaConfig]] = {
    "gpt2": GPT2Config,
    "llama": LlamaConfig,
    "qwen2": LlamaConfig,
}


def parse_config(json: Mapping[str, Any]) -> Config:
    """The checked shape of a model from its config.json.

    Raises:
        ModelError: the model type or one of its settings is not supported.
    """
    kind = json.get("model_type")
    if kind not in _CONFIGS:
        raise ModelError(
            f"config.json: model_type {kind!r} is not supported", hint=f"supported are {', '.join(_CONFIGS)}"
        )
    return _CONFIGS[kind].from_json(json)


def backbone_class(config: Config) -> type[GPT2] | type[Llama]:
    """The backbone of a config's family."""
    return GPT2 if isinstance(config, GPT2Config) else Llama


def build(
    json: Mapping[str, Any], weights: Source, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Backbone:
    """A frozen backbone.

    Args:
        json: the model's config.json.
        weights: where its tensors come from.
        dtype: of the linear weights and of matrix products.
        device: where it shall live.

    Raises:
        ModelError: the model is not supported, or a tensor is missing or misshapen.
    """
    config = parse_config(json)
    return (
        GPT2(config, weights, dtype, device)
        if isinstance(config, GPT2Config)
        else Llama(config, weights, dtype, device)
    )
