"""Files as people have them: from office programs, compressed, in JSON arrays, from fastText and datasets."""

from __future__ import annotations

import builtins
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import openpyxl
import pandas as pd
import pyarrow
import pyarrow.feather
import pytest

from rankwise.data import load as data
from rankwise.data.readers import open_table
from rankwise.data.unlabeled import text_rows
from rankwise.errors import DataError
from rankwise.recipe import Recipe

ROWS = [("so glad", "joy"), ("so cross; really", "anger"), ("merry, indeed", "joy"), ("é ☃", "anger")]


def load(path: Path, **settings: Any) -> data.Dataset:
    return data.load(Recipe(**{"data": str(path), "validation": str(path), **settings}))


def pairs(found: data.Dataset) -> list[tuple[str, str]]:
    return list(zip(found.train.texts, [found.labels[i] for i in found.train.labels], strict=True))


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        data.load(Recipe(**{"data": str(path), **settings}))
    return str(caught.value)


def written(path: Path, content: str, encoding: str = "utf-8") -> Path:
    raw = content.encode(encoding)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


# Separators


@pytest.mark.parametrize(
    ("separator", "name"), [(";", "a semicolon"), ("\t", "a tab"), ("|", "a vertical bar")]
)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_the_separator_is_found_and_said(tmp_path: Path, separator: str, name: str, suffix: str) -> None:
    frame = pd.DataFrame(ROWS, columns=["text", "label"])
    path = tmp_path / f"a{suffix}"
    frame.to_csv(path, sep=separator, index=False)
    found = load(path)
    assert pairs(found) == ROWS
    assert found.notes == (f"a{suffix}: the separator is {name}",)


def test_commas_in_a_tsv(tmp_path: Path) -> None:
    found = load(written(tmp_path / "a.tsv", "text,label\na,x\nb,y\n"))
    assert pairs(found) == [("a", "x"), ("b", "y")]
    assert found.notes[0] == "a.tsv: the separator is a comma"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text,label\nso; glad,x\nno;t,y\n", [("so; glad", "x"), ("no;t", "y")]),  # semicolons in the texts
        ("Text;Label\n3,5;x\n4,5;y\n", [("3,5", "x"), ("4,5", "y")]),  # commas in every row
        ("text;label, short\na;x,1\nb;y,2\n", [("a", "x,1"), ("b", "y,2")]),  # both in the header
        ('"text";"label"\n"a;b";"x"\n"c";"y"\n', [("a;b", "x"), ("c", "y")]),
        ("sep=|\ntext|label\na|x\nb|y\n", [("a", "x"), ("b", "y")]),
    ],
)
def test_other_separators_within_the_rows(
    tmp_path: Path, content: str, expected: list[tuple[str, str]]
) -> None:
    columns = {"label_column": "label, short"} if "short" in content else {}
    assert pairs(load(written(tmp_path / "a.csv", content), **columns)) == expected


