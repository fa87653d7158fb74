"""Adapters with random tensors, made without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rankwise.models import base as bases
from rankwise.models import peft_format as adapters
from rankwise.models.base import load_backbone
from rankwise.models.peft_format import SavedAdapter
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import AdapterSpec, layer_of, match_modules, tensor_shapes
from rankwise.serve.engine import Engine
from rankwise.serve.queue import Logits, Task
from rankwise.store import files

LETTERS = ("a", "b", "c", "d", "e", "f", "g")


def make_adapter(
    folder: Path,
    base: Path,
    *,
    rank: int = 4,
    seed: int = 1,
    labels: Sequence[str] = LETTERS[:3],
    max_length: int = 32,
    last_layers: int | None = None,
    targets: Sequence[str] = ("all-linear",),
    **more: Any,
) -> Path:
    """Write an adapter whose answers differ clearly from text to text."""
    backbone = backbone_of(base)
    modules = match_modules(list(backbone.modules()), targets) if rank else ()
    first = 0 if last_layers is None else backbone.depth - last_layers
    modules = tuple(module for module in modules if layer_of(module) >= first)
    spec = AdapterSpec(rank, 4.0, 2.0 if rank else 0.0, seed, 0.0, modules)
    random = torch.Generator().manual_seed(1000 * seed + rank)
    shapes = tensor_shapes(spec, backbone.modules(), backbone.d_model, len(labels))
    state = {name: 0.3 * torch.randn(shape, generator=random) for name, shape in shapes.items()}
    saved = SavedAdapter(spec, state, tuple(labels), str(base), max_length, **more)
    config = files.read_object(base / "config.json")
    adapters.save(folder, saved, config, Tokenizer.load(base).files())
    return folder


def backbone_of(base: Path) -> Backbone:
    return load_backbone(bases.find(str(base)), torch.float32, torch.device("cpu"))


def logits_of(engine: Engine, tasks: Sequence[Task]) -> list[Logits]:
    """Submit a job, and wait for it."""
    return engine.submit(tasks).done.result()
