"""Kills, full disks, signals and damaged checkpoints: nothing is lost, and results are bit-identical.

Counts are small here. `make faults` sets RANKWISE_FAULTS=full for full counts.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rankwise.models.peft_format import WEIGHTS
from rankwise.store.run_folder import RunFolder
from rankwise.training import checkpoint, outcome
from rankwise.training.checkpoint import MANIFEST, STATE, TENSORS
from tests import tiny
from tests.faults.runs import sample
from tests.faults.server import Ended, Server

FULL = os.environ.get("RANKWISE_FAULTS") == "full"
KILLS, KILLS_IN_SAVES = (140, 60) if FULL else (2, 2)
DAMAGES = 2000 if FULL else 200
SWEEP = ["sweep", "--recipe", "recipe.toml", "--out", "run", "--checkpoint-steps", "2"]
RESUME = ["sweep", "--resume", "run", "--checkpoint-steps", "2"]
LIMIT = 5.0
"""Maximum seconds from a signal to exit."""


class Place:
    """A folder with a base, data and a recipe, where a server runs commands.

    Args:
        folder: the folder.
        hash_seed: PYTHONHASHSEED of the server.
        source: folder of another place, whose base and data are used.
    """

    def __init__(self, folder: Path, hash_seed: int = 0, source: Path | None = None) -> None:
        self.folder, self.run = folder, folder / "run"
        if source is None:
            tiny.gpt2(folder / "base")
            tiny.data_folder(folder / "data")
        folder.mkdir(exist_ok=True)
        where = source or Path()
        recipe = tiny.recipe(where / "base", where / "data", ranks=(0, 1, 4), keep="best", lora_dropout=0.1)
        (folder / "recipe.toml").write_text(recipe.to_toml())
        warm = ["sweep", "--recipe", "recipe.toml", "--ranks", "1", "--epochs", "1", "--out", "warm"]
        self.server = Server(folder, warm, hash_seed)

    def fresh(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)

    def finish(self) -> Ended:
        """Resume the run as its messages advise."""
        ended = self.server.run("command", RESUME)
        if ended.status == 2 and "run the command without --resume" in ended.output:
            ended = self.server.run("command", SWEEP)
        assert ended.status == 0, ended.output
        assert "Traceback" not in ended.output
        return ended

    def digests(self) -> dict[str, str]:
        """SHA-256 of all reproducible files, so without timing.json and the report page that quotes it."""
        assert not list(self.folder.rglob(".rankwise-*")) and not (self.run / ".lock").exists()
        assert not (self.run / "checkpoint").exists()
        return {
            str(path.relative_to(self.run)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.run.rglob("*"))
            if path.is_file() and path.name not in ("timing.json", "report.html")
        }


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """In shared memory if available, as hundreds of runs flush a hundred times each."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        found = Place(Path(folder))
        with found.server:
            yield found


@pytest.fixture(scope="module")
def whole(place: Place) -> tuple[dict[str, str], Ended]:
    """The uninterrupted run."""
    place.fresh()
    ended = place.server.run("command", SWEEP)
    assert ended.status == 0, ended.output
    return place.digests(), ended


def test_killed_at_random_moments(place: Place, whole: tuple[dict[str, str], Ended]) -> None:
    draw = random.Random(1)
    for _ in range(KILLS):
        place.fresh()
        after = draw.uniform(0.0, whole[1].seconds)
        ended = place.server.run("command", SWEEP, signals=(signal.SIGKILL,), after=after)
        assert ended.status in (-signal.SIGKILL, 0), ended.output
        place.finish()
        assert place.digests() == whole[0], f"killed after {after} s"


def test_killed_inside_a_save(place: Place, whole: tuple[dict[str, str], Ended]) -> None:
    place.fresh()
    ended = place.server.run("command", SWEEP, 0, "kill", True)
    operations = int(ended.output.splitlines()[-1])
    assert operations > 100
    for at in random.Random(2).sample(range(1, operations + 1), KILLS_IN_SAVES):
        place.fresh()
        ended = place.server.run("command", SWEEP, at, "kill", True)
        assert ended.status == -signal.SIGKILL, ended.output
        place.finish()
        assert place.digests() == whole[0], f"killed at operation {at}"


def test_killed_at_any_operation(place: Place, whole: tuple[dict[str, str], Ended]) -> None:
    """At any disk operation, including while a finished adapter or a result is written."""
    operations = int(whole[1].output.splitlines()[-1])
    step = 8 if FULL else operations // 2
    for at in range(operations, 0, -step):
        place.fresh()
        assert place.server.run("command", SWEEP, at, "kill").status == -signal.SIGKILL
        place.finish()
        assert place.digests() == whole[0], f"killed at operation {at}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
