"""Tiny base models on disk, for families that only the parity tests need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rankwise.models.registry import FAMILIES
from tests import tiny


def base(folder: Path, name: str) -> Path:
    """A small model of the family with large random weights, a tokenizer and a pad token."""
    size = tiny._tokenizer(folder, {"pad_token": tiny.END})
    torch.manual_seed(4)
    peer = FAMILIES[name].peer
    special = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    config = getattr(transformers, peer.config)(**peer.small, vocab_size=size, **special)
    made: Any = transformers.AutoModelForCausalLM
    model = made.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gpt_neox_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("bases") / "tiny-gpt_neox", "gpt_neox")


@pytest.fixture(scope="session")
def opt_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("bases") / "tiny-opt", "opt")


@pytest.fixture(scope="session")
def qwen2_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base(tmp_path_factory.mktemp("bases") / "tiny-qwen2", "qwen2")
