"""The two consoles: data goes to stdout, messages to stderr."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from rankwise.report.tables import printable


class SafeConsole(Console):
    """A console that shows texts as they are: paths and labels may contain [brackets] and :colons:.

    Characters that would control the terminal are replaced.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects; see `rich.console.Console.print`."""
        super().print(*(printable(each) if isinstance(each, str) else each for each in objects), **options)


stdout = SafeConsole()
stderr = SafeConsole(stderr=True)
