"""Diverged adapters are dropped and reported; out-of-memory errors halve the batch."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rankwise import Recipe, ResourceError, TrainingError, sweep
from rankwise.models import peft_format as adapters
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import Bank
from rankwise.nn.ragged import step as step_module
from rankwise.report import ranks, tables
from rankwise.report.run import load
from rankwise.store.run_folder import RunFolder
from rankwise.training.optimizer import AdamW
from tests import tiny
from tests.unit.test_resume import STEPS, Stop, content, stopped
from tests.unit.test_sweep import assert_alike

Injected = Callable[..., None]
computing: Any = step_module


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Injected:
    """Corrupt an adapter's loss, gradient or weight from a given step on."""

    def inject(name: str, step: int, value: float = float("nan"), where: str = "loss") -> None:
        forward, update = computing.logits, AdamW.step
        done = [0]  # steps

        def poison(bank: Bank, tensors: list[Tensor], now: str) -> None:
            for spec, tensor in zip(bank.specs, tensors, strict=True):
                if (spec.name, done[0] + 1, now) == (name, step, where):
                    tensor.detach().view(-1)[0] = value

        def logits(backbone: Backbone, bank: Bank, *more: Any) -> list[Tensor]:
            outputs: list[Tensor] = forward(backbone, bank, *more)
            poison(bank, outputs, "loss")
            return outputs

        def stepped(self: AdamW, rates: list[float]) -> Tensor:
            done[0] = max(self.steps, default=0)
            poison(self.bank, [self.bank.grad[s] for s in self.bank.segments], "gradient")
            norms = update(self, rates)
            poison(self.bank, [self.bank.flat.detach()[s] for s in self.bank.segments], "weight")
            done[0] = max(self.steps, default=0)
            return norms

        monkeypatch.setattr(computing, "logits", logits)
        monkeypatch.setattr(AdamW, "step", stepped)

    return inject


