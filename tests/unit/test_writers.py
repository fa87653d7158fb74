"""Rows with any values are written to files that other libraries can read."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.data.unlabeled import text_rows
from rankwise.data.writers import csv_line, neutral, plain, write_rows
from rankwise.errors import UsageError

Row = dict[str, Any]


def written(path: Path, *batches: list[Row]) -> Path:
    with write_rows(path, iter(batches)) as write:
        for batch in batches:
            write(batch)
    return path


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2), st.sampled_from(",\t"))
def test_any_strings_come_back_from_csv(cells: list[str], delimiter: str) -> None:
    line = csv_line(cells, delimiter)
    assert line.endswith("\n")
    lines = io.StringIO(line, newline="")
    assert list(csv.reader(lines, delimiter=delimiter, strict=True)) == [cells]


def test_json_lines_hold_what_json_can(tmp_path: Path) -> None:
    row = {"a": math.nan, "b": math.inf, "c": date(2020, 1, 2), "d": Decimal("1.5"), "e": "\ud800", "f": "é"}
    text = written(tmp_path / "out.jsonl", [row, {"é": 1}]).read_text("utf-8")
    assert text.splitlines()[1] == '{"é": 1}'
    assert json.loads(text.splitlines()[0]) == {
        "a": None, "b": None, "c": "2020-01-02", "d": "1.5", "e": "\ud800", "f": "é",
    }  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".xlsx"])
def test_no_rows(tmp_path: Path, suffix: str) -> None:
    assert written(tmp_path / f"out{suffix}").exists()


def test_parquet_columns_take_the_narrowest_type(tmp_path: Path) -> None:
    path = written(
        tmp_path / "out.parquet",
        [{"a": None, "b": 1, "c": 1, "d": True, "e": 2**70, "f": None, "g": [], "h": {"x": {}}}],
        [{"a": "x", "b": 2, "c": 0.5, "d": "no", "e": 1, "f": None, "g": [1], "h": None, "i": 5}],
    )
    table = pq.read_table(path)
    assert {field.name: str(field.type) for field in table.schema} == {
        "a": "string", "b": "int64", "c": "double", "d": "string", "e": "string", "f": "null",
        "g": "list<element: int64>", "h": "string", "i": "int64",
    }  # fmt: skip
    assert table.to_pylist()[0]["e"] == str(2**70)
    assert table.to_pylist()[0]["h"] == '{"x": {}}'


def test_what_parquet_cannot_hold_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no Parquet type") as caught:
        written(tmp_path / "out.parquet", [{"a": 2**53 + 1}], [{"a": 0.5}])
    assert ".jsonl" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_the_preview_is_read_where_it_is_needed(tmp_path: Path) -> None:
    def broken() -> Any:
        raise AssertionError
        yield

    with write_rows(tmp_path / "out.jsonl", broken()) as write:
        write([{"a": 1}])
    with pytest.raises(AssertionError), write_rows(tmp_path / "out.csv", broken()):
        pass
    with pytest.raises(UsageError), write_rows(tmp_path / "out.pdf", broken()):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize(
    "sign", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"]
)
def test_formulas_get_an_apostrophe(tmp_path: Path, sign: str) -> None:
    evil = f'{sign}HYPERLINK("x";A1)'
    assert neutral(evil) == f"'{evil}" and neutral(f"so {sign}") == f"so {sign}"
    row = {"text": evil, f"{sign}name": "so glad", "number": -1.5, "nested": ["=1"]}
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with write_rows(tmp_path / name, [[row]], safe=True) as write:
            write([row])
        assert (tmp_path / name).read_bytes().startswith(b"\xef\xbb\xbf"), (
            "Excel takes it for Latin-1 otherwise"
        )
        with (tmp_path / name).open(encoding="utf-8-sig", newline="") as file:
            header, cells = csv.reader(file, delimiter=delimiter)
        assert header == ["text", f"'{sign}name", "number", "nested"]
        assert cells == [f"'{evil}", "so glad", "-1.5", '["=1"]']
        assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in (*header, *cells))


@pytest.mark.parametrize(
    "text",
    [
        "=1+1", "+cmd", "-cmd", "@SUM(A1)", "-1", "+0.5", " =1", "\u3000=1", "\xa0@x", "\ufeff=1",
        "\u200b=1",
        "\t=1", "\tx", "\rx", "\nx", "\x00=1", "\uff1d1", " \uff0b1", "\uff0d1",
        "\uff201", "\ufe661", "\ufe6b1", "'=1",
    ],
)  # fmt: skip
def test_the_one_rule_for_formulas(text: str) -> None:
    assert neutral(text) == f"'{text}"


@pytest.mark.parametrize(
    "text", ["so = so", "", "a@b", "'quoted'", "'", "1-1", "\u2212 minus", " so", "\u3000so"]
)
def test_what_is_no_formula_stays(text: str) -> None:
    assert neutral(text) == text


@pytest.mark.parametrize(
    "text", ["=1", "'=1", "''=1", "'", "''", "'a'", " '=1", "\t", "'\t", "\uff1d1", "'-5", ""]
)
def test_what_was_made_safe_can_be_restored(text: str) -> None:
    assert plain(neutral(text)) == text


def test_only_files_for_spreadsheets_are_made_safe(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.parquet", "a.xlsx"):
        with (
            pytest.raises(UsageError, match=r"only \.csv and \.tsv"),
            write_rows(tmp_path / name, [], safe=True),
        ):
            pass
    assert list(tmp_path.iterdir()) == []


# Spreadsheets


def sheet(path: Path) -> list[tuple[Any, ...]]:
    return list(openpyxl.load_workbook(path).worksheets[0].iter_rows(values_only=True))


def test_a_sheet_holds_numbers_and_texts(tmp_path: Path) -> None:
    row = {
        "text": "é ☃",
        "n": 3,
        "x": 0.5,
        "yes": True,
        "none": None,
        "nan": math.nan,
        "big": 2**60,
        "list": [1],
    }
    path = written(tmp_path / "out.xlsx", [row], [{"text": " a\nb ", "late": date(2026, 1, 2)}])
    assert sheet(path) == [
        ("text", "n", "x", "yes", "none", "nan", "big", "list", "late"),
        ("é ☃", 3, 0.5, True, None, None, str(2**60), "[1]", None),
        (" a\nb ", None, None, None, None, None, None, None, "2026-01-02"),
    ]


@pytest.mark.parametrize("text", ["=1+1", '=HYPERLINK("x")', "+1", "#N/A", "=_x000D_"])
def test_a_text_in_a_sheet_is_no_formula(tmp_path: Path, text: str) -> None:
    path = written(tmp_path / "out.xlsx", [{"text": text}])
    cell = openpyxl.load_workbook(path).worksheets[0]["A2"]
    assert cell.data_type == "s"
    assert list(text_rows(path).batches()) == [[{"text": text}]]


def test_any_texts_come_back_from_a_sheet(tmp_path: Path) -> None:
    texts = ["a\rb", "a\r\nb", "\x07 bell", "_x0041_", "\t tab", "'", "\ufffe", "😀", "x\x0b"]
    path = written(tmp_path / "out.xlsx", [{"text": text} for text in texts])
    assert [row["text"] for batch in text_rows(path).batches() for row in batch] == texts


def test_what_a_sheet_cannot_hold_is_said_before_rows_are_written(tmp_path: Path) -> None:
    long = {"text": "a" * 32_768}
    with pytest.raises(
        UsageError, match=r"row 2 has 32,768 characters in the column 'text'; a cell holds"
    ) as caught:
        written(tmp_path / "out.xlsx", [{"text": "a"}, long])
    assert ".parquet" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


# TSV that cannot be mistaken


def test_a_tab_within_a_text_quotes_the_header(tmp_path: Path) -> None:
    """Without it, the lines of this file are whole rows that use no quotes."""
    row = {"text": "x\ty\nz", "n": "1"}
    path = written(tmp_path / "out.tsv", [row])
    assert path.read_text("utf-8").startswith('"text"\tn\n')
    assert list(text_rows(path).batches()) == [[row]]


# Encodings


def test_files_are_utf8_whatever_the_locale(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rankwise.data.writers import write_rows\n"
        "for name in sys.argv[1:]:\n"
        "    with write_rows(Path(name), [[{'text': chr(0x2603)}]]) as write:\n"
        "        write([{'text': chr(0x2603)}])\n"
    )
    names = [str(tmp_path / name) for name in ("a.csv", "a.tsv", "a.jsonl")]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "LC_ALL": "C", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", code, *names], env=environment, check=True, timeout=60)
    for name in names:
        assert "\u2603" in Path(name).read_text("utf-8")
