"""What a driver does with the reports of workers, without Ray: workers are objects of this process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from rankwise import Recipe, ResourceError, Unreachable, sweep
from rankwise.cluster import worker
from rankwise.cluster.banks import Cluster
from rankwise.cluster.worker import Greeting, Report, Worker
from rankwise.training import signals
from rankwise.training.callbacks import Callback, Callbacks
from rankwise.training.trainer import Trainer
from tests import tiny
from tests.docs.markdown import ROOT


class Lost(Exception):
    """Stands in for an error of Ray."""


class Failed(Exception):
    """Stands in for an error in a worker's code."""


class Here:
    """Stands in for Ray: a task runs when its result is asked for."""

    exceptions = SimpleNamespace(RayTaskError=Failed, OutOfMemoryError=MemoryError, RayError=Lost)

    def __init__(self, workers: int, lost: Callable[[int], bool] = lambda call: False) -> None:
        self.workers, self.lost, self.calls = workers, lost, 0

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.workers * torch.get_num_threads()}

    def put(self, value: Any) -> Any:
        return value

    def wait(self, references: Sequence[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return list(references[-1:]), list(references[:-1])

    def get(self, reference: Callable[[], Any], timeout: float | None = None) -> Any:
        return reference()

    def remote(self, kind: type[Worker]) -> Any:
        def started(*given: Any) -> Any:
            made = kind(*given)
            return SimpleNamespace(
                begin=SimpleNamespace(remote=made.begin),
                go=SimpleNamespace(remote=lambda: lambda: self._go(made)),
                states=SimpleNamespace(remote=lambda: made.states),
                greet=SimpleNamespace(remote=lambda: lambda: made.greet()),
            )

        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=started))

    def _go(self, made: Worker) -> Report:
        self.calls += 1
        if self.lost(self.calls):
            raise Lost
        own, signals._signals = signals._signals, signals._Signals()  # a worker is another process
        try:
            return made.go()
        finally:
            signals._signals = own


def cluster(ray: Here) -> Cluster:
    made = Cluster.__new__(Cluster)
    made.address, made.cpus, made._gpus, made._workers = "here", torch.get_num_threads(), 0, None
    made._pool, made._base = None, None
    made._ray = ray  # type: ignore[assignment]  # in place of the package
    return made


@pytest.fixture
def recipe(gpt2_base: Path, data_folder: Path) -> Recipe:
    return tiny.recipe(gpt2_base, data_folder, ranks=(1, 2, 4), bank_size=2, baselines=False)


