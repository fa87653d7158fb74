"""What README.md and docs/ tell people to type, open or click is there."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from rankwise.cli import app as cli
from rankwise.cli import settings
from rankwise.cli.group import ALIASES
from rankwise.recipe import Recipe
from tests.docs import tree as source_tree
from tests.docs.markdown import ROOT, blocks, headings, pages, prose, section

SHELLS = ("", "console", "sh", "bash", "shell")
FILE = re.compile(r"[\w.*-]*(?:[./][\w.*-]+)+/?|[\w.-]+/|LICENSE|Makefile")
every_page = pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(ROOT)))


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `rankwise ...` line in a shell block."""
    for block in blocks(text, *SHELLS):
        for line in block.replace("\\\n", " ").splitlines():
            match = re.match(r"(?:\$ )?(?:[\w./-]*/)?rankwise (.+)", line.strip())
            if match:
                yield shlex.split(match[1], comments=True)


def mentions(text: str) -> Iterator[list[str]]:
    """The words of each `rankwise ...` in running text."""
    for code in re.findall(r"`([^`\n]+)`", prose(text)):
        match = re.match(r"(?:[\w./-]*/)?rankwise ([a-z].*)", code)
        if match:
            yield shlex.split(match[1])


def program() -> Any:
    # typer's own copy of click has no public type.
    return typer.main.get_command(cli.app)


def verbs() -> dict[str, Any]:
    found: dict[str, Any] = program().commands
    return found


@every_page
def test_commands_are_accepted(page: Path) -> None:
    for verb, *words in commands(page.read_text("utf-8")):
        assert verb in verbs(), f"{page.name}: no verb {verb}"
        # Raises where an option is unknown or an argument is missing. Nothing is run.
        values = verbs()[verb].make_context(verb, list(words)).params
        if "preset" in values and not values["recipe"]:
            changes = {name: values[name] for name in Recipe.settings() if name in values}
            settings.build_recipe(values["preset"], None, settings.parsed(changes))


@every_page
def test_mentioned_options_exist(page: Path) -> None:
    for verb, *words in mentions(page.read_text("utf-8")):
        if verb in ("VERB", "COMMAND"):
            continue
        verb = ALIASES.get(verb, verb)
        assert verb in verbs(), f"{page.name}: no verb {verb}"
        params = verbs()[verb].params
        known = {"--help", "--"} | {option for p in params for option in (*p.opts, *p.secondary_opts)}
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= known, f"{page.name}: rankwise {verb} has no {used - known}"


@every_page
def test_lone_options_exist(page: Path) -> None:
    """`--ranks 1,8` in running text, without its verb."""
    commands = [program(), *verbs().values()]
    known = {o for verb in commands for p in verb.params for o in (*p.opts, *p.secondary_opts)}
    known |= {f"--{other}" for other in ALIASES} | {"--", "--max_length"}
    of_others = {"--no-deps", "--constraint"}  # pip's
    for code in re.findall(r"`(--[^`\n]+)`", prose(page.read_text("utf-8"))):
        assert code.split()[0] in known | of_others, f"{page.name}: {code}"


@every_page
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    text = page.read_text("utf-8")
    in_blocks = "\n".join(blocks(text, *SHELLS))
    used = re.findall(r"^(?:\$ )?make ([\w-]+)", in_blocks, re.MULTILINE) + re.findall(
        r"`make ([\w-]+)", text
    )
    assert set(used) <= targets


