"""Messages name settings as their reader does: options on the command line, keywords in Python."""

from __future__ import annotations

import ast
import pickle
import re

import pytest

from rankwise import DataError, Recipe, UsageError, errors
from rankwise.cli.terminal import show_error
from rankwise.errors import Note, as_keywords, as_options, either, on_command_line, option
from tests.rules.source import calls, modules

OPTION = re.compile(r"(?<![\w-])--[a-z]")


@pytest.mark.parametrize(
    ("name", "value", "dashed", "in_python"),
    [
        ("epochs", 3, "--epochs 3", "epochs=3"),
        ("learning_rate", 0.001, "--learning-rate 0.001", "learning_rate=0.001"),
        ("ranks", (1, 4), "--ranks 1,4", "ranks=(1, 4)"),
        ("precision", "float32", "--precision float32", "precision='float32'"),
        ("tune", False, "--no-tune", "tune=False"),
        ("tune", True, "--tune", "tune=True"),
        ("max_length", None, "--max-length", "max_length"),
    ],
)
def test_both_forms_of_a_setting(name: str, value: object, dashed: str, in_python: str) -> None:
    text = f"use {option(name, value)} or less"
    assert as_options(text) == f"use {dashed} or less"
    assert as_keywords(text) == f"use {in_python} or less"


def test_an_error_speaks_python_and_the_command_line_options(capsys: pytest.CaptureFixture[str]) -> None:
    error = UsageError(f"{option('epochs', 0)} is too few", hint=f"or {either('--out DIR', 'folder=DIR')}")
    assert (error.message, error.hint) == ("epochs=0 is too few", "or folder=DIR")
    assert str(error) == "epochs=0 is too few\nhint: or folder=DIR"
    show_error(error)
    assert capsys.readouterr().err == "error: --epochs 0 is too few\nhint: or --out DIR\n"


def test_a_note_speaks_python_and_the_command_line_options() -> None:
    note = Note(f"a smaller {option('memory_gb')} avoids this")
    for copy in (note, pickle.loads(pickle.dumps(note))):
        assert copy == "a smaller memory_gb avoids this"
        assert on_command_line(copy) == "a smaller --memory-gb avoids this"
        assert on_command_line(str(copy)) == copy


def test_a_recipe_speaks_python() -> None:
    with pytest.raises(UsageError, match="or tune=False and learning_rate"):
        Recipe(learning_rates=(1e-3,))


def test_errors_can_be_pickled() -> None:
    error = DataError("the text is empty", path="a.csv", line=3, column="text", hint=f"{option('out')}")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "a.csv:3: the text is empty (column 'text')\nhint: out"
    assert (copy.path, copy.line, copy.column, copy.written) == ("a.csv", 3, "text", error.written)


def plain_options(tree: ast.AST) -> list[str]:
    """The strings in a tree's errors and notes that name an option in one form only."""
    kinds = {name for name, each in vars(errors).items() if isinstance(each, type)}
    return [
        text
        for name, call in calls(tree)
        if name.rpartition(".")[2] in kinds | {"error", "note", "on_note"}
        for part in (*call.args, *(keyword.value for keyword in call.keywords))
        for text in outside_either(part)
        if OPTION.search(text.replace("--no-deps", "").replace("--force-reinstall", ""))
    ]


def outside_either(node: ast.AST) -> list[str]:
    """The strings in an expression, but for the arguments of `either`."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "either":
        return []
    own = [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []
    return own + [text for child in ast.iter_child_nodes(node) for text in outside_either(child)]


def test_every_error_and_note_has_both_forms() -> None:
    """Outside the command line's own modules, an option is written with `option` or `either`."""
    found = {name: plain_options(tree) for name, tree in modules().items() if name.partition(".")[0] != "cli"}
    assert {name: texts for name, texts in found.items() if texts} == {}


def test_a_plain_option_is_seen() -> None:
    assert plain_options(ast.parse("raise UsageError('a', hint='give --out')")) == ["give --out"]
    assert plain_options(ast.parse("raise UsageError('a', hint=f'{a} --out {b}')")) == [" --out "]
    assert plain_options(ast.parse("raise UsageError('a', hint=either('--out', 'folder'))")) == []
