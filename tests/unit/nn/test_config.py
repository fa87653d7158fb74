"""The keys of a config.json that are passed on, and the types that they must have."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from rankwise.errors import ModelError
from rankwise.models.config import KEYS, count, known


@pytest.mark.parametrize(
    "kind", [transformers.GPT2Config, transformers.LlamaConfig, transformers.Qwen2Config]
)
def test_transformers_own_configs_pass(kind: Any) -> None:
    config = kind(eos_token_id=[1, 2])
    kept = known(config.to_dict())
    again = kind(**{key: value for key, value in kept.items() if key != "model_type"})
    shape = {key for key in KEYS if hasattr(config, key)} - {"dtype", "torch_dtype", "transformers_version"}
    assert len(shape) > 15 and all(getattr(again, key) == getattr(config, key) for key in shape)


@pytest.mark.parametrize(
    ("key", "value"),
    [("use_cache", 1), ("n_layer", True), ("n_layer", 2.0), ("dtype", {}), ("rope_scaling", [])],
)
def test_other_types_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"{key} is "):
        known({"model_type": "gpt2", key: value})


def test_null_and_unknown_keys() -> None:
    assert known({"n_inner": None, "auto_map": {"AutoModel": "x.Y"}, "x": 1}) == {"n_inner": None}


@pytest.mark.parametrize(("key", "most"), [("n_layer", 1024), ("n_head", 4096), ("vocab_size", 1 << 24)])
def test_sizes_have_bounds(key: str, most: int) -> None:
    assert count({key: most}, key) == most
    with pytest.raises(ModelError, match=f"from 1 to {most}"):
        count({key: most + 1}, key)
