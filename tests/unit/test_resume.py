"""A resumed sweep is bit-identical to an uninterrupted one; a finished sweep is not retrained."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rankwise import Recipe, UsageError, sweep
from rankwise.errors import on_command_line
from rankwise.store import files
from rankwise.store.run_folder import RunFolder
from rankwise.training import checkpoint
from rankwise.training.callbacks import Callback
from rankwise.training.resume import changes
from tests import tiny

SAME = ("predictions.csv", "history.jsonl", "results.json", "table.md", "samples.md", "recipe.toml")
STEPS = 6  # of 8 texts, in 48
Whole = Callable[[tuple[int, ...]], dict[str, bytes]]


class Stop(Callback):
    """A callback that sends Ctrl-C after some steps, or at the start of the n-th stage with a name."""

    def __init__(self, step: int | None = None, stage: tuple[str, int] = ("", 0)) -> None:
        self.at, self.stage, self.nth = step, *stage
        self.steps, self.seen = 0, 0
        self.training = False
        self.notes: list[str] = []
        self.stages: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, stage: str, total: int | None) -> None:
        self.stages.append(stage)
        self.training = stage.startswith("train")
        self.seen += stage == self.stage
        if self.nth and self.seen == self.nth:
            raise KeyboardInterrupt

    def step(self, adapters: Sequence[str], number: int, steps: int, losses: Sequence[float]) -> None:
        self.steps += 1

    def check(self) -> None:
        if self.steps == self.at:
            raise KeyboardInterrupt


def content(folder: Path) -> dict[str, bytes]:
    """All files of a run that must be reproducible."""
    found = {name: (folder / name).read_bytes() for name in SAME}
    for part in ("adapters", "logits"):
        for path in sorted((folder / part).rglob("*.*")):
            found[str(path.relative_to(folder))] = path.read_bytes()
    assert not (folder / "checkpoint").exists() and not (folder / files.LOCK).exists()
    return found


def stopped(recipe: Recipe, folder: Path, stop: Stop, **options: Any) -> Stop:
    """Run or resume a sweep until the callback stops it."""
    from rankwise.training import signals

    real, signals.check = signals.check, stop.check
    try:
        with pytest.raises(KeyboardInterrupt):
            sweep(recipe, folder, stop, **options)
    finally:
        signals.check = real
    return stop


@pytest.fixture(scope="module")
def whole(gpt2_base: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Ranks -> the files of their uninterrupted sweep."""

    @cache
    def of(ranks: tuple[int, ...]) -> dict[str, bytes]:
        folder = tmp_path_factory.mktemp("whole") / "run"
        sweep(tiny.recipe(gpt2_base, data_folder, ranks=ranks, keep="best"), folder)
        return content(folder)

    return of


@pytest.mark.parametrize("ranks", [(0,), (1,), (16,), (0, 1, 16), (1, 2, 3, 4, 16)], ids=str)
@pytest.mark.parametrize("step", [1, STEPS + 2, 2 * STEPS, 3 * STEPS - 1, 3 * STEPS], ids=str)
def test_stopped_at_a_step(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, whole: Whole, ranks: tuple[int, ...], step: int
) -> None:
    """Mid-epoch, at an epoch's end before validation, at the last step; probes, one bank, several banks."""
    recipe = tiny.recipe(gpt2_base, data_folder, ranks=ranks, keep="best")
    stop = stopped(recipe, tmp_path / "cut", Stop(step))
    assert (tmp_path / "cut" / "checkpoint").exists()
    (saved,) = stop.notes
    assert saved == f"saved; go on with: sweep(recipe, {str(tmp_path / 'cut')!r}, resume=True)"
    assert on_command_line(saved) == f"saved; go on with: rankwise sweep --resume {tmp_path / 'cut'}"
    again = Stop()
    sweep(recipe, tmp_path / "cut", again, resume=True)
    left = 3 * STEPS * (1 if ranks == (0,) else 2) - step  # linear probes have a separate bank
    assert again.steps == left, "steps were made twice, or left out"
    assert content(tmp_path / "cut") == whole(ranks)


