"""Lightweight entry points import nothing heavy; reading a run does not import torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "pandas",
    "peft",
    "pyarrow",
    "sklearn",
    "scipy",
    "matplotlib",
    "jinja2",
)
COMMAND = """
import sys
from rankwise.cli.app import main
sys.argv = {}
try:
    main()
except SystemExit as end:
    assert not end.code
"""


def loaded(code: str) -> set[str]:
    """The top-level packages that are loaded in a new interpreter after running some code."""
    ending = "\nimport sys; print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    found = subprocess.run(
        [sys.executable, "-c", code + ending], capture_output=True, text=True, check=True, timeout=120
    )
    return set(found.stdout.rpartition("LOADED")[2].split())


@pytest.mark.parametrize(
    "code",
    [
        "import rankwise; dir(rankwise)",
        "from rankwise import Recipe, RankwiseError; Recipe.preset('emotion')",
        "from rankwise import Recipe; Recipe(data=(['so glad', 'so cross'], ['joy', 'anger']))",
        COMMAND.format(["rankwise", "--help"]),
        COMMAND.format(["rankwise", "sweep", "--help"]),
        COMMAND.format(["rankwise", "version"]),
    ],
    ids=["import", "recipe", "recipe in memory", "help", "sweep --help", "version"],
)
def test_nothing_heavy(code: str) -> None:
    found = loaded(code)
    assert "rankwise" in found
    assert found & set(HEAVY) == set()


def test_tables_need_no_torch() -> None:
    found = loaded("import rankwise.report.build, rankwise.commands.reproduce, rankwise.cli.terminal")
    assert found & {"torch", "transformers", "datasets", "peft", "matplotlib", "jinja2"} == set()