@every_page
def test_relative_links_resolve(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in headings(linked.read_text("utf-8")), f"{page.name}: {target}"


@every_page
def test_python_compiles_and_its_imports_exist(page: Path) -> None:
    for block in blocks(page.read_text("utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rankwise"):
                home = import_module(node.module or "")
                for name in node.names:
                    assert hasattr(home, name.name), f"{page.name}: {node.module} has no {name.name}"


def test_the_guides_functions_are_the_examples() -> None:
    examples = "\n".join(path.read_text("utf-8") for path in (ROOT / "examples").glob("*.py"))
    guide = "\n".join(path.read_text("utf-8") for path in (ROOT / "docs" / "guide").glob("*.md"))
    functions = [block for block in blocks(guide, "python") if block.startswith("def ")]
    assert len(functions) == 2
    for function in functions:
        assert function in examples


def test_quoted_messages_are_real() -> None:
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "src" / "rankwise").rglob("*.py"))
    trouble = section((ROOT / "docs" / "guide" / "troubleshooting.md").read_text("utf-8"), "Messages")
    cells = re.findall(r"^\| ([^|]+) \|", trouble, re.MULTILINE)
    quoted = [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]
    assert len(quoted) > 8
    for code in quoted:
        parts = [part.strip() for part in code.split("...")]
        assert all(part in source for part in parts), code


def test_every_file_of_the_tree_exists() -> None:
    found = [b for b in blocks((ROOT / "CONTRIBUTING.md").read_text("utf-8")) if "src/rankwise/" in b]
    trees = [set(tree(block)) for block in found]
    named = set().union(*trees)
    assert len(named) > 20, "CONTRIBUTING.md has no file tree"
    missing = [path for path in sorted(named) if not any(ROOT.glob(path.rstrip("/")))]
    assert not missing


def test_every_module_is_in_the_tree() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert list(source_tree.shown(page)) == source_tree.files(), "python -m tests.docs.tree"


def test_every_record_is_listed() -> None:
    folder = ROOT / "docs" / "records"
    listed = re.findall(r"\]\(([^)]+)\)", (folder / "index.md").read_text("utf-8"))
    assert sorted(listed) == sorted(path.name for path in folder.glob("2*.md"))


def test_every_page_is_in_the_sites_navigation() -> None:
    """mkdocs would leave such a page without a way to it."""
    named = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE))
    found = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert named == {page for page in found if not page.startswith("records/2")}


def test_the_site_loads_nothing_from_elsewhere() -> None:
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert "font: false" in settings
    assert "http" not in settings


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 130


def test_a_tree_is_read() -> None:
    """Both ways to draw one, with names side by side and words after them."""
    drawn = """\
README.md  LICENSE      what it is
.ci/run    calls the tests
src/rankwise/
├── cli.py          verbs only
├── nn/             mathematics
│   ├── gpt2.py  llama.py   backbones, one file a family
│   └── assets/presets/*.toml
└── report/         tables
tests/      unit/, parity/ and more
"""
    expected = {
        "README.md",
        "LICENSE",
        ".ci/run",
        "src/rankwise/",
        "src/rankwise/cli.py",
        "src/rankwise/nn/",
        "src/rankwise/nn/gpt2.py",
        "src/rankwise/nn/llama.py",
        "src/rankwise/nn/assets/presets/*.toml",
        "src/rankwise/report/",
        "tests/",
    }
    assert set(tree(drawn)) == expected
    plain = re.sub(r"[├└]── |│   ", "    ", drawn)
    assert set(tree(plain)) == expected


def tree(block: str) -> Iterator[str]:
    """Paths in a drawn file tree: names come first on a line, words for people after them."""
    above: list[tuple[int, str]] = []  # (indent, folder) on the way down
    for line in block.splitlines():
        bare = re.sub(r"[│├└─|`]", " ", line)
        indent = len(bare) - len(bare.lstrip())
        while above and above[-1][0] >= indent:
            above.pop()
        folder = "".join(name for _, name in above)
        for name in _names(bare):
            yield folder + name
            if name.endswith("/"):
                above.append((indent, name))


def _names(line: str) -> Iterator[str]:
    for word in line.split():
        if not FILE.fullmatch(word):
            return
        yield word


def test_the_site_starts_as_the_readme_does() -> None:
    """The introduction of docs/index.md is README's, from the title to the figure's verdict."""
    readme, index = ((ROOT / name).read_text("utf-8").split() for name in ("README.md", "docs/index.md"))
    site = " ".join(index[: index.index("##")])
    assert len(site) > 500
    assert site in " ".join(readme).replace("docs/records/", "records/").replace("docs/concepts", "concepts")
