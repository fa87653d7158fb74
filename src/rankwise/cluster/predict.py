"""Labels a folder of Parquet files on a Ray cluster, file by file.

Every worker loads the classifier once and labels one file after another. A file is written under another name
and renamed when it is complete, so a file that is there is done: if the command is started again, only the
others are labeled. A file whose worker dies is labeled by another one::

    source/a.parquet        target/a.parquet
    source/b/c.parquet      target/b/c.parquet
                            target/predict.json      the adapter and options, so that no others add labels
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from rankwise import cores, hardware
from rankwise.cluster.connection import LOCAL, connected
from rankwise.cluster.pool import Pool, cause_of, reason_of, room
from rankwise.commands.arguments import require_abstaining
from rankwise.commands.classifier import Classifier, reads_windows
from rankwise.commands.locate import adapter_folder
from rankwise.commands.predict import Counts, count_notes, pair_columns, predict_file
from rankwise.data.tables import counted
from rankwise.errors import DataError, ModelError, Unreachable, UsageError, either
from rankwise.models import peft_format
from rankwise.models.peft_format import SavedAdapter
from rankwise.paths import expanded
from rankwise.store import files
from rankwise.tasks.labels import labels_of

SETTINGS = "predict.json"
MOST_LOSSES = 3
"""Workers that a file may lose."""
STORE_BYTES = 128 << 20
"""Size of a local object store: only names of files travel through it."""


@dataclass(frozen=True)
class Labeled:
    """What was labeled."""

    files: int
    rows: int
    skipped: int  # files that were there already


class Labeler:
    """An actor with a classifier.

    Args:
        threads: threads of torch.
        adapter: folder of the adapter.
        loading: further arguments of `Classifier.load`.
    """

    def __init__(self, threads: int, adapter: str, loading: Mapping[str, Any]) -> None:
        torch.set_num_threads(threads)
        self._adapter, self._loading = adapter, loading

    def greet(self) -> None:
        """Answered when the actor has started."""

    @cached_property
    def classifier(self) -> Classifier:
        """The classifier, loaded for the first file: an actor that cannot start looks like a lost worker."""
        return Classifier.load(self._adapter, **self._loading)

    def label(self, source: str, target: str, reading: Mapping[str, Any]) -> tuple[Counts, list[str]]:
        """Label a file. Returns what became of its texts, and notes on how they were read."""
        notes, counts = list[str](), list[Counts]()
        predict_file(
            self.classifier, source, target, on_note=notes.append, on_counts=counts.append, **reading
        )
        return counts[0], [note.removeprefix(f"{Path(source).name}: ") for note in notes]


def predict_folder(
    adapter: PathLike[str] | str,
    source: PathLike[str] | str,
    target: PathLike[str] | str,
    address: str,
    *,
    cpus: int | None = None,
    workers: int | None = None,
    loading: Mapping[str, Any] | None = None,
    reading: Mapping[str, Any] | None = None,
    on_file: Callable[[Path, int], None] = lambda file, rows: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Labeled:
    """Label every Parquet file of a folder, and write files of the same names to another folder.

    Workers read and write the files themselves, so both folders, the adapter and its base model must be under
    the same path on every machine.

    Args:
        adapter: folder of the adapter, or of a finished run.
        source: folder of Parquet files; folders in it are read, too.
        target: folder to write; files that are there already are kept.
        address: `local`, `auto`, HOST:PORT or ray://HOST:PORT.
        cpus: cores, and so threads, of a worker; by default, as many as this process uses.
        workers: most workers; by default, as many as the cluster has room for.
        loading: arguments of `Classifier.load`, such as `device`.
        reading: arguments of `predict_file`, such as `text_column` and `abstain_below`.
        on_file: called with each labeled file and its number of rows.
        on_note: called with what happens to workers, and at the end with notes on the texts of all files.

    Raises:
        UsageError: there are no files, the target is in the source or has labels of another adapter or of
            other options, or an argument does not suit the adapter.
        DataError: files cannot be read; all others have been labeled.
        ModelError: the adapter cannot be used.
        Unreachable: there is no cluster at this address, or a file has lost one worker after another.
    """
    source, target, reading = expanded(Path(source)), expanded(Path(target)), reading or {}
    if target.resolve().is_relative_to(source.resolve()):
        raise UsageError(
            f"{target}: the labels would be among the texts of {source}, and be read as texts the next time",
            hint=f"give {either('an --output', 'a target')} outside of it",
        )
    found = sorted(path.relative_to(source) for path in source.rglob("*.parquet") if path.is_file())
    if not found:
        raise UsageError(f"{source}: has no Parquet files", hint="their names end in .parquet")
    folder = adapter_folder(os.fspath(adapter)).absolute()
    saved = _check(folder, reading)
    _claim(target, folder, loading or {}, reading)
    files.remove_litter(target)
    waiting = deque(path for path in found if not (target / path).exists())
    skipped = len(found) - len(waiting)
    if not waiting:
        return Labeled(0, 0, skipped)
    threads = cpus or hardware.threads()
    own = max(1, min(workers or len(waiting), cores.usable() // threads)) * threads
    with connected(address, cpus=own if address == LOCAL else None, store_bytes=STORE_BYTES) as ray:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        kind = ray.remote(Labeler).options(num_cpus=threads, num_gpus=gpus)
        pool = Pool(
            ray,
            lambda: kind.remote(threads, str(folder), loading or {}),
            lambda: room(ray.cluster_resources(), threads, gpus, workers),
        )
        labeling = _Labeling(pool, on_note)
        labeling.run(waiting, source.absolute(), target.absolute(), reading, on_file)
    total = sum(labeling.done.values(), Counts())
    in_windows = reads_windows(saved, (loading or {}).get("windows"))
    for note in labeling.summary():
        on_note(note)
    for note in count_notes(total, saved.max_length, in_windows, reading.get("abstain_below")):
        on_note(note)
    if labeling.failed:
        raise labeling.complaint()
    return Labeled(len(labeling.done), total.texts, skipped)


def _check(adapter: Path, reading: Mapping[str, Any]) -> SavedAdapter:
    """The adapter, after a check that the arguments of `predict_file` suit it, before any worker starts.

    Raises:
        UsageError: they do not.
    """
    saved = peft_format.load(adapter)
    pair_columns(saved.text_columns, reading.get("text_column"), reading.get("text_columns"))
    if reading.get("abstain_below") is not None:
        require_abstaining(labels_of(saved.task), reading["abstain_below"])
    return saved


def _claim(target: Path, adapter: Path, loading: Mapping[str, Any], reading: Mapping[str, Any]) -> None:
    """Note which adapter's labels are in a folder, and how they were made, or check that these are the same.

    Raises:
        UsageError: they are not, or the note cannot be read.
    """
    used = {name: value for name, value in reading.items() if value is not False}  # False is the default
    settings = {
        "adapter": files.sha256(adapter / peft_format.WEIGHTS),
        **{name: str(value) for name, value in sorted({**loading, **used}.items()) if value is not None},
    }
    path = target / SETTINGS
    if not path.exists():
        files.write_json(path, settings)
        return
    another = f"give another {either('--output', 'target')}"
    try:
        found = files.read_object(path)
    except ModelError as error:
        hint = f"{another}; this one does not say whose labels it has"
        raise UsageError(error.message, hint=hint) from None
    if found != settings:
        raise UsageError(
            f"{target}: has labels of another adapter, or of other options",
            hint=f"{another}, or the same adapter and options",
        )


class _Labeling:
    """The labeling of files by workers."""

    def __init__(self, pool: Pool, on_note: Callable[[str], None]) -> None:
        self.pool, self.on_note = pool, on_note
        self.done: dict[Path, Counts] = {}
        self.notes: dict[str, list[Path]] = {}  # note -> files that it is on
        self.failed: dict[Path, DataError] = {}
        self.losses: dict[Path, int] = {}

    def run(
        self,
        waiting: deque[Path],
        source: Path,
        target: Path,
        reading: Mapping[str, Any],
        on_file: Callable[[Path, int], None],
    ) -> None:
        """Label all files."""
        running: dict[Any, tuple[Path, Any]] = {}
        while waiting or running:
            while waiting and (worker := self.pool.take(len(running), len(running) + len(waiting))):
                path = waiting.popleft()
                names = os.fspath(source / path), os.fspath(target / path)
                running[worker.label.remote(*names, reading)] = path, worker
            for reference in self.pool.wait(running, self.on_note):
                path, worker = running.pop(reference)
                if self._take(reference, path):
                    self.pool.release(worker)
                    if path in self.done:
                        on_file(path, self.done[path].texts)
                elif not (target / path).exists():
                    waiting.append(path)

    def keep(self, path: Path, counts: Counts, notes: Sequence[str]) -> None:
        """Keep what a worker says of a file that it has labeled."""
        self.done[path] = counts
        for note in notes:
            self.notes.setdefault(note, []).append(path)

    def summary(self) -> list[str]:
        """The notes on how the files were read, each with the files that it is on."""
        return [
            f"{paths[0] if len(paths) == 1 else counted(len(paths), 'file')}: {note}"
            for note, paths in self.notes.items()
        ]

    def _take(self, reference: Any, path: Path) -> bool:
        """Take in the result of a file; return False if its worker is lost."""
        errors = self.pool.ray.exceptions
        try:
            self.keep(path, *self.pool.ray.get(reference))
        except errors.RayTaskError as error:
            cause = cause_of(error)
            if not isinstance(cause, DataError):  # it would be the same for every file
                raise cause from None
            self.failed[path] = cause
        except errors.RayError as error:
            self.losses[path] = self.losses.get(path, 0) + 1
            if self.losses[path] > MOST_LOSSES:
                raise Unreachable(f"{path}: has lost {MOST_LOSSES + 1} workers: {reason_of(error)}") from None
            self.on_note(f"a worker is lost; {path} is labeled by another one")
            return False
        return True

    def complaint(self) -> DataError:
        """The error for the files that could not be read."""
        first, error = next(iter(self.failed.items()))
        message, hint = error.written
        more = f", and {len(self.failed) - 1} more files" if len(self.failed) > 1 else ""
        return DataError(
            f"{first}: {message}{more}; the other {len(self.done)} files were labeled", hint=hint
        )