@pytest.mark.parametrize("where", ["loss", "gradient", "weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_neighbors_go_on(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, run: RunFolder, poisoned: Injected,
    where: str, value: float,
) -> None:  # fmt: skip
    """r2 is dropped within the step; r1 and r4 are the same as without it."""
    poisoned("r2-s110", 4, value, where)
    folder, ears = RunFolder(tmp_path / "run"), Stop()
    recipe = tiny.recipe(gpt2_base, data_folder, ranks=(0, 1, 2, 4))
    results = sweep(recipe, folder.path, ears)
    assert [row.name for row in results.adapters] == ["r0-s110", "r1-s110", "r4-s110"]
    (gone,) = results.diverged
    assert (gone.name, gone.rank, gone.seed, gone.step) == ("r2-s110", 2, 110, 4)
    assert ears.notes == [f"step 4: adapter r2-s110 is dropped: {gone.reason}"]
    assert re.fullmatch(
        r"loss \S+, gradient norm \S+ and weight norm \S+ on training texts (\d+, ){7}\d+", gone.reason
    )
    assert "Dropped: r2-s110 diverged at step 4." in folder.table.read_text("utf-8")
    for name in ("r1-s110", "r4-s110"):
        one, other = (adapters.load(each.adapters / name).state for each in (run, folder))
        assert_alike(one, other, 1e-4)
    assert not (folder.adapters / "r2-s110").exists()
    assert ranks.compare(load(folder)).seeds == [110]


def test_a_sweep_that_dropped_one_is_resumed(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, poisoned: Injected
) -> None:
    """Bit-identical before and after."""
    poisoned("r4-s110", 8)
    recipe = tiny.recipe(gpt2_base, data_folder, ranks=(1, 2, 4))
    sweep(recipe, tmp_path / "whole")
    for step in (5, 11):
        folder = tmp_path / str(step)
        stopped(recipe, folder, Stop(step))
        sweep(recipe, folder, resume=True)
        assert content(folder) == content(tmp_path / "whole")
    ears = Stop()
    assert sweep(recipe, tmp_path / "whole", ears, resume=True).diverged
    assert ears.steps == 0


def test_no_adapter_is_left(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(gpt2_base, data_folder, ranks=(1, 4), learning_rate=1e30)
    with pytest.raises(
        TrainingError, match="left: r1-s110 at step 1, r4-s110 at step 1; the first had loss"
    ) as caught:
        sweep(recipe, tmp_path / "run")
    assert caught.value.exit_status == 7
    assert list((tmp_path / "run" / "checkpoint").iterdir())


def test_stop_keeps_the_last_good_state(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, poisoned: Injected
) -> None:
    poisoned("r4-s110", 8)
    recipe = tiny.recipe(gpt2_base, data_folder, ranks=(1, 4), on_nan="stop", baselines=False)
    with pytest.raises(TrainingError, match="step 8: adapter r4-s110 has loss nan") as caught:
        sweep(recipe, tmp_path / "run")
    assert "on_nan='drop'" in caught.value.hint
    dropping, ears = recipe.replace(on_nan="drop"), Stop()
    results = sweep(dropping, tmp_path / "run", ears, resume=True)
    assert [row.name for row in results.adapters] == ["r1-s110"]
    assert ears.steps == 3 * STEPS - STEPS  # from the end of the first epoch


def test_ranks_are_compared_on_the_seeds_they_share(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, poisoned: Injected
) -> None:
    poisoned("r4-s7", 3)
    folder = RunFolder(tmp_path / "run")
    sweep(tiny.recipe(gpt2_base, data_folder, ranks=(1, 4), seeds=(7, 8), epochs=1), folder.path)
    run = load(folder)
    found = ranks.compare(run)
    assert found.seeds == [8]
    assert [each.rank for each in found.ranks] == [1, 4]
    assert [row[0] for row in tables.rank_table(run).rows if row[0][0] == "4"] == [
        "4 (1 of 2 seeds)",
        "4 cut to 1 (1 of 2 seeds)",
    ]


def test_ranks_without_a_common_seed(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, poisoned: Injected
) -> None:
    poisoned("r4-s7", 3)
    poisoned("r2-s8", 4)
    folder = RunFolder(tmp_path / "run")
    sweep(tiny.recipe(gpt2_base, data_folder, ranks=(1, 2, 4), seeds=(7, 8), epochs=1), folder.path)
    found = ranks.compare(load(folder))
    assert (found.seeds, [each.rank for each in found.ranks]) == ([7], [1, 2])


# Memory

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
]


def full(
    monkeypatch: pytest.MonkeyPatch, error: Exception, *, adapters: int, texts: int, after: int = 0
) -> None:
    """Fail forward passes with more adapters or texts than the limits, after `after` passes."""
    real, passes = computing.logits, [0]

    def logits(backbone: Any, bank: Bank, packed: Any, *more: Any) -> list[Tensor]:
        passes[0] += 1
        if passes[0] > after and (len(bank.specs) > adapters or len(packed.last) > texts):
            raise error
        outputs: list[Tensor] = real(backbone, bank, packed, *more)
        return outputs

    monkeypatch.setattr(computing, "logits", logits)


@pytest.mark.parametrize(
    ("error", "after"),
    [*((error, 0) for error in ERRORS), (ERRORS[0], STEPS + 3)],
    ids=lambda each: str(each) if isinstance(each, int) else type(each).__name__,
)
def test_a_bank_is_halved(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    error: Exception, after: int,
) -> None:  # fmt: skip
    recipe, folder = (
        tiny.recipe(gpt2_base, data_folder, ranks=(1, 2, 4), baselines=False),
        RunFolder(tmp_path / "run"),
    )
    whole = RunFolder(tmp_path / "whole")
    sweep(recipe, whole.path)
    full(monkeypatch, error, adapters=1, texts=8, after=after)
    ears = Stop()
    results = sweep(recipe, folder.path, ears)
    assert [row.bank for row in results.adapters] == [1, 2, 3]
    assert [note.partition(";")[0] for note in ears.notes] == [
        "out of memory: the bank of 3 adapters is split into 2 and 1",
        "out of memory: the bank of 2 adapters is split into 1 and 1",
    ]
    assert all("memory_gb" in note for note in ears.notes)
    for name in ("r1-s110", "r2-s110", "r4-s110"):
        one, other = (adapters.load(each.adapters / name).state for each in (whole, folder))
        assert_alike(one, other, 1e-4)
    steps = [line for line in folder.history.read_text("utf-8").splitlines() if '"step"' in line]
    shared = STEPS if after else 0  # trained together, up to the last checkpoint
    assert len(steps) == shared + 3 * (3 * STEPS - shared)


@pytest.mark.parametrize("weights", ["none", "balanced"])
@pytest.mark.parametrize("base", ["gpt2_base", "llama_base"])
def test_a_lone_adapter_adds_up_its_gradients(
    request: pytest.FixtureRequest, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    base: str, weights: str,
) -> None:  # fmt: skip
    """With all dropout on: a micro-batch has the same dropout masks as in the whole batch."""
    folders = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    changes: dict[str, Any] = {"ranks": (4,), "lora_dropout": 0.1, "class_weights": weights, "batch_size": 7}
    changes["baselines"] = False  # a linear probe needs as much memory, and has no micro-batches
    recipe: Recipe = tiny.recipe(request.getfixturevalue(base), data_folder, **changes)
    sweep(recipe, folders[0].path)
    full(monkeypatch, MemoryError(), adapters=1, texts=2)
    ears = Stop()
    sweep(recipe, folders[1].path, ears)
    assert ears.notes[-1].startswith("out of memory: batches of 7 are computed in 4 micro-batches")
    one, other = (adapters.load(each.adapters / "r4-s110").state for each in folders)
    assert_alike(one, other, 1e-4)
    losses = [each.read_results().adapters[0].train_loss for each in folders]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_no_room_for_one_text(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch, MemoryError(), adapters=0, texts=0)
    with pytest.raises(ResourceError, match="one adapter and one text of 32 tokens") as caught:
        sweep(tiny.recipe(gpt2_base, data_folder, ranks=(1, 4)), tmp_path / "run")
    assert "max_length" in caught.value.hint


def test_no_room_elsewhere(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    def load_with_digest(*arguments: Any) -> None:
        raise ERRORS[2]

    monkeypatch.setattr(importlib.import_module("rankwise.models.base"), "load_with_digest", load_with_digest)
    with pytest.raises(ResourceError, match="out of memory"):
        sweep(tiny.recipe(gpt2_base, data_folder), tmp_path / "run")
