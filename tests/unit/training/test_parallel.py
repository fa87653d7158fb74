"""Several processes that train one bank: the same adapters as one process, and a clear end when one dies."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise import RankwiseError, Recipe, UsageError, search, sweep
from rankwise.nn.loss import CrossEntropy
from rankwise.nn.ragged.step import RaggedStep
from rankwise.nn.static.step import StaticStep
from rankwise.nn.step import WHOLE, Share
from rankwise.store.run_folder import RunFolder
from rankwise.training.resume import changes
from rankwise.training.trainer import StepResult, Trainer
from tests import tiny
from tests.unit.nn.models import backbone, spec, texts, trained_bank

FULL = os.environ.get("RANKWISE_FAULTS") == "full"
KINDS = {"ragged": RaggedStep, "static": StaticStep}


# Shares of a step


def draw(sizes: Sequence[int]) -> tuple[list[list[NDArray[np.int64]]], list[NDArray[np.int64]]]:
    random = np.random.default_rng(3)
    batches = [texts(random.integers(2, 12, size).tolist(), seed) for seed, size in enumerate(sizes)]
    return batches, [random.integers(0, 3, size) for size in sizes]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("processes", [2, 3, 9])
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_shares_add_up(kind: str, processes: int, micro_batches: int, weighted: bool) -> None:
    """With dropout; adapters of two seeds, and a last batch that is smaller than the number of processes."""
    model = backbone("gpt2")
    specs = [spec(model, rank, seed=seed, dropout=0.2) for rank, seed in ((1, 7), (2, 7), (2, 8))]
    loss = CrossEntropy(torch.tensor([0.5, 2.0, 1.0]) if weighted else None)
    batches, targets = draw((8, 8, 2))
    batches[1], targets[1] = batches[0], targets[0]  # of the same seed
    found = list[tuple[Tensor, Tensor]]()
    for share in [WHOLE, *(Share(process, processes) for process in range(processes))]:
        bank = trained_bank(model, specs)
        step = KINDS[kind](model, bank, loss, True, micro_batches=micro_batches, share=share)
        losses = step(batches, targets, [4, 4, 5]).clone()
        found.append((losses, bank.grad.clone()))
    (losses, grad), *parts = found
    torch.testing.assert_close(torch.stack([part for part, _ in parts]).sum(0), losses)
    torch.testing.assert_close(torch.stack([part for _, part in parts]).sum(0), grad, rtol=1e-5, atol=1e-6)
    assert grad.abs().sum() > 0


# Whole sweeps

NAMES = ["r0-s110", "r1-s110", "r4-s110"]


@dataclass(frozen=True)
class Given:
    """What a process is to do."""

    folder: Path  # the current folder
    number: int = 2  # of processes
    resume: bool = False
    dies: tuple[int, int] | None = None  # the process that kills itself, and before which step


def _process(given: Given, index: int, port: int) -> None:
    """A process as a launcher starts it: a sweep of recipe.toml into the folder `run`."""
    os.chdir(given.folder)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}-{index}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(each), "w", buffering=1) for each in (1, 2))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(given.number)}
    os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index)}
    step = Trainer.step

    def counted(self: Trainer) -> StepResult:
        if (index, self.step_number) == given.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self)

    Trainer.step = counted  # type: ignore[method-assign]  # in this process only
    try:
        results = sweep(Recipe.load("recipe.toml"), "run", resume=given.resume)
        print([each.name for each in results.adapters])
    except RankwiseError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


def run_all(*given: Given) -> list[tuple[int | None, str, str]]:
    """The exit status, standard output and standard error of each process.

    They are forked, because it takes seconds to import torch.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=_process, args=(each, i, port)) for i, each in enumerate(given)]
    for process in started:
        process.start()
    found = []
    for i, (process, each) in enumerate(zip(started, given, strict=True)):
        process.join(120)
        out, err = ((each.folder / f"{name}-{i}").read_text("utf-8") for name in ("out", "err"))
        found.append((process.exitcode, out, err))
    return found


def prepare(folder: Path, base: Path, data: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(tiny.recipe(base, data).to_toml())
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, gpt2_base: Path, data_folder: Path) -> RunFolder:
    """The run of two processes."""
    folder = prepare(tmp_path_factory.mktemp("pair"), gpt2_base, data_folder)
    assert run_all(*[Given(folder)] * 2) == [(0, f"{NAMES}\n", "")] * 2
    return RunFolder(folder / "run")


def content(run: RunFolder) -> dict[str, bytes]:
    """The files of a run that do not depend on the time."""
    names = ("predictions.csv", "history.jsonl", "results.json", "table.md", "recipe.toml")
    found = {name: (run.path / name).read_bytes() for name in names}
    for path in [*run.adapters.rglob("*.*"), *run.logits.iterdir()]:
        found[str(path.relative_to(run.path))] = path.read_bytes()
    return found


