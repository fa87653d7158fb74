"""What docstrings and comments call `package.module` or `package.module.name` is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.rules.source import PACKAGE, modules

MENTION = re.compile(r"`(?:rankwise\.)?([a-z_]+(?:\.\w+)+)`")


def mentions(text: str) -> list[str]:
    """The names in backticks that begin with a package; others may be variables, such as `plan.probe`."""
    packages = {name.partition(".")[0] for name in modules() if "." in name}
    return [name for name in MENTION.findall(text) if name.partition(".")[0] in packages]


def is_there(name: str) -> bool:
    """Whether a name is a module, or begins with one that has the next part of the name."""
    parts = name.split(".")
    module = next((".".join(parts[:n]) for n in (3, 2) if ".".join(parts[:n]) in modules()), None)
    rest = name.removeprefix(f"{module}.") if module else ""
    return module is not None and (rest == module or rest.partition(".")[0] in members(modules()[module]))


def members(tree: ast.Module) -> Iterator[str]:
    """The names that a module defines."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        for target in node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]:
            if isinstance(target, ast.Name):
                yield target.id


def test_mentions_are_there() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{number}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        for name in mentions(line)
        if not is_there(name)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("see `nn.static`", True),
        ("see `rankwise.nn.bank.Bank.specs`", True),
        ("see `nn.ragged.step.RaggedStep`", True),
        ("see `nn.activation.ACTIVATIONS`", True),
        ("see `rankwise.nn.bank.Banks`", False),
        ("see `nn.banks`", False),
    ],
)
def test_a_mention(text: str, there: bool) -> None:
    assert [is_there(name) for name in mentions(text)] == [there]