def test_a_single_column_has_no_separator(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text\nso glad; really\na|b;c\n")
    assert [row["text"] for batch in text_rows(path).batches() for row in batch] == [
        "so glad; really",
        "a|b;c",
    ]


def test_lines_are_counted_from_the_line_that_declares_the_separator(tmp_path: Path) -> None:
    assert "a.csv:4: the text is empty" in refused(
        written(tmp_path / "a.csv", "sep=;\ntext;label\na;x\n;y\n")
    )


# What office programs add


def test_empty_rows_and_columns_are_left_out(tmp_path: Path) -> None:
    content = "text,label,,\r\nso glad,joy,,\r\nso cross,anger,,\r\n,,,\r\n ,,,\r\n"
    found = load(written(tmp_path / "a.csv", content, "utf-8-sig"))
    assert pairs(found) == [("so glad", "joy"), ("so cross", "anger")]
    assert found.notes[:2] == (
        "a.csv: 2 empty columns without a name left out",
        "a.csv: 2 empty rows at the end left out",
    )


def test_empty_fields_beyond_the_header(tmp_path: Path) -> None:
    assert pairs(load(written(tmp_path / "a.csv", "text,label\na,x,,\nb,y,,\n"))) == [("a", "x"), ("b", "y")]


def test_a_value_below_no_name_is_refused(tmp_path: Path) -> None:
    message = refused(written(tmp_path / "a.csv", "text,label,\na,x,\nb,y,z\n"))
    assert "a.csv:3: column 3 has the value 'z', but no name in the header" in message


def test_an_empty_row_within_is_named(tmp_path: Path) -> None:
    assert "a.csv:3: the text is empty" in refused(written(tmp_path / "a.csv", "text,label\na,x\n,\nb,y\n"))


def test_utf16_text_from_excel(tmp_path: Path) -> None:
    found = load(written(tmp_path / "a.csv", "text\tlabel\nso glad ☃\tjoy\nno\tanger\n", "utf-16"))
    assert pairs(found) == [("so glad ☃", "joy"), ("no", "anger")]
    assert "a.csv: read as UTF-16" in found.notes


# Compressed


def test_gzip(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS)
    for name, content in (
        ("a.jsonl.gz", lines),
        ("a.ndjson.gz", lines),
        ("a.tsv.gz", "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS)),
        ("a.txt.gz", "".join(f"{text};{label}\n" for text, label in ROWS)),
    ):
        assert pairs(load(written(tmp_path / name, content))) == ROWS


def test_a_folder_of_compressed_files(tmp_path: Path) -> None:
    for name in ("train.csv.gz", "validation.csv.gz"):
        written(tmp_path / name, "text,label\na,x\nb,y\n")
    assert [len(split) for split in data.load(Recipe(data=str(tmp_path))).splits] == [2, 2]


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(b"text,label\n" + b"a,x\nb,y\n" * 9000)
    for content in (whole[:-9], whole[:-8] + b"\0" * 8, b"text,label\na,x\n"):
        (tmp_path / "a.csv.gz").write_bytes(content)
        assert "a.csv.gz: the file cannot be unpacked with gzip" in refused(tmp_path / "a.csv.gz")


def test_a_line_of_a_compressed_file_is_named(tmp_path: Path) -> None:
    message = refused(written(tmp_path / "a.csv.gz", "text,label\na,x\nê,y\n", "latin-1"))
    assert "a.csv.gz:3: not UTF-8: byte 0xea at offset 15" in message


# Spreadsheets


def workbook(path: Path, **sheets: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


TABLE = [["text", "label", None], *([*row, None] for row in ROWS)]


def test_a_spreadsheet(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", First=[*TABLE, [], [None, None]], Second=[])
    found = load(path)
    assert pairs(found) == ROWS
    assert found.notes[0] == "a.xlsx: read the sheet 'First'; the others are empty"


def test_a_spreadsheet_that_pandas_wrote(tmp_path: Path) -> None:
    pd.DataFrame({"review": ["a", "b", "c"], "stars": [5, 1, 5]}).to_excel(tmp_path / "a.xlsx", index=False)
    found = load(tmp_path / "a.xlsx")
    assert pairs(found) == [("a", "5"), ("b", "1"), ("c", "5")] and found.labels == ("1", "5")


def test_a_table_that_begins_further_down(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", One=[[], [], *TABLE, [None, "joy"]])
    assert "a.xlsx: row 8: the text is missing" in refused(path)


def test_numbers_that_were_texts(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", One=[["text", "label"], [2024, "x"], [1.5, "y"]])
    assert pairs(load(path)) == [("2024", "x"), ("1.5", "y")]


def test_several_sheets_are_named(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", One=TABLE, Empty=[], Two=TABLE)
    message = refused(path)
    assert "a.xlsx: 2 sheets have data: One, Two\nhint: keep one of them" in message


def test_a_value_of_a_sheet_below_no_name(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", One=[["text", "label"], ["a", "x"], ["b", "y", "z"]])
    assert "a.xlsx: row 3: column 3 has the value 'z', but no name" in refused(path)


def test_what_is_no_spreadsheet(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", One=[])
    assert "a.xlsx: no sheet has data" in refused(path)
    path.write_bytes(b"PK\x03\x04 and more")
    assert "a.xlsx: cannot be read as a spreadsheet: File is not a zip file" in refused(path)
    path.write_bytes(b"\xd0\xcf\x11\xe0 and more")
    assert "an old Excel file, or one with a password" in refused(path)


def test_without_openpyxl_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workbook(tmp_path / "a.xlsx", One=TABLE)
    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "openpyxl":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "a.xlsx: spreadsheets need the package openpyxl\nhint: pip install 'rankwise[excel]'" in refused(
        path
    )


# JSON


OBJECTS = [{"text": text, "label": label} for text, label in ROWS]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    "layout", [OBJECTS, {"data": OBJECTS}, {"version": "1", "tags": ["a"], "rows": OBJECTS}]
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_arrays_of_objects(tmp_path: Path, indent: int | None, layout: Any, name: str) -> None:
    path = written(tmp_path / name, json.dumps(layout, indent=indent, ensure_ascii=False))
    found = load(path)
    assert pairs(found) == ROWS
    names = [key for key in layout if key in ("data", "rows")] if isinstance(layout, dict) else []
    assert found.notes[:1] == tuple(f"{name}: the rows are the list {key!r}" for key in names)


def test_pandas_records(tmp_path: Path) -> None:
    pd.DataFrame(ROWS, columns=["text", "label"]).to_json(tmp_path / "a.json", orient="records")
    assert pairs(load(tmp_path / "a.json")) == ROWS


def test_json_lines_whose_rows_hold_lists(tmp_path: Path) -> None:
    rows = [{**row, "words": [{"word": "so"}]} for row in OBJECTS]
    path = written(tmp_path / "a.json", "\n\n".join(map(json.dumps, rows)))
    assert pairs(load(path)) == ROWS


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('[{"text": "a", "label": "x"}, 5]', "row 2: not a JSON object"),
        ('[{"text": "a", "label": "x"}, {"text": ""}]', "row 2: the text is empty"),
        ("[]", ": the array is empty"),
        (
            '{"text": {"0": "a"}, "label": {"0": "x"}}',
            ": the columns text, label instead of rows\nhint: write rows",
        ),
        ('{\n"text": ["a"],\n"label": ["x"]\n}', ": the columns text, label instead of rows"),
        ('{\n"text": "a",\n"label": "x"\n}', ": one JSON object, not a list of them"),
        ('{"a": [{"text": "a"}], "b": [{"text": "b"}]}', ": several lists of objects: a, b"),
        ('[\n{"text": "a", "label": "x"},\n{"text": "b" "label": "y"}\n]', ":3: not JSON: Expecting ','"),
        ('{"text": "a", "label": \n', ":1: not JSON: Expecting value"),
    ],
)
def test_other_layouts_are_named(tmp_path: Path, content: str, what: str) -> None:
    assert f"a.json:{what}".replace("::", ":").replace(":row", ": row") in refused(
        written(tmp_path / "a.json", content)
    )


# fastText


def test_fasttext(tmp_path: Path) -> None:
    content = "__label__joy so glad; today\n__label__anger , so cross\nmerry __label__joy\n"
    found = load(written(tmp_path / "a.txt", content))
    assert pairs(found) == [("so glad; today", "joy"), (", so cross", "anger"), ("merry", "joy")]
    assert found.notes[0] == "a.txt: read as fastText lines"


def test_fasttext_with_several_labels_or_none(tmp_path: Path) -> None:
    several = written(tmp_path / "a.txt", "__label__joy a\n__label__x __label__y b\n")
    assert "a.txt:2: the label is a list: ['x', 'y']\nhint: for texts with several labels: task=" in refused(
        several
    )
    none = written(tmp_path / "a.txt", "__label__joy a\nb;joy\n")
    assert "a.txt:2: no __label__ in the line" in refused(none)


# The datasets library


def features(names: Sequence[str]) -> datasets.Features:
    return datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))}
    )


def dataset(columns: Mapping[str, Any], names: Sequence[str] = ("neg", "pos")) -> datasets.Dataset:
    return datasets.Dataset.from_dict(dict(columns), features=features(names))


SMALL = dataset({"text": ["a", "b", "c", "d"], "label": [1, 0, 1, 0]})


def test_a_saved_dataset(tmp_path: Path) -> None:
    SMALL.save_to_disk(tmp_path / "saved")
    found = data.load(Recipe(data=str(tmp_path / "saved")))
    assert found.labels == ("neg", "pos")
    assert sorted(found.train.texts + found.validation.texts) == ["a", "b", "c", "d"]


def test_a_saved_dict_of_datasets(tmp_path: Path) -> None:
    unlabeled = dataset({"text": ["e"], "label": [-1]})
    splits = datasets.DatasetDict({"train": SMALL, "dev": SMALL.select([0]), "test": unlabeled})
    splits.save_to_disk(tmp_path / "saved")
    found = data.load(Recipe(data=str(tmp_path / "saved")))
    assert pairs(found) == [("a", "pos"), ("b", "neg"), ("c", "pos"), ("d", "neg")]
    assert found.validation.texts == ["a"] and found.test is None
    assert "[test]: no test text has a label, so there is no test split" in found.notes[0]


def test_a_damaged_saved_dataset(tmp_path: Path) -> None:
    SMALL.save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    assert "the saved dataset cannot be loaded" in refused(tmp_path / "saved")


def test_arrow_files_of_both_kinds(tmp_path: Path) -> None:
    SMALL.save_to_disk(tmp_path / "saved")  # Arrow's stream format
    (stream,) = (tmp_path / "saved").glob("*.arrow")
    table = pyarrow.table({"text": ["a", "b"], "label": ["x", "y"]})
    pyarrow.feather.write_feather(table, tmp_path / "file.arrow")  # Arrow's file format
    assert pairs(load(stream)) == [("a", "pos"), ("b", "neg"), ("c", "pos"), ("d", "neg")]
    assert pairs(load(tmp_path / "file.arrow")) == [("a", "x"), ("b", "y")]
    (tmp_path / "bad.arrow").write_bytes(b"text,label\n" * 9)
    assert "bad.arrow: cannot be read as Arrow" in refused(tmp_path / "bad.arrow")


def test_large_arrow_batches_are_read_in_pieces(tmp_path: Path) -> None:
    size = 3000
    table = pyarrow.table({"text": [f"t{n}" for n in range(size)], "label": [n % 2 for n in range(size)]})
    with (
        pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pyarrow.ipc.new_file(sink, table.schema) as file,
    ):
        file.write_table(table)
    with open_table(tmp_path / "a.arrow") as found:
        assert [(number, row["text"]) for number, row in found.rows] == [
            (n + 1, f"t{n}") for n in range(size)
        ]
