"""Modules only import from lower layers; within a sub-package and at the top, without cycles."""

from __future__ import annotations

import ast

import pytest

from tests.rules.source import imported, modules

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "schema", "in_memory", "paths", "cgroups", "processes"),
    ("cores", "recipe"),
    ("nn", "store"),
    ("hub",),
    ("models", "hardware", "stats"),
    ("tasks",),
    ("data",),
    ("memory", "tuning"),
    ("plan", "searching"),
    ("training", "exporting"),
    ("report",),
    ("progress",),
    ("commands",),
    ("serve", "cluster"),
    ("cli", "estimator", "__init__", "__main__"),
)
"""A package's name covers all of its modules that are not listed themselves."""


def place(module: str) -> tuple[int, str] | None:
    """The layer of a module, and the entry that assigns it."""
    found = [
        (number, entry)
        for number, floor in enumerate(FLOORS)
        for entry in floor
        if module == entry or module.startswith(f"{entry}.")
    ]
    return max(found, key=lambda each: len(each[1]), default=None)


def needs(module: str) -> set[str]:
    """The modules of rankwise that a module imports."""
    package = module if module in packages() else module.rpartition(".")[0]
    names = imported(modules()[module], f"rankwise.{package}".rstrip("."))
    own = {name.removeprefix("rankwise.") for name in names if name.startswith("rankwise.")}
    return {name for name in own if name in modules() and name not in packages()}


def packages() -> set[str]:
    """Folders of modules, nested ones by their dotted name."""
    return {module.rpartition(".")[0] for module in modules() if "." in module}


def mates(a: str, b: str) -> bool:
    """Whether a may import b from its own layer: in a sub-package, in the top layer, and errors anywhere."""
    top = len(FLOORS) - 1
    here, there = place(a), place(b)
    on_top = here is not None and there is not None and here[0] == there[0] == top
    return b == "errors" or on_top or ("." in a and a.partition(".")[0] == b.partition(".")[0])


def test_every_module_has_a_floor() -> None:
    assert [module for module in modules() if place(module) is None] == []


def test_every_floor_is_inhabited() -> None:
    entries = [entry for floor in FLOORS for entry in floor]
    inhabited = {found[1] for module in modules() if (found := place(module))}
    assert [entry for entry in entries if entry not in inhabited] == []


def test_imports_go_down() -> None:
    upward = {
        f"{module} (floor {here[0]}) imports {other} (floor {there[0]})"
        for module in modules()
        for other in needs(module)
        if (here := place(module)) and (there := place(other))
        if there[0] >= here[0] and not mates(module, other)
    }
    assert upward == set()


def test_a_sub_package_itself_imports_nothing() -> None:
    """Otherwise importing one module of a package would import others."""
    assert {package: needs(package) for package in packages()} == {package: set() for package in packages()}


def test_imports_make_no_circle() -> None:
    open_modules = {module: needs(module) for module in modules()}
    while free := [module for module, needed in open_modules.items() if not needed & open_modules.keys()]:
        for module in free:
            del open_modules[module]
    assert open_modules == {}


def test_the_graph_is_read_rightly() -> None:
    """Known imports are found: at the top of a module, within a function, of a module by name."""
    assert {"errors", "recipe", "cli.terminal", "commands.preview"} <= needs("cli.app")
    assert {"commands.material", "report.build", "training.journal"} <= needs("commands.sweep")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import rankwise.nn.bank", {"rankwise.nn.bank"}),
        ("from rankwise import data", {"rankwise", "rankwise.data"}),
        ("from rankwise.nn.bank import Bank", {"rankwise.nn.bank", "rankwise.nn.bank.Bank"}),
        ("from . import bank", {"rankwise.nn", "rankwise.nn.bank"}),
        ("from .bank import Bank", {"rankwise.nn.bank", "rankwise.nn.bank.Bank"}),
        ("from ..store import files", {"rankwise.store", "rankwise.store.files"}),
        ("def f():\n    import torch", {"torch"}),
    ],
)
def test_imports_are_read_rightly(line: str, expected: set[str]) -> None:
    assert set(imported(ast.parse(line), "rankwise.nn")) == expected


FOREIGN_TO_NN = {
    "os", "sys", "io", "pathlib", "shutil", "tempfile", "glob", "subprocess", "socket", "time", "datetime",
    "logging", "warnings", "random", "secrets", "rich", "typer", "json", "safetensors", "transformers",
}  # fmt: skip
FORBIDDEN_IN_NN = ("open", "print", "input", "exec", "eval", "torch.save", "torch.load", "torch.manual_seed")
GLOBAL_RANDOM = ("rand", "randn", "randint", "randperm", "bernoulli", "normal", "dropout", "rand_like")


def test_mathematics_touches_nothing_else() -> None:
    """Pure modules use no files, clock, environment, terminal or global random state."""
    shared = {f"{library}.{name}" for library in ("torch", "F", "np.random") for name in GLOBAL_RANDOM}
    offenders = set()
    for module, tree in modules().items():
        if module.split(".")[0] == "nn":
            names = {name.split(".")[0] for name in imported(tree)} & FOREIGN_TO_NN
            called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
            names |= called & (set(FORBIDDEN_IN_NN) | shared)
            offenders |= {f"{module}: {name}" for name in names}
    assert offenders == set()
