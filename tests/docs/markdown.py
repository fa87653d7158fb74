"""The project's Markdown files, taken apart for tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PIPE = re.compile(r"(?<!\\)\|")
"""Between two cells of a table; a bar within a cell has a backslash."""
FENCE = re.compile(r"^(`{3,})([\w-]*)[^\n]*\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """README.md and its like, and all of docs/."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks(text: str, *languages: str) -> list[str]:
    """Fenced blocks, of these languages if some are given."""
    found = [(match[2], match[3]) for match in FENCE.finditer(text)]
    return [body for language, body in found if not languages or language in languages]


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return FENCE.sub("", text)


def section(text: str, title: str) -> str:
    """What stands under a `##` heading."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[title]


def tables(text: str) -> list[list[list[str]]]:
    """Each table as rows of cells, its header first; backticks around a whole cell are taken off."""
    found: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        if not inside:
            found.append([])
            inside = True
        if not re.fullmatch(r"[|\s:-]+", line):
            found[-1].append(
                [_bare(cell.strip()).replace("\\|", "|") for cell in PIPE.split(line.strip().strip("|"))]
            )
    return found


def headings(text: str) -> Iterator[str]:
    """Each heading's anchor, as GitHub makes it."""
    for title in re.findall(r"^#+ (.+)$", prose(text), flags=re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


def _bare(cell: str) -> str:
    code = re.fullmatch(r"`([^`]*)`", cell)
    return code[1] if code else cell