@pytest.mark.parametrize("stage", [("validation", 1), ("validation", 3), ("test", 1), ("test", 2)], ids=str)
def test_stopped_while_evaluating(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, run: RunFolder, stage: tuple[str, int]
) -> None:
    recipe = tiny.recipe(gpt2_base, data_folder)
    stopped(recipe, tmp_path / "cut", Stop(stage=stage))
    sweep(recipe, tmp_path / "cut", resume=True)
    assert content(tmp_path / "cut") == content(run.path)


@pytest.mark.parametrize("stage", ["data", "base", "tokens", "load"])
def test_stopped_before_training(gpt2_base: Path, data_folder: Path, tmp_path: Path, stage: str) -> None:
    """There is nothing to save, which is reported, and no folder is left behind."""
    recipe = tiny.recipe(gpt2_base, data_folder)
    stop = stopped(recipe, tmp_path / "cut", Stop(stage=(stage, 1)))
    assert stop.notes == ["nothing was trained yet, so there is nothing to save"]
    assert not (tmp_path / "cut").exists()


def test_stopped_again_and_again(gpt2_base: Path, data_folder: Path, tmp_path: Path, run: RunFolder) -> None:
    recipe, folder = tiny.recipe(gpt2_base, data_folder), tmp_path / "cut"
    stopped(recipe, folder, Stop(3))
    for _ in range(7):
        stopped(recipe, folder, Stop(4), resume=True)
    sweep(recipe, folder, resume=True)
    assert content(folder) == content(run.path)


def test_killed_between_checkpoints(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, run: RunFolder
) -> None:
    """Steps after the last checkpoint are repeated, and their lines are removed from the history."""
    recipe, folder = tiny.recipe(gpt2_base, data_folder), tmp_path / "cut"
    stopped(recipe, folder, Stop(8))
    saved = shutil.copytree(folder, tmp_path / "saved")
    stopped(recipe, folder, Stop(5), resume=True)
    shutil.rmtree(folder / "checkpoint")
    shutil.copytree(saved / "checkpoint", folder / "checkpoint")
    assert (folder / "history.jsonl").stat().st_size > (saved / "history.jsonl").stat().st_size
    sweep(recipe, folder, resume=True)
    assert content(folder) == content(run.path)


def test_a_finished_sweep_is_not_trained_again(run: RunFolder, gpt2_base: Path, data_folder: Path) -> None:
    before, ears = content(run.path), Stop()
    results = sweep(tiny.recipe(gpt2_base, data_folder), run.path, ears, resume=True)
    assert results == run.read_results()
    assert (ears.stages, ears.notes) == (["inputs"], [f"{run.path} is complete: nothing is left to train"])
    assert content(run.path) == before


@pytest.mark.parametrize("finished", [True, False])
def test_a_sweep_is_extended(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, run: RunFolder, finished: bool
) -> None:
    """By a rank and a seed: trained adapters are unchanged, new ones are trained."""
    folder = RunFolder(tmp_path / "more")
    recipe = tiny.recipe(gpt2_base, data_folder)
    if finished:
        shutil.copytree(run.path, folder.path)
    else:
        stopped(recipe, folder.path, Stop(3 * STEPS + 4))
    ears = Stop()
    results = sweep(recipe.replace(ranks=(2,), seeds=(7,)), folder.path, ears, resume=True)
    names = ["r0-s110", "r1-s110", "r2-s110", "r4-s110", "r0-s7", "r1-s7", "r2-s7", "r4-s7"]
    assert [row.name for row in results.adapters] == names
    assert [row.bank for row in results.adapters] == [1, 2, 4, 2, 3, 4, 4, 4]
    for name in ("r0-s110", "r1-s110", "r4-s110"):
        for part in (f"adapters/{name}/adapter_model.safetensors", f"logits/{name}.safetensors"):
            assert (folder.path / part).read_bytes() == (run.path / part).read_bytes()
    old = {row.name: row for row in run.read_results().adapters}
    assert {row.name: row for row in results.adapters if row.name in old} == old
    assert ears.steps == 2 * 3 * STEPS + (0 if finished else 3 * STEPS - 4)
    assert Recipe.load(folder.recipe).train.seeds == (110, 7)
    history = folder.history.read_text("utf-8")
    assert history.startswith(run.history.read_text("utf-8"))
    whole = sweep(Recipe.load(folder.recipe), tmp_path / "whole")
    for one, other in zip(results.adapters, whole.adapters, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)