@pytest.mark.parametrize(
    ("stage", "units"),
    [("data", 0), ("base", 0), ("tokens", 0), ("load", 0), ("train", 0), ("train", 1), ("train", 9),
     ("validation", 0), ("validation", 18), ("test", 0), ("test", 12)],
)  # fmt: skip
def test_signals_by_stage(
    place: Place, whole: tuple[dict[str, str], Ended], stage: str, units: int, number: signal.Signals
) -> None:
    """Each signal is sent twice. Saved state is reported, and the exit status is as documented."""
    if number == signal.SIGINT and not FULL and units not in (1, 18):
        pytest.skip("make faults runs this one")
    place.fresh()
    ended = place.server.run("command_signalled", SWEEP, stage, units, number)
    assert ended.status == 128 + number, ended.output
    assert ("ended by SIGTERM" if number == signal.SIGTERM else "error: interrupted") in ended.output
    if stage in ("train", "validation", "test"):
        assert "saved; go on with: rankwise sweep --resume run" in ended.output
    else:
        assert "nothing was trained yet, so there is nothing to save" in ended.output
        assert not place.run.exists()
    place.finish()
    assert place.digests() == whole[0]


def test_signals_at_random_moments(place: Place, whole: tuple[dict[str, str], Ended]) -> None:
    """Three in a row, mixing Ctrl-C and SIGTERM; a save is never interrupted."""
    draw = random.Random(3)
    for i in range(40 if FULL else 2):
        place.fresh()
        first, second = (signal.SIGINT, signal.SIGTERM) if i % 2 else (signal.SIGTERM, signal.SIGINT)
        after = draw.uniform(0.05, whole[1].seconds * 0.9)
        ended = place.server.run("command", SWEEP, signals=(first, second, first), after=after)
        assert ended.status in (128 + first, -first, 0), ended.output
        assert ended.after_signal < LIMIT
        assert "Traceback" not in ended.output
        assert not list(place.folder.rglob(".rankwise-*"))
        place.finish()
        assert place.digests() == whole[0], f"signalled after {after} s"


def test_signals_inside_a_save(place: Place, whole: tuple[dict[str, str], Ended]) -> None:
    for at in range(3, 200, 20 if FULL else 100):
        place.fresh()
        ended = place.server.run("command", SWEEP, at, "term", True)
        assert ended.status == 143, ended.output
        assert not list(place.folder.rglob(".rankwise-*"))
        newest, complaints = checkpoint.load_last(place.run / "checkpoint")
        assert newest and not complaints
        place.finish()
        assert place.digests() == whole[0], f"signalled at operation {at}"


def _value(folder: Path) -> int:
    """Which sample the newest checkpoint is; none may be damaged."""
    found, complaints = checkpoint.load_last(folder)
    assert found and not complaints
    value = found.state.trained_tokens
    assert found.state == sample(value).state
    mine, theirs = found.adapters["r1-s1"], sample(value).adapters["r1-s1"]
    assert torch.equal(mine.parameters, theirs.parameters) and torch.equal(mine.exp_avg, theirs.exp_avg)
    assert torch.equal(mine.exp_avg_sq, theirs.exp_avg_sq) and mine.losses == theirs.losses
    return value


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, "kill"], ids=["ENOSPC", "EIO", "death"])
def test_an_error_at_every_operation_of_a_save(place: Place, tmp_path: Path, fault: int | str) -> None:
    """At every write, flush, fsync and rename: either the old or the new checkpoint is intact."""
    operations = int(place.server.run("save", str(tmp_path / "count"), 1, 0, "kill").output.split()[-1])
    assert operations >= 15
    seen = set()
    for at in range(1, operations + 1):
        folder = tmp_path / str(at)
        for value in (1, 2):
            checkpoint.save(folder, sample(value))
        ended = place.server.run("save", str(folder), 3, at, fault)
        assert ended.status in (-signal.SIGKILL if fault == "kill" else 99, 0), ended.output
        seen.add(_value(folder))
        checkpoint.save(folder, sample(4))
        assert _value(folder) == 4
    assert seen == {2, 3}


# Damage


def _flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def _truncate(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def _append(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randint(1, 50)))


def _noise(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(path.stat().st_size))


def _empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def _remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def _folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _older(path: Path, draw: random.Random) -> None:
    """The corresponding file of the previous checkpoint."""
    shutil.copy(path.parent.parent / f"{int(path.parent.name) - 1:08d}" / path.name, path)


def _swap(path: Path, draw: random.Random) -> None:
    other = path.with_name(draw.choice([name for name in (STATE, TENSORS, MANIFEST) if name != path.name]))
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs), other.write_bytes(mine)


