"""The notebooks of examples/ run from top to bottom, on a tiny base in place of SmolLM2."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from nbclient import NotebookClient

from tests.docs.markdown import ROOT

nbformat: Any = import_module("nbformat")  # it says that it is typed, and its functions are not
v4: Any = import_module("nbformat.v4")
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["comparing_ranks", "own_data", "published_study"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_outputs_are_cleared(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert cells
    assert [(cell.outputs, cell.execution_count) for cell in cells] == [([], None)] * len(cells)
    assert sum('BASE = "smollm2-135m"' in cell.source for cell in cells) == 1


def test_they_run(tmp_path: Path, llama_base: Path) -> None:
    """One kernel runs all of them, because it takes seconds to import torch."""
    base = Path(shutil.copytree(llama_base, tmp_path / "base"))
    config = json.loads((base / "config.json").read_text("utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 128}), "utf-8")
    cells = []
    for path in NOTEBOOKS:
        cells.append(v4.new_code_cell("%reset -f"))
        codes = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        cells += [v4.new_code_cell(cell.source.replace('"smollm2-135m"', repr(str(base)))) for cell in codes]
    book = v4.new_notebook(cells=cells)
    NotebookClient(
        book, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [each for cell in book.cells for each in cell.get("outputs", [])]
    pictures = [each for each in shown if "image/svg+xml" in each.get("data", {})]
    assert len(pictures) == 2
    printed = "".join(each.get("text", "") for each in shown if each.output_type == "stream")
    assert "points: " in printed and "Warning" not in printed
    made = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert made == ["messages", "published-study", "two-ranks"]
