"""What the end of a sweep needs is checked before it trains."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise import ModelError, Recipe, ResourceError, UsageError, sweep
from rankwise.commands import checks
from rankwise.models import base as bases
from rankwise.models import peft_format
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.bank import AdapterSpec
from rankwise.plan import make
from rankwise.store import files
from rankwise.training.callbacks import Callback
from tests import tiny

F32 = (torch.float32, torch.device("cpu"))


class Steps(Callback):
    """Counts the training steps."""

    made = 0

    def step(self, adapters: Sequence[str], number: int, steps: int, losses: Sequence[float]) -> None:
        self.made += 1


@pytest.mark.parametrize("name", checks.LIBRARIES)
def test_a_library_that_cannot_be_imported(
    name: str, gpt2_base: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
    package, steps = name.partition(".")[0], Steps()
    with pytest.raises(UsageError, match=f"{package} cannot be imported, and ") as caught:
        sweep(tiny.recipe(gpt2_base, data_folder), tmp_path / "run", steps)
    assert caught.value.hint.endswith(f"-m pip install --force-reinstall {package}")
    assert steps.made == 0 and not (tmp_path / "run").exists()


def test_docstrings_that_were_removed(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    arguments = ["--base", gpt2_base, "--data", data_folder, "--out", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-m", "rankwise", "sweep", *map(str, arguments)],
        env=os.environ | {"PYTHONOPTIMIZE": "2"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2 and "unset PYTHONOPTIMIZE" in done.stderr
    assert "it needs docstrings, which this Python has removed" in done.stderr and "Args" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_disk_without_room(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, steps = tiny.recipe(gpt2_base, data_folder, ranks=(1, 4)), Steps()
    config = files.read_object(gpt2_base / "config.json")
    plan = make(recipe, config, has_pad_token=False, classes=3)
    params = {row.rank: row.trainable_params for row in plan.rows}
    # The linear probe has a head of 3 x 16. Both adapters are in one bank, with two checkpoints.
    needed = 4 * (params[1] + params[4] + 48) + 2 * 4 * 4 * (params[1] + params[4])
    monkeypatch.setattr(files, "free_bytes", lambda folder: needed)
    checks.require_room(tmp_path, plan, config)
    monkeypatch.setattr(files, "free_bytes", lambda folder: needed - 1)
    with pytest.raises(ResourceError, match="MB are free, but the adapters need"):
        sweep(recipe, tmp_path / "run", steps)
    assert steps.made == 0 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 2e6},
        {"alpha": 1e5, "alpha_mode": "ratio", "ranks": (16,)},
        {"alpha": 1e7, "alpha_mode": "fixed"},
        {"vary": {"alpha": (1, 1e9)}},
        {"alpha": 1e5, "ranks": (16,), "alpha_mode": "fixed", "vary": {"alpha_mode": ("fixed", "ratio")}},
    ],
)
def test_an_alpha_that_cannot_be_loaded_again(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"alpha: .* a lora_alpha of .*; the largest is 1e\+06"):
        Recipe(**settings)


def test_the_largest_alpha_can_be_loaded_again(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(
        gpt2_base, data_folder, alpha=1e6, ranks=(1,), epochs=1, learning_rate=1e-12, baselines=False
    )
    sweep(recipe, tmp_path / "run")
    assert peft_format.load(tmp_path / "run" / "adapters" / "r1-s110").spec.alpha == 1e6


def rehearse(base: Path, folder: Path, specs: Sequence[AdapterSpec], **changes: Any) -> None:
    config = files.read_object(base / "config.json")
    saved = peft_format.SavedAdapter(specs[0], {}, tiny.LABELS, str(base), 32)
    checks.rehearse(folder, specs, replace(saved, **changes), config, Tokenizer.load(base))


def test_adapters_are_written_and_read_before_training(gpt2_base: Path, tmp_path: Path) -> None:
    module = next(iter(bases.load_backbone(bases.find(str(gpt2_base)), *F32).modules()))
    good = [AdapterSpec(rank, 8.0, 8.0 / max(rank, 1), 0, 0.0, (module,) * bool(rank)) for rank in (0, 1, 4)]
    rehearse(gpt2_base, tmp_path, good)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ModelError, match=r"adapter r4-s0 could not be loaded again: .*lora_alpha must be"):
        rehearse(gpt2_base, tmp_path, [*good[:2], replace(good[2], alpha=1e9)])
    with pytest.raises(ModelError, match=r"adapter r0-s0 could not be loaded again: .*control character"):
        rehearse(gpt2_base, tmp_path, good, labels=("a", "b\x07", "c"))
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_is_not_as_it_was_written(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A faulty disk is noticed when the adapter is written, not when it is used."""
    real = peft_format.save

    def save(folder: Path, *arguments: Any) -> None:
        real(folder, *arguments)
        if folder.name == "r1-s110":
            path = folder / peft_format.WEIGHTS
            path.write_bytes(path.read_bytes()[:-1] + b"?")

    monkeypatch.setattr(peft_format, "save", save)
    with pytest.raises(ModelError, match="damaged: it is not as it was written"):
        sweep(tiny.recipe(gpt2_base, data_folder, ranks=(1,), baselines=False), tmp_path / "run")
