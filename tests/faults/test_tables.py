"""Random tables round-trip through every format."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rankwise.data.load import load
from rankwise.data.readers import open_table
from rankwise.data.writers import write_rows
from rankwise.recipe import Recipe

COUNT = 10_000 if os.environ.get("RANKWISE_FAULTS") == "full" else 250
Row = dict[str, Any]

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXTS = st.text(CHARACTERS, max_size=40) | st.sampled_from(
    ["", " ", "null", "NA", "nan", "None", "=1+1", "a,b", 'so ""good""', "a\nb", "a\r\nb", "\r", "\ufeff"]
)
# At the start of a file, U+FEFF is the byte-order mark, not part of a name.
NAMES = TEXTS.map(lambda text: text.strip().lstrip("\ufeff").strip()).filter(bool)
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
NESTED = st.recursive(
    TEXTS | NUMBERS | st.booleans() | st.none(), lambda v: st.lists(v, max_size=3), max_leaves=5
)
CELLS: dict[str, list[st.SearchStrategy[Any]]] = {
    ".csv": [TEXTS],
    ".tsv": [TEXTS],
    ".jsonl": [NESTED],
    ".parquet": [
        TEXTS,
        st.none() | TEXTS,
        st.integers(-(2**63), 2**63 - 1),
        st.booleans(),
        NUMBERS.map(float),
    ],
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, list[Row]]:
    """A suffix and rows with at least two columns; values of a Parquet column have one type."""
    suffix = draw(st.sampled_from(sorted(CELLS)))
    names = draw(st.lists(NAMES, min_size=2, max_size=5, unique_by=str.strip))
    kinds = [draw(st.sampled_from(CELLS[suffix])) for _ in names]
    rows = draw(st.lists(st.tuples(*kinds), min_size=1, max_size=6))
    return suffix, [dict(zip(names, row, strict=True)) for row in rows]


settled = settings(max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck))


@settled
@given(table=tables())
@example((".csv", [{"a": "\ufeff", "b": ""}, {"a": "", "b": ""}]))
def test_there_and_back(table: tuple[str, list[Row]]) -> None:
    suffix, rows = table
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        with write_rows(path, [rows]) as write:
            write(rows)
        with open_table(path) as found:
            assert found.columns == list(rows[0])
            assert [row for _, row in found.rows] == rows


@settings(max_examples=COUNT // 5, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    suffix=st.sampled_from([*CELLS, ".txt"]),
    texts=st.lists(TEXTS.filter(str.strip), min_size=2, max_size=8),
    labels=st.lists(st.text("abc", min_size=1, max_size=2), min_size=2, max_size=8),
)
def test_data_are_what_was_written(suffix: str, texts: list[str], labels: list[str]) -> None:
    """The same through all of stage 1: texts and label names are unchanged."""
    labels[:2] = ["x", "y"]
    pairs = list(zip(texts, labels, strict=False))
    if suffix == ".txt":  # a line is a text
        pairs = [(" ".join(text.split()) or "-", label) for text, label in pairs]
        pairs = [(text.lstrip("\ufeff") or "-", label) for text, label in pairs]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        if suffix == ".txt":
            path.write_text("".join(f"{text};{label}\n" for text, label in pairs), "utf-8", newline="")
        else:
            rows = [{"text": text, "label": label} for text, label in pairs]
            with write_rows(path, [rows]) as write:
                write(rows)
        found = load(Recipe(data=str(path), validation=str(path)))
    assert list(zip(found.train.texts, [found.labels[i] for i in found.train.labels], strict=True)) == pairs
