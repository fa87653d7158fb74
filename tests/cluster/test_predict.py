"""A folder that is labeled by workers, without Ray: workers are objects of this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from rankwise import Classifier, Unreachable, UsageError
from rankwise.cluster import pool, predict
from rankwise.cluster.predict import Labeled, predict_folder
from rankwise.models.peft_format import OWN
from rankwise.store import files
from tests import tiny

LOADING = {"device": "cpu", "precision": "float32"}


class Failed(Exception):
    """Stands in for an error in a worker's code."""


class Lost(Exception):
    """Stands in for an error of Ray."""


@dataclass(eq=False)
class Call:
    """A reference to the result of a call, which is made when the result is asked for."""

    made: Callable[[], Any]
    starts: bool  # whether the actor fits on a machine


class Machines:
    """Stands in for Ray, on machines of (cores, GPUs). An actor that fits on none of them never starts."""

    exceptions = SimpleNamespace(RayTaskError=Failed, RayError=Lost)

    def __init__(self, *machines: tuple[int, int], lost: Callable[[str], bool] = lambda call: False) -> None:
        self.machines, self.free, self.lost = machines, list(machines), lost
        self.started, self.waits = 0, 0

    def cluster_resources(self) -> dict[str, float]:
        cpus, gpus = (sum(each) for each in zip(*self.machines, strict=True))
        return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})

    def remote(self, kind: type[Any]) -> Any:
        def options(num_cpus: int, num_gpus: int) -> Any:
            return SimpleNamespace(remote=partial(self._start, kind, num_cpus, num_gpus))

        return SimpleNamespace(options=options)

    def _start(self, kind: type[Any], cpus: int, gpus: int, *given: Any) -> Any:
        fitting = [i for i, free in enumerate(self.free) if free[0] >= cpus and free[1] >= gpus]
        place = fitting[0] if fitting else None
        self._claim(place, cpus, gpus)
        self.started += place is not None
        made = kind(*given)

        def call(name: str, *given: Any) -> Call:
            def of_actor() -> Any:
                if self.lost(name):
                    self._claim(place, -cpus, -gpus)
                    raise Lost("the actor died\nits machine is gone")
                return getattr(made, name)(*given)

            return Call(of_actor, place is not None)

        names = "greet", "label"
        return SimpleNamespace(**{name: SimpleNamespace(remote=partial(call, name)) for name in names})

    def _claim(self, place: int | None, cpus: int, gpus: int) -> None:
        if place is not None:
            free = self.free[place]
            self.free[place] = free[0] - cpus, free[1] - gpus

    def wait(self, references: Sequence[Call], timeout: float) -> tuple[list[Call], list[Call]]:
        self.waits += 1
        ready = next((each for each in references if each.starts), None)
        assert ready or self.waits < 100, "waits for actors that never start"
        return [each for each in references if each is ready], [
            each for each in references if each is not ready
        ]

    def get(self, reference: Call) -> Any:
        return reference.made()


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machines], Machines]:
    """Connects to machines that stand in for a cluster."""

    def connect(machines: Machines) -> Machines:
        @contextmanager
        def connected(*given: Any, **options: Any) -> Iterator[Machines]:
            yield machines
            machines.free = list(machines.machines)

        monkeypatch.setattr(predict, "connected", connected)
        monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
        return machines

    return connect


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of five Parquet files with two columns of texts."""
    for number in range(5):
        path = tmp_path / "texts" / f"{number}.parquet"
        path.parent.mkdir(exist_ok=True)
        columns = {"text": tiny.texts(4, number), "review": tiny.texts(4, 9 + number)}
        parquet.write_table(pa.table(columns), path)
    return tmp_path / "texts"


def label(adapter: Path, texts: Path, target: Path, notes: list[str] | None = None, **given: Any) -> Labeled:
    """Label the texts on the machines."""
    given = {"loading": LOADING, "reading": {"text_column": "text"}} | given
    on_note = (list[str]() if notes is None else notes).append
    return predict_folder(adapter, texts, target, "auto", on_note=on_note, **given)


@pytest.mark.parametrize(
    ("machines", "cpus", "started"),
    [([(16, 1)], 4, 1), ([(24, 0), (24, 0)], 16, 2), ([(16, 2), (16, 0)], 4, 2)],
    ids=["one GPU", "cores that are divided", "GPUs of one machine"],
)
def test_workers_that_do_not_fit_get_no_files(
    machines: list[tuple[int, int]],
    cpus: int,
    started: int,
    adapter: Path,
    classifier: Classifier,
    texts: Path,
    tmp_path: Path,
    on: Callable[[Machines], Machines],
) -> None:
    """The other workers label them."""
    cluster = on(Machines(*machines))
    assert label(adapter, texts, tmp_path / "labels", cpus=cpus) == Labeled(5, 20, 0)
    assert cluster.started == started
    for path in texts.iterdir():
        table = parquet.read_table(tmp_path / "labels" / path.name)
        assert table["predicted_label"].to_pylist() == classifier.predict(table["text"].to_pylist())


def test_lost_workers(adapter: Path, texts: Path, tmp_path: Path, on: Callable[[Machines], Machines]) -> None:
    """Every third call fails: other workers start, and label the files."""
    calls, notes = iter(range(100)), list[str]()
    on(Machines((2, 0), lost=lambda call: next(calls) % 3 == 2))
    assert label(adapter, texts, tmp_path / "labels", notes, cpus=1) == Labeled(5, 20, 0)
    assert any(note.startswith("a worker is lost; ") for note in notes)
    on(Machines((2, 0), lost=lambda call: call == "label"))
    with pytest.raises(Unreachable, match=r"\d.parquet: has lost 4 workers: the actor died$"):
        label(adapter, texts, tmp_path / "more", cpus=1)


def test_workers_that_cannot_start(
    adapter: Path, texts: Path, tmp_path: Path, on: Callable[[Machines], Machines]
) -> None:
    cluster = on(Machines((2, 0), lost=lambda call: call == "greet"))
    with pytest.raises(Unreachable, match="11 workers in a row could not start: the actor died") as caught:
        label(adapter, texts, tmp_path / "labels", cpus=1)
    assert "the logs of the cluster say why" in caught.value.hint
    assert cluster.started >= 11


def test_no_worker_starts(
    adapter: Path,
    texts: Path,
    tmp_path: Path,
    on: Callable[[Machines], Machines],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The user is told, and the cluster may still grow."""
    monkeypatch.setattr(pool, "PATIENCE_SECONDS", -1.0)
    notes = list[str]()
    on(Machines((2, 0)))
    with pytest.raises(AssertionError, match="waits for actors that never start"):
        label(adapter, texts, tmp_path / "labels", notes, cpus=4)
    assert notes[0] == "no worker has started yet; ray status shows what the cluster lacks"