def test_another_setting_is_refused(run: RunFolder, gpt2_base: Path, data_folder: Path) -> None:
    recipe = tiny.recipe(gpt2_base, data_folder, epochs=4)
    with pytest.raises(UsageError, match="epochs is 3 in this run, and 4 was asked for"):
        sweep(recipe, run.path, resume=True)


@pytest.mark.parametrize("is_finished", [False, True])
def test_a_run_goes_on_where_its_inputs_have_moved_to(
    gpt2_base: Path, tmp_path: Path, is_finished: bool
) -> None:
    """On another machine: data, base and device have other names there."""
    data, base, folder = tiny.data_folder(tmp_path / "data"), tmp_path / "base", tmp_path / "run"
    shutil.copytree(gpt2_base, base)
    recipe = tiny.recipe(base, data, device="auto")
    stopped(recipe, folder, Stop(3))
    if is_finished:
        sweep(recipe, folder, resume=True)
    data.rename(tmp_path / "moved-data")
    base.rename(tmp_path / "moved-base")
    moved = recipe.replace(data=str(tmp_path / "moved-data"), base=str(tmp_path / "moved-base"), device="cpu")
    results = sweep(moved, folder, resume=True)
    assert RunFolder(folder).is_complete()
    assert {row.name for row in results.adapters} == {"r0-s110", "r1-s110", "r4-s110"}
    if not is_finished:
        assert Recipe.load(folder / "recipe.toml").data.source == str(tmp_path / "moved-data")


@pytest.mark.parametrize(("size", "expected"), [(None, [1, 2, 3, 4]), (2, [1, 2, 2, 3])])
def test_banks_that_have_not_started_are_planned_again(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, size: int | None, expected: list[int]
) -> None:
    recipe = tiny.recipe(gpt2_base, data_folder, ranks=(1, 2, 3, 4), bank_size=1, epochs=1, baselines=False)
    stopped(recipe, tmp_path / "run", Stop(3))
    again = recipe.replace(bank_size=size) if size else recipe
    results = sweep(again, tmp_path / "run", resume=True)
    assert [row.bank for row in results.adapters] == expected


def test_the_environment_that_changed() -> None:
    gpu, cpu = {"device": "cuda:1", "threads": "16"}, {"device": "cpu", "threads": "2"}
    assert changes(gpu, gpu | {"threads": "8"}) == "threads 16 -> 8; the last digits may differ"
    assert changes(gpu, gpu | {"device": "cuda"}).endswith("the last digits may differ")
    assert changes(cpu, gpu).endswith("dropout is drawn in another way there, so the results may differ")
    assert changes(gpu, gpu) == ""


def test_other_data_or_another_base_is_refused(gpt2_base: Path, tmp_path: Path) -> None:
    data, base = tiny.data_folder(tmp_path / "data"), shutil.copytree(gpt2_base, tmp_path / "base")
    recipe, folder = tiny.recipe(base, data), tmp_path / "cut"
    stopped(recipe, folder, Stop(3))
    weights = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(UsageError, match="the base model is not what this run was started with"):
        sweep(recipe, folder, resume=True)
    (base / "model.safetensors").write_bytes(weights)
    tiny.write_csv(data / "test.csv", tiny.rows(12, 99))
    with pytest.raises(UsageError, match="the test split is not what this run was started with"):
        sweep(recipe, folder, resume=True)
    tiny.data_folder(data)
    sweep(recipe, folder, resume=True)


