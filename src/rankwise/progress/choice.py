"""The display that suits the place where Python runs."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rankwise.progress import console as consoles
from rankwise.progress.bars import ProgressBars
from rankwise.progress.notebook import NotebookDisplay
from rankwise.progress.outcome import outcome
from rankwise.training.callbacks import Callback


@contextmanager
def shown(callback: Callback | None) -> Iterator[Callback]:
    """Yield the callback, or by default a display: in a notebook, or on the terminal of IPython.

    In any other program, nothing is displayed.
    """
    if callback is not None:
        yield callback
        return
    ipython = sys.modules.get("IPython")  # loaded if this is IPython; it is not a dependency
    shell: Any = ipython.get_ipython() if ipython else None
    if shell is None:
        yield Callback()
    elif hasattr(shell, "kernel"):
        display = NotebookDisplay(sys.modules["IPython.display"].display)
        with _logged(display), warnings.catch_warnings():
            # tqdm, which other libraries import, misses widgets that nothing here uses.
            warnings.filterwarnings("ignore", "IProgress not found")
            yield display
    else:
        with _Bars() as bars, _logged(bars):
            yield bars


@contextmanager
def _logged(callback: Callback) -> Iterator[None]:
    """Show what modules log, such as that a base model is unpacked."""
    log, handler = logging.getLogger("rankwise"), _Notes(callback)
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class _Notes(logging.Handler):
    """Passes messages on to a callback."""

    def __init__(self, callback: Callback) -> None:
        super().__init__()
        self._callback = callback

    def emit(self, record: logging.LogRecord) -> None:
        """Show a message."""
        self._callback.note(record.getMessage())


class _Bars(ProgressBars):
    """Progress bars for Python that also show how a run ended."""

    def note(self, text: str) -> None:
        """Show a message, in Python's form."""
        super().note(str(text))

    def finished(self, folder: Path) -> None:
        """Print the verdict and the run folder."""
        self.__exit__()
        for text in outcome(folder):
            consoles.stderr.print(text, soft_wrap=True)
