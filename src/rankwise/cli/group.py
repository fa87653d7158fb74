"""Other names for commands and options, and error messages for command lines that cannot be parsed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from rankwise import processes
from rankwise.cli import help as help_text
from rankwise.cli.examples import EXAMPLES
from rankwise.errors import RankwiseError, Unreachable, UsageError

ALIASES = {
    "train": "sweep",
    "batch": "batch-size",
    "base-model": "base",
    "dropout": "lora-dropout",
    "epoch": "epochs",
    "file": "data",
    "lora-alpha": "alpha",
    "lr": "learning-rate",
    "lrs": "learning-rates",
    "model": "base",
    "output-dir": "out",
    "rank": "ranks",
    "seed": "seeds",
    "target-modules": "targets",
}
"""Other name -> name of a command or an option. `--max_length` is `--max-length`, too."""

# typer bundles its own copy of click since version 0.22; before, it used the package. This is either's class.
ParseError: Any = typer.BadParameter.__mro__[1]


def canonical(name: str) -> str:
    """The name of a command or an option, without dashes before it.

    >>> canonical("lr"), canonical("max_length"), canonical("ranks")
    ('learning-rate', 'max-length', 'ranks')
    """
    name = name.replace("_", "-")
    return ALIASES.get(name, name)


class Group(TyperGroup):
    """All commands. A command line that cannot be parsed gets the same kind of message as any other error."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help text, which lists the commands."""
        found = help_text.panels(self, ctx)
        found["Commands"] = [(name, each.help or "") for name, each in self.commands.items()]
        formatter.write(help_text.rendered(self, ctx, found))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what precedes the command."""
        with _explained():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Parse the arguments of the command, and run it."""
        with _explained():
            return super().invoke(ctx)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ParseError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # not an error: it prints the help
            raise
        fail(explained(error))
    except RankwiseError as error:
        fail(error)


def fail(error: RankwiseError, status: int | None = None) -> NoReturn:
    """Print an error and exit with its status, or another one.

    Of several processes, the first one prints; another one only that it cannot reach it.
    """
    from rankwise.cli.terminal import show_error

    if isinstance(error, Unreachable) or not processes.is_follower():
        show_error(error)
    raise typer.Exit(error.exit_status if status is None else status)


def explained(error: Any) -> UsageError:
    """What is wrong with a command line, and how to write it."""
    command = error.ctx.command if error.ctx else None
    option = getattr(error, "option_name", None)
    if option and hasattr(error, "possibilities"):
        return _unknown_option(option, command)
    message = error.format_message().strip().removesuffix(".")
    if match := re.match(r"No such command '(.*?)'(?:\. Did|$)", message, re.DOTALL):
        return _unknown_command(match[1])
    return UsageError(_what(error, message), hint=_hint(command))


def _what(error: Any, message: str) -> str:
    """The parser's message in the words of our own ones."""
    if option := getattr(error, "option_name", None):
        return f"{option}: a value is missing"
    parameter = getattr(error, "param", None)
    if parameter is not None and message.startswith("Missing"):
        return f"missing {_name(parameter)}"
    if parameter is not None and message.startswith("Invalid value"):
        kind = "a whole number" if getattr(parameter, "metavar", "") == "N" else "a number"
        least, most = _bound(parameter, "min"), _bound(parameter, "max")
        limits = [f"of at least {least}"] * (least is not None) + [f"of at most {most}"] * (most is not None)
        return f"{_name(parameter)}: not {kind} {' and '.join(limits)}".rstrip()
    return f"{message[:1].lower()}{message[1:]}"


def _bound(parameter: Any, name: str) -> Any:
    """`min` or `max` of a parameter; in older versions, of its type."""
    bounds = (getattr(each, name, None) for each in (parameter, getattr(parameter, "type", None)))
    return next((each for each in bounds if each is not None), None)


def _name(parameter: Any) -> str:
    is_option = parameter.param_type_name == "option"
    return str(max(parameter.opts, key=len) if is_option else parameter.name.upper())


def _unknown_command(name: str) -> UsageError:
    known = [*EXAMPLES, *(other for other, name in ALIASES.items() if name in EXAMPLES)]
    near = get_close_matches(name, known, 1)
    hint = f"did you mean rankwise {near[0]}?" if near else _hint(None)
    return UsageError(f"no such command: {name}", hint=hint)


def _unknown_option(option: str, command: Any) -> UsageError:
    message = f"no such option: {option}"
    is_text = " " in option or not option.startswith("--")
    if is_text and any(each.name in ("text", "texts") for each in command.params):
        # The parser names only the first letter of a text such as "-5 degrees".
        text = option if " " in option else f"{option} ..."
        shown = f"rankwise {command.name} ADAPTER -- {shlex.quote(text)}"
        return UsageError(message, hint=f"put -- before a text that starts with a dash: {shown}")
    known = [name for each in command.params for name in (*each.opts, *each.secondary_opts)]
    spelled = [name for name in known if name.startswith("--")]
    word = f"--{canonical(option.lstrip('-'))}"
    near = get_close_matches(word, spelled, 3) or [name for name in spelled if name.startswith(word)][:3]
    return UsageError(message, hint=f"did you mean {' or '.join(near)}?" if near else _hint(command))


def _hint(command: Any) -> str:
    name = command.name if command else None
    if name in EXAMPLES:
        return f"such as: {EXAMPLES[name][0]}; rankwise {name} --help lists the options"
    return "rankwise --help lists the commands"