def _config(base: Path, **changes: Any) -> None:
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


Change = Callable[[Path, Path], None]
CHANGES: dict[str, tuple[Change, str]] = {
    "heads of the base": (lambda base, data: _config(base, n_head=4), "the base model is"),
    "dropout of the base": (lambda base, data: _config(base, attn_pdrop=0.3), "the base model is"),
    "another tokenizer": (
        lambda base, data: _settings(base, clean_up_tokenization_spaces=True),
        "the tokenizer's files are",
    ),
    "two label names": (
        lambda base, data: _swap(data, *tiny.LABELS[:2]),
        "the label names, or their order, are",
    ),
}


def _settings(base: Path, **changes: Any) -> None:
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _swap(data: Path, one: str, other: str) -> None:
    """Swap two label names in every file; the numbers of the labels stay the same."""
    for path in data.glob("*.csv"):
        text = path.read_text().replace(f",{one}", ",?").replace(f",{other}", f",{one}")
        path.write_text(text.replace(",?", f",{other}"))


@pytest.mark.parametrize("has_checkpoint", [True, False])
@pytest.mark.parametrize("what", CHANGES)
def test_what_a_resume_must_notice(gpt2_base: Path, tmp_path: Path, what: str, has_checkpoint: bool) -> None:
    """In a run that was killed while training; finished adapters suffice if all checkpoints are lost."""
    change, message = CHANGES[what]
    data, base = tiny.data_folder(tmp_path / "data"), shutil.copytree(gpt2_base, tmp_path / "base")
    recipe, folder = tiny.recipe(base, data, ranks=(0, 1), epochs=1), tmp_path / "cut"
    stopped(recipe, folder, Stop(STEPS + 1))
    assert (folder / "adapters" / "r0-s110").exists() and (folder / "checkpoint").exists()
    if not has_checkpoint:
        shutil.rmtree(folder / "checkpoint")
    change(base, data)
    with pytest.raises(UsageError, match=f"{message} not what this run was started with"):
        sweep(recipe, folder, resume=True)


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_resume_of_a_finished_run_must_notice(gpt2_base: Path, tmp_path: Path, what: str) -> None:
    change, message = CHANGES[what]
    data, base = tiny.data_folder(tmp_path / "data"), shutil.copytree(gpt2_base, tmp_path / "base")
    recipe = tiny.recipe(base, data, ranks=(1,), epochs=1, baselines=False)
    sweep(recipe, tmp_path / "run")
    change(base, data)
    with pytest.raises(UsageError, match=f"{message} not what this run was started with"):
        sweep(recipe, tmp_path / "run", resume=True)


def test_a_finished_run_outlives_its_data(gpt2_base: Path, tmp_path: Path) -> None:
    data, ears = tiny.data_folder(tmp_path / "data"), Stop()
    recipe = tiny.recipe(gpt2_base, data, ranks=(1,), epochs=1, baselines=False)
    results = sweep(recipe, tmp_path / "run")
    shutil.rmtree(data)
    assert sweep(recipe, tmp_path / "run", ears, resume=True) == results
    first, last = ears.notes
    assert first.startswith(f"not compared with the data and the base of the run: {data}")
    assert last == f"{tmp_path / 'run'} is complete: nothing is left to train"


