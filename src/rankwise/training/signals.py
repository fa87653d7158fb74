"""Turns Ctrl-C and SIGTERM into an exception that is only raised where no state is at risk.

Within `stopping()`, the first of these signals raises Interrupted, a KeyboardInterrupt. Within `held()`
it is deferred, so that an optimizer update or a save is never interrupted. Further signals are ignored,
so that a second Ctrl-C cannot interrupt the save that the first one triggered.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. `exit_status` is 128 plus the signal number: 130 or 143."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted" if number == signal.SIGINT else "ended by SIGTERM")
        self.exit_status = 128 + number


class _Signals:
    """The signal received, and the nesting depth of `held()` blocks."""

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
    """Raise Interrupted on Ctrl-C or SIGTERM within the block. Outside the main thread, do nothing."""
    global _signals
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _signals = _Signals()
    before = {number: signal.signal(number, _signals.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _signals.raised = True  # do not raise while leaving the block
        for number, handler in before.items():
            # After a first signal the process is exiting, and a second must not change its exit status.
            signal.signal(number, handler if _signals.arrived is None else signal.SIG_IGN)


@contextmanager
def held() -> Iterator[None]:
    """Defer signals to the end of the block."""
    _signals.depth += 1
    try:
        yield
    finally:
        _signals.depth -= 1
    _signals.deliver()


def check() -> None:
    """Raise Interrupted if a signal has arrived but its exception was lost, as in a destructor."""
    if _signals.arrived is not None and not _signals.depth:
        raise Interrupted(_signals.arrived)
