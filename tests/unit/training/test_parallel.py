"""Several processes that train one bank: the same adapters as one process, and a clear end when one dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise import Recipe, UsageError, search, sweep
from rankwise.nn.ragged.step import RaggedStep
from rankwise.nn.static.step import StaticStep
from rankwise.nn.step import WHOLE, Share
from rankwise.store.run_folder import RunFolder
from rankwise.training.resume import changes
from tests import tiny
from tests.unit.nn.models import backbone, spec, texts, trained_bank

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
    weights = torch.tensor([0.5, 2.0, 1.0]) if weighted else None
    batches, targets = draw((8, 8, 2))
    batches[1], targets[1] = batches[0], targets[0]  # of the same seed
    found = list[tuple[Tensor, Tensor]]()
    for share in [WHOLE, *(Share(process, processes) for process in range(processes))]:
        bank = trained_bank(model, specs)
        step = KINDS[kind](model, bank, weights, True, micro_batches=micro_batches, share=share)
        losses = step(batches, targets, [4, 4, 5]).clone()
        found.append((losses, bank.grad.clone()))
    (losses, grad), *parts = found
    torch.testing.assert_close(torch.stack([part for part, _ in parts]).sum(0), losses)
    torch.testing.assert_close(torch.stack([part for _, part in parts]).sum(0), grad, rtol=1e-5, atol=1e-6)
    assert grad.abs().sum() > 0


# Whole sweeps

PROGRAM = """
import json, os, signal, sys
import rankwise
from rankwise.training.trainer import Trainer

recipe, folder, resume, dies = json.loads(sys.argv[1])
step, process = Trainer.step, int(os.environ.get("RANK", 0))

def counted(self):
    if [process, self.step_number] == dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self)

Trainer.step = counted
try:
    results = rankwise.sweep(rankwise.Recipe.load(recipe), folder, resume=resume)
    print(process, [each.name for each in results.adapters], flush=True)
except rankwise.RankwiseError as error:
    print(process, type(error).__name__, error, file=sys.stderr, flush=True)
    sys.exit(error.exit_status)
"""
NAMES = "['r0-s110', 'r1-s110', 'r4-s110']"


def start(
    number: int, command: Sequence[str | Path], folder: Path, **changes: str
) -> list[subprocess.Popen[str]]:
    """Start a command in several processes, as a launcher does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(number)}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=folder,
            env=os.environ | given | {"RANK": str(i), "LOCAL_RANK": str(i), "OMP_NUM_THREADS": "1"} | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(number)
    ]


def ended(started: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """The exit status, standard output and standard error of each process."""
    found = []
    for each in started:
        out, err = each.communicate(timeout=120)
        found.append((each.returncode, out, err))
    return found


@pytest.fixture(scope="module")
def go(
    tmp_path_factory: pytest.TempPathFactory, gpt2_base: Path, data_folder: Path
) -> Callable[..., list[tuple[int, str, str]]]:
    """Run the program: number of processes, run folder -> what `ended` returns."""
    place = tmp_path_factory.mktemp("parallel")
    path = place / "recipe.toml"
    path.write_text(tiny.recipe(gpt2_base, data_folder).to_toml())

    def go(
        number: int, folder: Path, resume: bool = False, dies: tuple[int, int] | None = None
    ) -> list[tuple[int, str, str]]:
        arguments = json.dumps([str(path), str(folder), resume, dies])
        return ended(start(number, ["-c", PROGRAM, arguments], place))

    return go


@pytest.fixture(scope="module")
def pair(go: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run of two processes."""
    run = RunFolder(tmp_path_factory.mktemp("pair") / "run")
    assert go(2, run.path) == [(0, f"0 {NAMES}\n", ""), (0, f"1 {NAMES}\n", "")]
    return run


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
    go: Callable[..., Any], pair: RunFolder, run: RunFolder, tmp_path: Path, process: int
) -> None:
    """The other one says so, and the run goes on with two processes, or with one."""
    folder = RunFolder(tmp_path / "run")
    found = go(2, folder.path, dies=(process, 8))
    status, out, err = found[1 - process]
    assert found[process][0] == -signal.SIGKILL
    assert (status, out) == (5, "")
    (line, hint) = err.splitlines()
    assert line.startswith(f"{1 - process} Unreachable ") and hint.startswith("hint: ")
    if process:
        assert hint.endswith(f"rankwise sweep --resume {folder.path}")
    assert folder.checkpoint.exists() and not folder.results.exists()
    alone = RunFolder(shutil.copytree(folder.path, tmp_path / "alone"))
    assert [each[0] for each in go(2, folder.path, resume=True)] == [0, 0]
    assert content(folder) == content(pair)
    sweep(Recipe.load(alone.recipe), alone.path, resume=True)
    assert_same_adapters(alone, run)


def test_torchrun(gpt2_base: Path, data_folder: Path, tmp_path: Path, run: RunFolder) -> None:
    """Process 0 prints the table and the others nothing, and only it writes files."""
    (tmp_path / "recipe.toml").write_text(tiny.recipe(gpt2_base, data_folder).to_toml())
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command = [sys.executable, *launcher, "--standalone", "-m", "rankwise", "sweep", "--recipe", "recipe.toml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trainable params") == 1
    assert done.stderr.count("train (18)") == 1
    (made,) = (tmp_path / "runs").iterdir()
    assert_same_adapters(RunFolder(made), run)


def test_other_data_in_another_process(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    """As on a second machine with other files under the same path."""
    folders = [tmp_path / name for name in ("one", "other")]
    for seed, folder in enumerate(folders):
        shutil.copytree(data_folder, folder / "data")
        tiny.write_csv(folder / "data" / "train.csv", tiny.rows(48, seed))
        (folder / "recipe.toml").write_text(tiny.recipe(gpt2_base, Path("data")).to_toml())
    # Relative paths are read from the folder of each process.
    arguments = json.dumps(["recipe.toml", "run", False, None])
    program = f"import os; os.chdir(({[str(each) for each in folders]!r})[int(os.environ['RANK'])])" + PROGRAM
    (first, second) = ended(start(2, ["-c", program, arguments], tmp_path))
    assert first[0] == 2 and "process 1 has read another train than process 0" in first[2]
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
    assert changes({"torch": "2"}, {"torch": "2", "processes": "2"}) == "processes 1 -> 2"
    assert changes({"torch": "2"}, {"torch": "2"}) == ""