def _signed(change: Callable[[dict[str, torch.Tensor], str], None]) -> Callable[[Path, random.Random], None]:
    """Modify the tensors and update the manifest to match."""

    def damage(path: Path, draw: random.Random) -> None:
        folder = path.parent
        tensors = safetensors.torch.load_file(folder / TENSORS)
        change(tensors, draw.choice([name for name in sorted(tensors) if "kept" not in name]))
        content = {STATE: (folder / STATE).read_bytes(), TENSORS: safetensors.torch.save(tensors)}
        (folder / TENSORS).write_bytes(content[TENSORS])
        (folder / MANIFEST).write_bytes(checkpoint._manifest(content))

    return damage


def _nan(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name].view(-1)[0] = torch.nan


def _shape(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name][1:].clone()


def _matrix(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name][None].clone()


def _missing(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


KINDS = [_flip, _truncate, _append, _noise, _empty, _remove, _folder, _older, _swap,
         *map(_signed, (_nan, _shape, _matrix, _missing))]  # fmt: skip


@pytest.fixture(scope="module")
def stopped(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run terminated by SIGTERM in its second bank."""
    place.fresh()
    ended = place.server.run("command_signalled", SWEEP, "train 2/2", 9, signal.SIGTERM)
    assert ended.status == 143, ended.output
    kept = tmp_path_factory.mktemp("stopped") / "run"
    shutil.copytree(place.run, kept)
    return kept


def test_damaged_checkpoints_are_detected(stopped: Path, tmp_path: Path) -> None:
    """All kinds of damage: the previous checkpoint is used, and the damage is reported."""
    draw = random.Random(4)
    good = stopped / "checkpoint"
    before, newest = sorted(good.iterdir())
    expected = checkpoint.load(before)
    for i in range(DAMAGES):
        folder = shutil.copytree(good, tmp_path / "checkpoint", dirs_exist_ok=True)
        KINDS[i % len(KINDS)](folder / newest.name / draw.choice([STATE, TENSORS, MANIFEST]), draw)
        found, complaints = checkpoint.load_last(folder)
        assert found and found.state == expected.state, f"damage {i}"
        assert len(complaints) == 1 and "is damaged and not used: " in complaints[0]
        assert "\n" not in complaints[0]
        shutil.rmtree(folder)


def test_damaged_finished_adapters_are_detected(stopped: Path, tmp_path: Path) -> None:
    draw = random.Random(5)
    state = checkpoint.load(sorted((stopped / "checkpoint").iterdir())[-1]).state
    sizes = {"validation": 18, "test": 12}
    folder = shutil.copytree(stopped, tmp_path / "run")
    parts = [folder / "logits" / "r0-s110.safetensors", folder / "adapters" / "r0-s110" / WEIGHTS]

    def load() -> outcome.Outcome | None:
        return outcome.load(RunFolder(folder), "r0-s110", state.fingerprint, sizes, 3)

    assert load()
    for i in range(DAMAGES // 4):
        path = parts[i % 2]
        good = path.read_bytes()
        KINDS[i // 2 % 6](path, draw)
        assert load() is None, f"damage {i}"
        path.write_bytes(good)
    assert load()


def test_a_damaged_run_is_resumed(place: Place, whole: tuple[dict[str, str], Ended], stopped: Path) -> None:
    """End to end on the command line: reported without a traceback, with the same final result."""
    draw = random.Random(6)
    for kind in KINDS if FULL else KINDS[:1]:
        place.fresh()
        shutil.copytree(stopped, place.run)
        newest = sorted((place.run / "checkpoint").iterdir())[-1]
        kind(newest / TENSORS, draw)
        ended = place.finish()
        assert f"run/checkpoint/{newest.name} is damaged and not used: " in ended.output
        assert place.digests() == whole[0]


def test_the_same_elsewhere(place: Place, whole: tuple[dict[str, str], Ended], tmp_path: Path) -> None:
    """In another folder and process, with another PYTHONHASHSEED: identical bytes.

    Base and data are the same files, because their absolute paths are recorded.
    """
    for seed in (1, 2, 3) if FULL else (1,):
        other = Place(tmp_path / f"elsewhere {seed}", hash_seed=seed, source=place.folder)
        with other.server:
            assert other.server.run("command", SWEEP).status == 0
            assert other.digests() == whole[0]


def test_the_checkpoint_holds_what_is_said(stopped: Path) -> None:
    """Only safetensors and JSON."""
    for path in (stopped / "checkpoint").rglob("*"):
        if path.is_file():
            assert path.name in (STATE, TENSORS, MANIFEST)
            json.loads(path.read_text("utf-8")) if path.suffix == ".json" else safetensors.torch.load_file(
                path
            )
