"""Tracking: TensorBoard files are readable by TensorBoard; other trackers use accelerate's interface."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate import tracking as theirs

from rankwise import UsageError, sweep
from rankwise.cli.tracking import KINDS, Trackers, check
from rankwise.store.run_folder import RunFolder
from rankwise.training.callbacks import Callback, Callbacks
from tests import tiny


class Spy(theirs.GeneralTracker):  # type: ignore[misc]
    """An in-memory tracker, created like accelerate's own, that can be set to fail."""

    name = "spy"
    requires_logging_directory = False
    made: ClassVar[list[Spy]] = []
    fails_at = ""

    def __init__(self, project: str, **options: Any) -> None:
        self.project, self.options = project, options
        self.lines: list[tuple[dict[str, float], int | None]] = []
        self.settings: dict[str, str] = {}
        self.finished = False
        Spy.made.append(self)

    @property
    def tracker(self) -> Spy:
        return self

    def start(self) -> None:
        self._fail("start")

    def store_init_configuration(self, values: dict[str, str]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
        if len(self.lines) == 1:
            self._fail("log")
        self.lines.append((values, step))

    def finish(self) -> None:
        self._fail("finish")
        self.finished = True

    def _fail(self, what: str) -> None:
        if Spy.fails_at == what:
            raise ConnectionError("no route to host\nmore")


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> type[Spy]:
    """Stand-in for Weights & Biases, MLflow and Trackio."""
    monkeypatch.setattr(Spy, "made", [])
    monkeypatch.setattr(Spy, "fails_at", "")
    for kind, name in (("WandBTracker", "wandb"), ("MLflowTracker", "mlflow"), ("TrackioTracker", "trackio")):
        monkeypatch.setattr(theirs, kind, Spy)
        module = types.ModuleType(name)
        module.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    return Spy


def tracked(gpt2_base: Path, data_folder: Path, folder: Path, names: list[str]) -> list[str]:
    """Output of a tracked sweep with two ranks and twelve steps."""
    recipe = tiny.recipe(gpt2_base, data_folder, ranks=(1, 4), epochs=2, baselines=False)
    said: list[str] = []
    with Trackers(names, recipe, RunFolder(folder), said.append) as trackers:
        sweep(recipe, folder, Callbacks(Callback(), trackers))
    return said


def test_tensorboard_reads_what_was_tracked(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    assert tracked(gpt2_base, data_folder, folder, ["tensorboard"]) == []
    found = EventAccumulator(str(folder / "tracking" / "rankwise"))
    found.Reload()
    assert {f"train/loss/{name}" for name in ("r1-s110", "r4-s110")} <= set(found.Tags()["scalars"])
    assert [event.step for event in found.Scalars("train/loss/r4-s110")] == [10, 12]
    accuracy = found.Scalars("validation/accuracy/r4-s110")
    assert [event.step for event in accuracy] == [6, 12]
    row = RunFolder(folder).read_results().adapters[-1]
    assert accuracy[-1].value == pytest.approx(row.validation.accuracy)
    assert found.Scalars("validation/log_loss/r4-s110")[-1].value == pytest.approx(row.validation.log_loss)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_the_others_by_their_interface(
    name: str, spy: type[Spy], gpt2_base: Path, data_folder: Path, tmp_path: Path
) -> None:
    assert tracked(gpt2_base, data_folder, tmp_path / "mine", [name]) == []
    (made,) = spy.made
    assert made.project == "rankwise" and "mine" in made.options.values() and made.finished
    assert made.settings["ranks"] == "(1, 4)"
    values, step = made.lines[0]
    assert set(values) - {"train/step"} == {
        f"validation/{figure}/{adapter}"
        for figure in ("accuracy", "macro_f1", "log_loss")
        for adapter in ("r1-s110", "r4-s110")
    }
    # A tracker with its own line numbers gets the step as a metric.
    assert (values.get("train/step"), step) == ((6, None) if KINDS[name].orders else (None, 6))


def test_adapters_may_leave_and_enter_within_an_interval(
    spy: type[Spy], gpt2_base: Path, data_folder: Path, tmp_path: Path
) -> None:
    """Each adapter's mean is over its own steps, whatever its place in the bank."""
    recipe = tiny.recipe(gpt2_base, data_folder)
    with Trackers(["mlflow"], recipe, RunFolder(tmp_path / "run"), print) as trackers:
        for number in range(1, 11):
            if number < 5:
                trackers.step(["a", "b"], number, 20, [1.0, 2.0])
            else:
                trackers.step(["b", "c"], number, 20, [4.0, 8.0])
    (made,) = spy.made
    assert made.lines[0] == ({"train/loss/a": 1.0, "train/loss/b": 3.2, "train/loss/c": 8.0}, 10)


@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_given_up_and_the_sweep_goes_on(
    where: str, spy: type[Spy], gpt2_base: Path, data_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Spy, "fails_at", where)
    said = tracked(gpt2_base, data_folder, tmp_path / "run", ["wandb", "tensorboard"])
    assert said == ["wandb tracking has stopped, the sweep continues: no route to host"]
    assert RunFolder(tmp_path / "run").read_results().adapters
    assert list((tmp_path / "run" / "tracking").rglob("events*"))


def test_trackers_that_are_unknown_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no tracker 'x'") as caught:
        check(["x"])
    assert "tensorboard, wandb, mlflow, trackio" in caught.value.hint
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="not installed: wandb, mlflow") as caught:
        check(["wandb", "mlflow"])
    assert caught.value.hint == "pip install wandb mlflow"


def test_nothing_is_opened_without_a_step(spy: type[Spy], tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path, tmp_path)
    with Trackers(["wandb"], recipe, RunFolder(tmp_path / "run"), print):
        pass
    assert spy.made == [] and not (tmp_path / "run").exists()
