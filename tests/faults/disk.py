"""Disk fault injection: rankwise's n-th write, flush, fsync or rename fails or kills the process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rankwise.store import files
from rankwise.training import checkpoint

OPERATIONS = ("write", "flush", "fsync", "replace")


class Disk:
    """Counts the operations of `rankwise.store.files` and injects a fault into one of them.

    Args:
        at: number of the operation, from 1; 0 for none.
        fault: an errno to raise, or "kill" or "term" for a signal in the middle of the operation.
        saves_only: only count operations while checkpoints are saved.
    """

    def __init__(self, at: int = 0, fault: int | str = "kill", *, saves_only: bool = False) -> None:
        self.at, self.fault, self.saves_only = at, fault, saves_only
        self.count = 0
        self.saving = False

    def step(self) -> bool:
        """Count an operation, and return whether it is the one to fail."""
        if self.saves_only and not self.saving:
            return False
        self.count += 1
        return self.count == self.at

    def strike(self) -> None:
        """Inject the fault."""
        if isinstance(self.fault, int):
            raise OSError(self.fault, os.strerror(self.fault))
        os.kill(os.getpid(), signal.SIGKILL if self.fault == "kill" else signal.SIGTERM)

    @contextmanager
    def installed(self) -> Iterator[Disk]:
        """Patch disk operations within the block."""
        theirs: Any = files
        kept = os.fsync, os.replace, checkpoint.save
        os.fsync, os.replace = self._fsync(os.fsync), self._replace(os.replace)
        theirs.open = self._open
        checkpoint.save = self._save(checkpoint.save)
        try:
            yield self
        finally:
            os.fsync, os.replace, checkpoint.save = kept
            del theirs.open

    def _open(self, *arguments: Any, **options: Any) -> Any:
        return _File(self, open(*arguments, **options))

    def _fsync(self, real: Any) -> Any:
        def fsync(descriptor: int) -> None:
            if self.step():
                self.strike()
            real(descriptor)

        return fsync

    def _replace(self, real: Any) -> Any:
        def replace(source: Any, target: Any) -> None:
            if self.step():
                self.strike()
            real(source, target)

        return replace

    def _save(self, real: Any) -> Any:
        def save(*arguments: Any) -> None:
            self.saving = True
            try:
                real(*arguments)
            finally:
                self.saving = False

        return save


class _File:
    """An open file whose writes and flushes are counted; the failing write is half complete."""

    def __init__(self, disk: Disk, file: Any) -> None:
        self._disk, self._file = disk, file

    def __enter__(self) -> _File:
        self._file.__enter__()
        return self

    def __exit__(self, *exception: Any) -> Any:
        return self._file.__exit__(*exception)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        if self._disk.step():
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            self._disk.strike()
            return int(self._file.write(data[len(data) // 2 :]))
        return int(self._file.write(data))

    def flush(self) -> None:
        if self._disk.step():
            self._disk.strike()
        self._file.flush()
