"""The examples of the Python guide run, in their order, on a tiny base in place of SmolLM2."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rankwise.models import packaged
from tests import tiny
from tests.docs.markdown import ROOT, blocks

STARS = {"joy": 5, "anger": 1, "fear": 3}


def test_the_examples_run(
    tmp_path: Path, llama_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = shutil.copytree(llama_base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text("utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 128}), "utf-8")
    monkeypatch.setattr(packaged, "unpacked", lambda name: base)
    with (tmp_path / "reviews.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [(text, STARS[label], i) for i, (text, label) in enumerate(tiny.rows(240, 0))]
        csv.writer(file).writerows([("review", "stars", "id"), *rows])
    page = (ROOT / "docs" / "guide" / "python.md").read_text("utf-8")
    examples = blocks(page, "python")
    assert len(examples) > 7
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, "python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "['r1-s110', 'r2-s110']" in printed
    assert "only one text has the label 'joy'" in printed and "validation='FILE'" in printed
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["pairs", "reviews"]