def content(folder: Path) -> dict[str, bytes]:
    names = ("predictions.csv", "history.jsonl", "results.json")
    found = {name: (folder / name).read_bytes() for name in names}
    for path in (folder / "adapters").rglob("*.safetensors"):
        found[str(path.relative_to(folder))] = path.read_bytes()
    return found


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_any_order_of_reports(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Reports of single steps or of whole banks, the last started first; every third worker call fails."""
    monkeypatch.setattr(worker, "REPORT_SECONDS", seconds)
    sweep(recipe, tmp_path / "whole")
    sweep(recipe, tmp_path / "run", train=cluster(Here(2)))
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    lossy = Here(2, lambda call: call % 3 == 0)
    sweep(recipe, tmp_path / "lossy", train=cluster(lossy), checkpoint_steps=1)
    assert content(tmp_path / "lossy") == content(tmp_path / "whole")


def test_a_bank_that_loses_every_worker(recipe: Recipe, tmp_path: Path) -> None:
    """The run can be resumed."""
    with pytest.raises(Unreachable, match=r"the bank of r\d-s110 has lost 6 workers in a row"):
        sweep(recipe, tmp_path / "run", train=cluster(Here(2, lambda call: True)))
    sweep(recipe, tmp_path / "run", resume=True)
    sweep(recipe, tmp_path / "whole")
    assert content(tmp_path / "run") == content(tmp_path / "whole")


class Dead(Here):
    """The cluster ends a worker at one call because it needs too much memory; its later calls fail, too."""

    def __init__(self, workers: int, at: int) -> None:
        super().__init__(workers)
        self.at, self.dead = at, list[Worker]()  # kept, so that no later worker has the same identity

    def _go(self, made: Worker) -> Report:
        if self.calls + 1 == self.at:
            self.dead.append(made)
        if any(made is each for each in self.dead):
            self.calls += 1
            raise MemoryError
        return super()._go(made)


def test_a_worker_is_ended_for_its_memory(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bank is split, and no other bank is given to it. The bank of one adapter is trained by then."""
    monkeypatch.setattr(worker, "REPORT_SECONDS", 0.0)
    seen = Notes()
    sweep(recipe, tmp_path / "run", seen, train=cluster(Dead(2, at=30)))
    sweep(recipe.replace(bank_size=1), tmp_path / "whole")
    assert content(tmp_path / "run")["predictions.csv"] == content(tmp_path / "whole")["predictions.csv"]
    short = [note for note in seen.notes if "out of memory" in note]
    assert len(short) == 1 and "the bank of 2 adapters is split into 1 and 1" in short[0]


class Notes(Callback):
    """Keeps notes and the titles of stages, and checks that no progress exceeds its total."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: dict[str, int | None] = {}
        self.done = list[int]()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, stage: str, total: int | None) -> None:
        self.stages[stage] = total

    def advance(self, units: int) -> None:
        self.done.append(units)

    def step(self, adapters: Sequence[str], number: int, steps: int, losses: Sequence[float]) -> None:
        assert number <= steps
        self.done.append(number)


class Stops(Callback):
    """Sends this process a signal at a step; counts the steps."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.steps = at, 0

    def step(self, adapters: Sequence[str], number: int, steps: int, losses: Sequence[float]) -> None:
        self.steps += 1
        if self.steps == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_is_interrupted(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_signals: None
) -> None:
    """Workers are asked for their last states, so no step is trained twice."""
    monkeypatch.setattr(worker, "REPORT_SECONDS", 0.0)
    sweep(recipe, tmp_path / "whole")
    stopped, resumed = Stops(15), Stops()
    with signals.stopping(), pytest.raises(signals.Interrupted, match="ended by SIGTERM"):
        sweep(recipe, tmp_path / "run", stopped, train=cluster(Here(2)))
    signals._signals = signals._Signals()  # a resumed run is another process
    seen = Notes()
    sweep(recipe, tmp_path / "run", Callbacks(resumed, seen), resume=True, train=cluster(Here(2)))
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    assert 15 <= next(units for units in seen.done if units) <= 17, "the progress goes on where it was"
    seconds = json.loads((tmp_path / "run" / "timing.json").read_text())["seconds"]
    assert seconds["train"] > 0
    steps = 2 * recipe.train.epochs * recipe.train.steps_per_epoch(tiny.SIZES["train"])  # of two banks
    assert steps - 2 <= stopped.steps + resumed.steps <= steps, "the last step of each bank was not shown"


def test_a_worker_runs_out_of_memory(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank of two adapters is split, and starts over, because it has sent no states yet."""
    step = Trainer.step

    def limited(self: Trainer) -> Any:
        if len(self.bank.specs) > 1 and self.step_number == 7:
            raise torch.OutOfMemoryError
        return step(self)

    monkeypatch.setattr(Trainer, "step", limited)
    sweep(recipe, tmp_path / "whole")
    sweep(recipe, tmp_path / "run", train=cluster(Here(2)))
    found, expected = (content(tmp_path / name) for name in ("run", "whole"))
    found.pop("history.jsonl"), expected.pop("history.jsonl")  # this one has the step before the split
    assert found == expected
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [line["bank"] for line in lines] == sorted(line["bank"] for line in lines)
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["adapters"]
    assert [row["bank"] for row in rows] == [1, 2, 3]

    def never(self: Trainer) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Trainer, "step", never)
    with pytest.raises(ResourceError, match="out of memory with one adapter and one text"):
        sweep(recipe, tmp_path / "none", train=cluster(Here(2)))


def test_a_worker_of_another_version(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Greeting("a-host", {"rankwise": "0.0.1", "torch": torch.__version__})
    monkeypatch.setattr(Worker, "greet", lambda self: other)
    with pytest.raises(Exception, match=r"the worker on a-host has rankwise 0\.0\.1, and this process "):
        sweep(recipe, tmp_path / "run", train=cluster(Here(1)))


# Files for schedulers

CLUSTER = ROOT / "examples" / "cluster"


SHELLCHECK = shutil.which("shellcheck")
SKY = {
    "": {"name", "num_nodes", "resources", "file_mounts", "workdir", "setup", "run"},
    "resources": {"accelerators", "cpus", "use_spot"},
    "/runs": {"name", "store", "mode"},
}
"""Keys of SkyPilot's schema for a task, its resources and a bucket
(https://docs.skypilot.co/en/latest/reference/yaml-spec.html): those that the file uses."""


def scripts() -> dict[str, str]:
    """Name -> a script of a scheduler."""
    found = {path.name: path.read_text("utf-8") for path in sorted(CLUSTER.glob("*.sh"))}
    task = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text("utf-8"))
    return found | {f"skypilot.yaml {part}": f"#!/bin/bash\n{task[part]}" for part in ("setup", "run")}


@pytest.mark.parametrize("name", scripts())
def test_scripts_parse(name: str) -> None:
    script = scripts()[name]
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert script.startswith("#!/bin/bash\n") and (len(script) < 100 or "set -euo pipefail" in script)


@pytest.mark.skipif(not SHELLCHECK, reason="needs shellcheck, which is not a Python package")
@pytest.mark.parametrize("name", scripts())
def test_scripts_are_linted(name: str) -> None:
    done = subprocess.run([str(SHELLCHECK), "-"], input=scripts()[name], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_sky_file_has_known_keys() -> None:
    task = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text("utf-8"))
    for name, part in {"": task, "resources": task["resources"], **task["file_mounts"]}.items():
        assert part.keys() == SKY[name]