def test_a_finished_run_is_not_extended_on_another_base(
    run: RunFolder, gpt2_base: Path, data_folder: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(gpt2_base, tmp_path / "base")
    folder = tmp_path / "run"
    recipe = tiny.recipe(base, data_folder, ranks=(1,), epochs=1, baselines=False)
    sweep(recipe, folder)
    _config(base, n_head=4)
    with pytest.raises(UsageError, match="the base model is not what this run was started with"):
        sweep(recipe.replace(seeds=(7,)), folder, resume=True)


def test_the_same_command_again(run: RunFolder, gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(gpt2_base, data_folder)
    with pytest.raises(UsageError, match="contains a finished sweep") as caught:
        sweep(recipe, run.path)
    assert f"sweep(recipe, '{run.path}', resume=True) returns its results" in caught.value.hint
    stopped(recipe, tmp_path / "cut", Stop(2))
    with pytest.raises(UsageError, match="an unfinished sweep, saved with r0-s110 at step 2") as caught:
        sweep(recipe, tmp_path / "cut")
    assert f"sweep(recipe, '{tmp_path / 'cut'}', resume=True) resumes" in caught.value.hint


def test_nothing_to_resume(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to resume"):
        sweep(tiny.recipe(gpt2_base, data_folder), tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


def _damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damaged", [1, 2])
def test_damaged_checkpoints(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, run: RunFolder, damaged: int
) -> None:
    """The previous one is used; if there is none, unfinished banks restart. Both are reported."""
    recipe, folder, ears = tiny.recipe(gpt2_base, data_folder), tmp_path / "cut", Stop()
    stopped(recipe, folder, Stop(3 * STEPS + STEPS + 2))
    for path in sorted((folder / "checkpoint").iterdir())[-damaged:]:
        _damage(path / "state.safetensors")
    sweep(recipe, folder, ears, resume=True)
    assert sum("is damaged and not used: state.safetensors" in note for note in ears.notes) == damaged
    assert ("no intact checkpoint is left" in ears.notes[-1]) == (damaged == 2)
    assert ears.steps == (2 * STEPS if damaged == 1 else 3 * STEPS)
    assert content(folder) == content(run.path)


def test_a_checkpoint_of_another_version_is_neither_used_nor_removed(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = tiny.recipe(gpt2_base, data_folder), tmp_path / "cut"
    stopped(recipe, folder, Stop(3))
    before = tree(folder)
    monkeypatch.setattr(checkpoint, "SCHEMA", checkpoint.SCHEMA + 1)
    with pytest.raises(UsageError, match=r"has schema version 3, but this rankwise reads version 4"):
        sweep(recipe, folder, resume=True)
    assert tree(folder) == before


def tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("part", ["logits/r1-s110.safetensors", "adapters/r1-s110/adapter_model.safetensors"])
def test_a_damaged_finished_adapter_is_trained_again(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, run: RunFolder, part: str
) -> None:
    folder = shutil.copytree(run.path, tmp_path / "run")
    (folder / "results.json").unlink()
    _damage(folder / part)
    sweep(tiny.recipe(gpt2_base, data_folder), folder, resume=True)
    after, before = content(folder), content(run.path)
    after.pop("history.jsonl"), before.pop("history.jsonl")
    assert after == before


def _hold(folder: str, ready: Any, done: Any) -> None:
    with files.locked(folder):
        ready.set()
        done.wait(30)
        os._exit(0)  # like a killed process, without cleanup


def test_two_processes(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    """The second is rejected; the lock of a dead process does not block."""
    folder, recipe = tmp_path / "run", tiny.recipe(gpt2_base, data_folder, ranks=(1,), epochs=1)
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(folder), ready, done))
    other.start()
    assert ready.wait(60)
    with pytest.raises(UsageError, match="in use by another process"):
        sweep(recipe, folder)
    done.set()
    other.join(30)
    assert (folder / files.LOCK).exists()
    sweep(recipe, folder)
    assert not (folder / files.LOCK).exists()


@pytest.mark.parametrize(
    ("options", "saves"), [({}, 2), ({"checkpoint_steps": 2}, 4), ({"checkpoint_minutes": 0}, 7)], ids=str
)
def test_checkpoints_by_steps_and_by_time(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, options: dict[str, Any], saves: int
) -> None:
    """At the start, then periodically, then at Ctrl-C; the last two are kept."""
    stopped(tiny.recipe(gpt2_base, data_folder, ranks=(1,)), tmp_path / "run", Stop(5), **options)
    kept = sorted(int(name) for name in os.listdir(tmp_path / "run" / "checkpoint"))
    assert kept == [saves - 1, saves]


def test_history_is_valid_json(run: RunFolder) -> None:
    for line in run.history.read_text("utf-8").splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))
