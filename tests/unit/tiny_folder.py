"""A folder with a tiny, untrained GPT-2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TINY = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 11}


def model_folder(path: Path, config: dict[str, Any] | None = None) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(TINY if config is None else config))
    save_file({"wte.weight": torch.ones(11, 8)}, path / "model.safetensors")
    (path / "tokenizer_config.json").write_text("{}")
    return path
