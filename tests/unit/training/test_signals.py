"""Signals that stop a command, while libraries set handlers of their own."""

from __future__ import annotations

import ctypes
import os
import signal
import time

import pytest

from rankwise.training import signals


def test_a_handler_that_a_library_sets_in_python() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals.kept():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_handler_that_a_library_sets_below_python(own_signals: None) -> None:
    """Python's own record of the handlers does not show it."""
    c_signal = ctypes.CDLL(None).signal
    c_signal.argtypes, c_signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    with signals.stopping():
        with signals.kept():
            c_signal(signal.SIGTERM, int(signal.SIG_IGN))
        with pytest.raises(signals.Interrupted, match="ended by SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
