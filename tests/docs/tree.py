"""The file tree of src/rankwise in CONTRIBUTING.md.

`python -m tests.docs.tree` brings it up to date: it removes files that are gone, gives a new module the
first sentence of its docstring, and leaves every other line as it is.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.docs.markdown import ROOT

PAGE = ROOT / "CONTRIBUTING.md"
SOURCE = ROOT / "src" / "rankwise"
START = "src/rankwise/\n"
LINE = re.compile(r"^( *)(\S+) +(\S.*)$")


def files() -> list[str]:
    """Every module and folder relative to src/rankwise, as the tree orders them; folders end in a slash."""
    modules = [path.relative_to(SOURCE) for path in SOURCE.rglob("*.py") if path.name != "__init__.py"]
    folders = [path.parent.relative_to(SOURCE) for path in SOURCE.rglob("__init__.py")]
    names = [str(path) for path in modules] + [f"{path}/" for path in folders if path.parts]
    return sorted(["__init__.py", *names], key=_order)


def shown(page: str) -> dict[str, str]:
    """Path relative to src/rankwise -> what the tree on the page says of it."""
    found, folders = {}, [""]
    for line in page.partition(START)[2].partition("```")[0].splitlines():
        if not (match := LINE.match(line)):
            continue
        depth = len(match[1]) // 2
        name = folders[depth - 1] + match[2]
        found[name] = match[3]
        folders[depth:] = [name]
    return found


def drawn(words: dict[str, str]) -> Iterator[str]:
    """The lines of the tree."""
    for name in files():
        depth = name.rstrip("/").count("/") + 1
        own = name.rstrip("/").rpartition("/")[2] + ("/" if name.endswith("/") else "")
        indented = "  " * depth + own
        yield f"{indented:<24} {words.get(name) or _first_sentence(name)}"


def _order(name: str) -> tuple[tuple[bool, str], ...]:
    """Files before folders, by name."""
    *folders, last = name.rstrip("/").split("/")
    return (*((True, folder) for folder in folders), (name.endswith("/"), last))


def _first_sentence(name: str) -> str:
    path = SOURCE / name / "__init__.py" if name.endswith("/") else SOURCE / name
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return text.partition("\n")[0].removesuffix(".")


def main() -> None:
    """Rewrite the tree."""
    page = PAGE.read_text("utf-8")
    above, start, rest = page.partition(START)
    _, fence, below = rest.partition("```")
    tree = "".join(f"{line}\n" for line in drawn(shown(page)))
    Path(PAGE).write_text(above + start + tree + fence + below, encoding="utf-8")


if __name__ == "__main__":
    main()
