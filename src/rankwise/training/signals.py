"""Ctrl-C and SIGTERM, turned into an exception where no state is at risk.

While `stopping()` is in force, the first of the two raises Interrupted, as Ctrl-C raises
KeyboardInterrupt without it. Within `held()` it waits: a step's update, or a save, is never cut in
two. Every further signal is ignored, so that a second Ctrl-C cannot spoil the save that the first
one began.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. `exit_status` is 128 and the signal's number: 130 or 143."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted" if number == signal.SIGINT else "ended by SIGTERM")
        self.exit_status = 128 + number


class _Signals:
    """What has arrived, and how deep in held blocks the main thread is."""

    def __init__(self) -> None:
        self.arrived: int | None = None
        self.raised = False
        self.depth = 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.arrived is None:
            self.arrived = number
            self.deliver()

    def deliver(self) -> None:
        if self.arrived is not None and not self.raised and not self.depth:
            self.raised = True
            raise Interrupted(self.arrived)


_signals = _Signals()


@contextmanager
def stopping() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise Interrupted in the block; in a thread other than the main one, nothing."""
    global _signals
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _signals = _Signals()
    before = {number: signal.signal(number, _signals.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _signals.raised = True  # nothing more may be raised while the block is left
        for number, handler in before.items():
            # After a first signal the process is on its way out, and a second must not change its status.
            signal.signal(number, handler if _signals.arrived is None else signal.SIG_IGN)


@contextmanager
def held() -> Iterator[None]:
    """Let signals wait until the block is done."""
    _signals.depth += 1
    try:
        yield
    finally:
        _signals.depth -= 1
    _signals.deliver()


def check() -> None:
    """Raise Interrupted if a signal has come and its exception was lost, as one in a destructor is."""
    if _signals.arrived is not None and not _signals.depth:
        raise Interrupted(_signals.arrived)