def assert_same_adapters(run: RunFolder, expected: RunFolder) -> None:
    """Each tensor differs by less than 1e-5 of its norm."""
    folders = sorted(path.name for path in expected.adapters.iterdir())
    assert sorted(path.name for path in run.adapters.iterdir()) == folders
    for name in folders:
        ours, theirs = (
            safetensors.numpy.load_file(each.adapters / name / "adapter_model.safetensors")
            for each in (run, expected)
        )
        for tensor, value in theirs.items():
            difference = float(np.linalg.norm(ours[tensor] - value))
            assert difference <= 1e-5 * float(np.linalg.norm(value)), (name, tensor)


def test_two_processes_train_the_adapters_of_one(pair: RunFolder, run: RunFolder) -> None:
    assert_same_adapters(pair, run)
    assert not pair.checkpoint.exists()
    assert pair.history.read_text().count('"step"') == run.history.read_text().count('"step"')


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_dies(
    gpt2_base: Path, data_folder: Path, pair: RunFolder, run: RunFolder, tmp_path: Path, process: int
) -> None:
    """The other one says so, and the run goes on with two processes, or with one."""
    given = Given(prepare(tmp_path, gpt2_base, data_folder), dies=(process, 8))
    found = run_all(given, given)
    status, out, err = found[1 - process]
    assert found[process] == (-signal.SIGKILL, "", "")
    assert (status, out) == (5, "")
    # torch is imported already, and so its own log cannot be turned off.
    line, *hint = (each for each in err.splitlines() if each.startswith(("Unreachable", "hint")))
    if process:
        assert line.startswith("Unreachable: another of the 2 processes has ended or does not answer")
        assert hint == ["hint: saved; go on with: sweep(recipe, 'run', resume=True)"]
    else:
        assert line == "Unreachable: process 0 has ended or does not answer"
    folder = RunFolder(tmp_path / "run")
    assert folder.checkpoint.exists() and not folder.results.exists()
    alone = RunFolder(shutil.copytree(folder.path, tmp_path / "alone"))
    assert [each[0] for each in run_all(*[replace(given, resume=True, dies=None)] * 2)] == [0, 0]
    assert content(folder) == content(pair)
    sweep(Recipe.load(alone.recipe), alone.path, resume=True)
    assert_same_adapters(alone, run)


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"],
}


@pytest.mark.skipif(not FULL, reason="make faults runs it: a launcher takes a quarter of a minute")
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers(gpt2_base: Path, data_folder: Path, tmp_path: Path, run: RunFolder, launcher: str) -> None:
    """Process 0 prints the table and the others nothing, and only it writes files; resume, too."""
    if launcher == "accelerate":
        pytest.importorskip("accelerate", reason="the extra rankwise[track] is not installed")
    whole = tiny.recipe(gpt2_base, data_folder)
    (tmp_path / "recipe.toml").write_text(whole.replace(ranks=whole.lora.ranks[:-1]).to_toml())
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}

    def launched(*words: str) -> None:
        command = [sys.executable, *LAUNCHERS[launcher], "-m", "rankwise", "sweep", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("trainable params") == 1
        assert done.stderr.count("baselines\n") == 1

    launched("--recipe", "recipe.toml", "--out", "run")
    launched("--resume", "run", "--ranks", str(whole.lora.ranks[-1]))
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run"]
    assert_same_adapters(RunFolder(tmp_path / "run"), run)


def test_other_data_in_another_process(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    """As on a second machine with other files under the same path."""
    for seed, name in enumerate(("one", "other")):
        shutil.copytree(data_folder, tmp_path / name / "data")
        tiny.write_csv(tmp_path / name / "data" / "train.csv", tiny.rows(48, seed))
        prepare(tmp_path / name, gpt2_base, Path("data"))
    first, second = run_all(Given(tmp_path / "one"), Given(tmp_path / "other"))
    assert first[:2] == (2, "")
    assert "process 1 has read another train split than process 0" in first[2]
    assert second == (5, "", "")


def test_only_a_sweep_runs_in_several_processes(
    gpt2_base: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="search runs in one process, and 2 were started"):
        search(tiny.recipe(gpt2_base, data_folder), tmp_path / "run")


def test_a_change_of_the_number_of_processes_is_noted() -> None:
    assert changes({"torch": "2"}, {"torch": "2", "processes": "2"}) == (
        "processes 1 -> 2; the last digits may differ"
    )
    assert changes({"torch": "2"}, {"torch": "2"}) == ""