@pytest.mark.parametrize(
    "changed", [{"text_column": "review"}, {"skip_empty": True}, {"abstain_below": 0.5}, {}], ids=str
)
def test_other_ways_of_reading_are_not_mixed(
    changed: dict[str, Any], adapter: Path, texts: Path, tmp_path: Path, on: Callable[[Machines], Machines]
) -> None:
    """In a folder that was begun with one text column; options that are at their defaults say nothing."""
    target = tmp_path / "labels"
    on(Machines((1, 0)))
    label(adapter, texts, target, cpus=1)
    (target / "3.parquet").unlink()
    reading = {"text_column": "text", "text_columns": None, "skip_empty": False, "abstain_below": None}
    if not changed:
        assert label(adapter, texts, target, cpus=1, reading=reading) == Labeled(1, 4, 4)
        return
    with pytest.raises(UsageError, match="has labels of another adapter, or of other options") as caught:
        label(adapter, texts, target, cpus=1, reading=reading | changed)
    assert "give another target, or the same adapter and options" in caught.value.hint
    assert not (target / "3.parquet").exists()


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b'{"adapter": "\xff"}'])
def test_damaged_settings(content: bytes, adapter: Path, texts: Path, tmp_path: Path) -> None:
    target = tmp_path / "labels"
    target.mkdir()
    (target / "predict.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"labels/predict\.json: ") as caught:
        label(adapter, texts, target)
    assert "give another target" in caught.value.hint
    assert (target / "predict.json").read_bytes() == content


@pytest.mark.parametrize("name", ["texts", "texts/labeled", "texts/../texts/labeled", "link/labeled"])
def test_labels_do_not_go_among_the_texts(name: str, adapter: Path, texts: Path, tmp_path: Path) -> None:
    """They would be read as texts when the command is started again."""
    (tmp_path / "link").symlink_to(texts)
    before = sorted(texts.rglob("*"))
    with pytest.raises(UsageError, match=r"the labels would be among the texts of .*/texts") as caught:
        label(adapter, texts, tmp_path / name)
    assert caught.value.hint == "give a target outside of it"
    assert sorted(texts.rglob("*")) == before


def test_notes_of_all_files(
    adapter: Path, texts: Path, tmp_path: Path, on: Callable[[Machines], Machines]
) -> None:
    """An adapter that was trained on windows reads windows; and one note counts the texts without a label."""
    windowed = tmp_path / "windowed"
    shutil.copytree(adapter, windowed)
    own = json.loads((windowed / OWN).read_text())
    own["rankwise"] |= {"window_stride": 4, "max_length": 32}
    (windowed / OWN).write_text(json.dumps(own))
    (windowed / files.DIGESTS).unlink(missing_ok=True)
    for number, length in enumerate((20, 300)):
        path = texts / f"{number}.parquet"
        parquet.write_table(pa.table({"text": ["so glad " * length, "so cross"]}), path)
    given: dict[str, Any] = {"cpus": 1, "reading": {"text_column": "text", "abstain_below": 1.0}}
    for windows, expected in (
        (None, ["2 of 16 texts read in windows of 32 tokens", "1 of 16 texts cut at 100 windows"]),
        (False, ["2 of 16 texts cut at 32 tokens"]),
    ):
        on(Machines((1, 0)))
        notes, loading = list[str](), LOADING | {"windows": windows}
        label(windowed, texts, tmp_path / str(windows), notes, loading=loading, **given)
        *counts, abstaining = notes[-len(expected) - 1 :]
        assert [note.partition(",")[0] for note in counts] == expected
        assert abstaining == "16 of 16 texts have no label: its probability is below 1"
