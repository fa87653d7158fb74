"""What the package imports is declared, what is optional is optional, and every list of versions agrees."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.rules.source import imported, modules

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NEEDED = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {
    extra: [Requirement(line) for line in lines] for extra, lines in PROJECT["optional-dependencies"].items()
}
OPTIONAL = [*EXTRAS["excel"], *EXTRAS["export"], *EXTRAS["ray"], *EXTRAS["track"]]
"""What the package imports if an extra is installed."""
MODULE_OF = {"scikit-learn": "sklearn"}
"""Distribution -> the module that it is imported as, where that is not its own name."""
SERVER = {
    f"serve.{name}"
    for name in ("answers", "app", "guard", "messages", "metrics", "pages", "problems", "server", "service")
}
"""Modules that need the extra `serve`."""
SERVED_BY = {"starlette"}
"""A part of FastAPI that is imported by its own name."""
DEVICE_KERNELS = "nn.kernels"
"""The module that needs Triton, which comes with torch's builds for CUDA."""
TRACKERS = {"wandb", "mlflow", "trackio"}
"""Optional packages that no extra names."""
USED_THROUGH_OTHERS = {"tokenizers"}
"""Not imported: objects of it come from transformers."""
NO_OLDEST_BUILD = {"torch"}
"""Tested above its bound: constraints-oldest.txt says why."""


def module_of(requirement: Requirement) -> str:
    """The module that a requirement brings."""
    name = str(canonicalize_name(requirement.name))
    return MODULE_OF.get(name, name.replace("-", "_"))


def bound(requirement: Requirement) -> Version | None:
    """The lowest version that a requirement allows; None where it allows all."""
    lowest = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
    return max(lowest, default=None)


def pins(name: str) -> dict[str, Version]:
    """Distribution -> version of a file of `NAME==VERSION` lines; hashes and comments are left out."""
    lines = (ROOT / name).read_text("utf-8").splitlines()
    found = [match for line in lines if (match := re.match(r"([\w.-]+)==([\w.!+]+)", line))]
    return {str(canonicalize_name(match[1])): Version(match[2]) for match in found}


def outside_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """The statements that run when a module is imported; those for type checkers alone are left out."""
    for node in ast.iter_child_nodes(tree):
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not for_types and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from outside_functions(node)


def foreign(names: Iterator[str]) -> set[str]:
    """The top-level modules that are neither Python's nor the package's own."""
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"rankwise", ""}


# What is imported


def test_every_import_is_declared() -> None:
    needed = {module_of(each) for each in NEEDED}
    optional = {module_of(each) for each in OPTIONAL}
    server = {module_of(each) for each in EXTRAS["serve"]} | SERVED_BY
    offenders = set()
    for module, tree in modules().items():
        at_start = {
            name
            for node in outside_functions(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in foreign(imported(node))
        }
        anywhere = foreign(imported(tree))
        if module in SERVER:  # imported only once `serve.start` has found the extra
            anywhere, at_start = anywhere - server, at_start - server
        if module == DEVICE_KERNELS:
            anywhere, at_start = anywhere - {"triton"}, at_start - {"triton"}
        offenders |= {f"{module}: {name} is not declared" for name in anywhere - needed - optional}
        offenders |= {
            f"{module}: {name} is optional, import it in a function" for name in at_start & optional
        }
    assert offenders == set()


def test_every_dependency_is_imported() -> None:
    used = set().union(*(foreign(imported(tree)) for tree in modules().values()))
    unused = {each.name for each in NEEDED if module_of(each) not in used}
    assert unused - USED_THROUGH_OTHERS == set()


def test_what_runs_at_import_is_told_apart() -> None:
    tree = ast.parse(
        "import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    import c\nclass D:\n    import d\n"
        "try:\n    import e\nexcept ImportError:\n    pass\n"
    )
    found = [node for node in outside_functions(tree) if isinstance(node, ast.Import)]
    assert {name for node in found for name in imported(node)} == {"a", "d", "e"}


IMPORT_ALL = """
import importlib, pkgutil, sys

class Without:
    "A finder that does not see some modules, as if they were not installed."

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *more):
        return None if name.partition(".")[0] in {absent} else self.finder.find_spec(name, *more)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path = [Without(finder) for finder in sys.meta_path]

import rankwise
names = [found.name for found in pkgutil.walk_packages(rankwise.__path__, "rankwise.")]
names.remove("rankwise.__main__")  # runs the command line
names = [name for name in names if name not in {left_out}]
for name in names:
    importlib.import_module(name)
print(*names)
"""


def test_a_minimal_install_imports_every_module() -> None:
    optional = {module_of(each) for lines in EXTRAS.values() for each in lines} | TRACKERS
    absent = optional - {module_of(each) for each in NEEDED}
    assert {"accelerate", "tensorboard", "wandb", "pytest", "hypothesis"} <= absent
    left_out = [f"rankwise.{name}" for name in sorted({*SERVER, DEVICE_KERNELS})]
    code = IMPORT_ALL.format(absent=sorted(absent), left_out=left_out)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    whole = modules().keys() - {"__init__", "__main__", DEVICE_KERNELS} - SERVER
    assert {name.removeprefix("rankwise.") for name in done.stdout.split()} == whole


# Lists of versions


def test_the_oldest_versions_are_the_bounds() -> None:
    """Exactly what the package imports itself, each at the lowest version that pyproject.toml allows."""
    used = [*NEEDED, *OPTIONAL, *EXTRAS["serve"]]
    direct = {str(canonicalize_name(each.name)): bound(each) for each in used}
    oldest = pins("constraints-oldest.txt")
    for name in NO_OLDEST_BUILD:
        lowest = direct.pop(name)
        assert lowest is not None and oldest.pop(name) >= lowest
    assert oldest == direct


def test_every_version_tested_with_is_allowed() -> None:
    """constraints.txt pins each dependency, of development too, within its bounds."""
    tested = pins("constraints.txt")
    declared = [*NEEDED, *(each for lines in EXTRAS.values() for each in lines)]
    missing = {each.name for each in declared if canonicalize_name(each.name) not in tested}
    assert missing == set()
    assert {
        str(each) for each in declared if tested[canonicalize_name(each.name)] not in each.specifier
    } == set()


def test_the_lock_has_the_same_versions() -> None:
    """requirements.lock is constraints.txt with hashes; torch is left out, whose indexes differ in theirs."""
    tested, locked = pins("constraints.txt"), pins("requirements.lock")
    assert {name for name, version in tested.items() if locked.get(name) != version} == {"torch"}
