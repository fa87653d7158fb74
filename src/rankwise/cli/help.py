"""Help texts: usage, arguments, options in panels, examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from typer.core import TyperCommand

WIDEST = 100
"""Columns of a help text on a wide terminal."""
LONGEST_NAME = 28
"""Columns for the names of options; longer ones are broken."""
ORDER = ("Arguments", "Data", "Model and adapter", "Training", "Tuning", "Run", "Machine", "Options")
"""The panels of a help text, where they exist."""
Row = tuple[str, str]
"""Name and description of an option, an argument or a command."""


class Command(TyperCommand):
    """A command whose options are listed in panels, with its examples at the end."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help text."""
        formatter.write(rendered(self, ctx, panels(self, ctx)))


def panels(command: Any, ctx: Any) -> dict[str, list[Row]]:
    """Title -> rows, in the order of the help text."""
    found: dict[str, list[Row]] = {}
    for each in command.get_params(ctx):
        if each.param_type_name == "argument":
            found.setdefault("Arguments", []).append((argument(each), each.help or ""))
        elif not each.hidden:
            title = getattr(each, "rich_help_panel", None) or "Options"
            found.setdefault(title, []).append((option(each), _text(each, ctx)))
    return dict(sorted(found.items(), key=lambda panel: ORDER.index(panel[0])))


def argument(parameter: Any) -> str:
    """An argument in the usage line: `ADAPTER`, `[TEXTS]...`."""
    name = parameter.name.upper()
    shown = name if parameter.required else f"[{name}]"
    return shown if parameter.nargs == 1 else f"{shown}..."


def option(parameter: Any) -> str:
    """An option with the placeholder of its value: `--ranks A,B,...`, `--cuts / --no-cuts`."""
    names = ", ".join(sorted(parameter.opts, key=len))
    if parameter.secondary_opts:
        return f"{names} / {parameter.secondary_opts[0]}"
    return names if parameter.is_flag else f"{names} {parameter.metavar or 'TEXT'}"


def _text(parameter: Any, ctx: Any) -> str:
    """The description of an option, with its default value if it has one."""
    default = parameter.default
    shown = default not in (None, False) and not callable(default) and not parameter.is_flag
    return f"{parameter.help or ''}{f' [default: {default}]' if shown else ''}"


def rendered(command: Any, ctx: Any, found: Mapping[str, list[Row]]) -> str:
    """A help text as wide as the terminal, but not wider than is easily read."""
    from rich.console import Console
    from rich.padding import Padding

    console = Console(highlight=False, markup=False, emoji=False)
    console.width = min(console.width, WIDEST)
    with console.capture() as captured:
        console.print(f"Usage: {' '.join([ctx.command_path, *_usage(command, found)])}", soft_wrap=True)
        console.print(Padding(command.help or "", (1, 2)))
        for title, rows in found.items():
            console.print(_panel(title, rows))
        for line in (command.epilog or "").splitlines():
            console.print(line, soft_wrap=True)
        console.print()
    return captured.get()


def _usage(command: Any, found: Mapping[str, list[Row]]) -> Iterator[str]:
    yield "[OPTIONS]"
    yield from (name for name, _ in found.get("Arguments", ()))
    if hasattr(command, "commands"):
        yield "COMMAND ..."


def _panel(title: str, rows: list[Row]) -> Any:
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(width=min(LONGEST_NAME, max(len(name) for name, _ in rows)), style="bold")
    table.add_column(ratio=1)
    for name, text in rows:
        table.add_row(Text(name), Text(text))
    return Panel(table, title=title, title_align="left", border_style="dim")
