"""Adapters of any rank and labels in one packed batch give what each gives alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rankwise.models import peft_format
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import Bank
from rankwise.nn.batch import Ids
from rankwise.nn.inference import bank_logits
from rankwise.nn.mixed import Adapter, mixed_logits
from tests.serve.made import LETTERS, backbone_of, make_adapter

SHAPES: tuple[dict[str, Any], ...] = (
    {"rank": 4, "labels": LETTERS[:3]},
    {"rank": 0, "labels": LETTERS[:5]},
    {"rank": 1, "labels": LETTERS[:2], "targets": ("c_attn",)},
    {"rank": 8, "labels": LETTERS, "last_layers": 1},
)


def texts(seed: int) -> list[Ids]:
    """Texts of many lengths, some with a shared prefix and some equal."""
    random = np.random.default_rng(seed)
    found = [random.integers(1, 200, length) for length in (1, 3, 9, 17, 30)]
    return [*found, np.concatenate([found[2], found[1]]), found[3]]


@pytest.fixture(scope="module")
def backbone(gpt2_base: Path) -> Backbone:
    return backbone_of(gpt2_base)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, gpt2_base: Path) -> list[peft_format.SavedAdapter]:
    folder = tmp_path_factory.mktemp("adapters")
    made = [make_adapter(folder / str(i), gpt2_base, seed=i + 1, **shape) for i, shape in enumerate(SHAPES)]
    return [peft_format.load(each) for each in made]


def alone(backbone: Backbone, saved: peft_format.SavedAdapter, batch: list[Ids]) -> np.ndarray:
    """The logits of a bank with this adapter only."""
    bank = Bank([saved.spec], backbone.modules(), backbone.d_model, len(saved.labels))
    bank.load(0, saved.state)
    found: np.ndarray = bank_logits(backbone, bank, batch)[0]
    return found


@pytest.mark.parametrize("members", [(0, 1, 2, 3), (1, 3), (3, 3), (1,), (1, 1)], ids=str)
def test_each_adapter_answers_as_alone(
    backbone: Backbone, saved: list[peft_format.SavedAdapter], members: tuple[int, ...]
) -> None:
    adapters = [Adapter.of(saved[k].spec, saved[k].state, backbone) for k in members]
    batches = [texts(seed) if seed else texts(1) for seed, _ in enumerate(members)]
    found = mixed_logits(backbone, adapters, batches)
    for k, batch, logits in zip(members, batches, found, strict=True):
        np.testing.assert_allclose(logits, alone(backbone, saved[k], batch), atol=1e-5, rtol=1e-5)


def test_modules_that_share_a_layer_stay_apart(llama_base: Path, tmp_path: Path) -> None:
    """Llama fuses query, key and value, and gate and up."""
    backbone = backbone_of(llama_base)
    targets = (("v_proj", "q_proj"), ("k_proj", "up_proj"), ("all-linear",))
    saved = [
        peft_format.load(make_adapter(tmp_path / str(i), llama_base, seed=i, rank=2 + i, targets=each))
        for i, each in enumerate(targets)
    ]
    adapters = [Adapter.of(each.spec, each.state, backbone) for each in saved]
    found = mixed_logits(backbone, adapters, [texts(1)] * 3)
    for each, logits in zip(saved, found, strict=True):
        np.testing.assert_allclose(logits, alone(backbone, each, texts(1)), atol=1e-5, rtol=1e-5)


def test_a_text_of_several_adapters_is_computed_once_below_the_first(
    backbone: Backbone, saved: list[peft_format.SavedAdapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    layer = type(backbone).layer

    def counting(self: Backbone, i: int, x: torch.Tensor, *rest: object) -> torch.Tensor:
        rows.append(len(x))
        found: torch.Tensor = layer(self, i, x, *rest)  # type: ignore[arg-type]
        return found

    monkeypatch.setattr(type(backbone), "layer", counting)
    adapters = [Adapter.of(saved[3].spec, saved[3].state, backbone) for _ in range(3)]
    mixed_logits(backbone, adapters, [texts(1)] * 3)
    assert rows[1] == 3 * rows[0]
