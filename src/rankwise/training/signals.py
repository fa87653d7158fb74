"""Turns Ctrl-C, SIGTERM and SIGHUP into an exception that is only raised where no state is at risk.

Within `stopping()`, the first of these signals raises Interrupted, a KeyboardInterrupt. Within `held()`
it is deferred, so that an optimizer update or a save is never interrupted. Further signals are ignored,
so that a second Ctrl-C cannot interrupt the save that the first one triggered. A signal that the process was
started to ignore, as a background job of a script is, or a command under nohup, stays ignored.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that stop a command. Windows has no SIGHUP, which a terminal sends when it is closed."""


class Interrupted(KeyboardInterrupt):
    """A signal to stop. `exit_status` is 128 plus its number: 129 (SIGHUP), 130 (Ctrl-C) or 143 (SIGTERM)."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__("interrupted" if number == signal.SIGINT else f"ended by {name}")
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
    """Raise Interrupted on a signal of `STOPPING` within the block. Outside the main thread, do nothing."""
    global _signals
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _signals = _Signals()
    heeded = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _signals.handle) for number in heeded}
    try:
        yield
    finally:
        _signals.raised = True  # do not raise while leaving the block
        for number, handler in before.items():
            # After a first signal the process is exiting, and a second must not change its exit status.
            signal.signal(number, handler if _signals.arrived is None else signal.SIG_IGN)


@contextmanager
def kept() -> Iterator[None]:
    """Restore the handlers of `STOPPING` at the end of the block, in which a library may set its own.

    A library may set them below Python, where `signal.getsignal` does not see it. Outside the main thread, do
    nothing.
    """
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # None: it was not set from Python
                    signal.signal(number, handler)


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


def ignore() -> None:
    """Raise no signal from here on, because the process is ending for another reason."""
    _signals.raised = True
