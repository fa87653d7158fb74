"""All formats give the same numbered rows, and errors in damaged files name the line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankwise.data.readers import open_table
from rankwise.data.tables import BATCH_ROWS, listed, short
from rankwise.errors import DataError

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
quick = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows_of(path: Path, *, labeled: bool = True) -> list[tuple[int, dict[str, Any]]]:
    with open_table(path, labeled=labeled) as table:
        return list(table.rows)


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        rows_of(path)
    return str(caught.value)


class TestText:
    def test_lines_are_split_at_the_last_semicolon(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.txt", "one; two;joy\n three ;sad\r\n")
        assert rows_of(path) == [
            (1, {"text": "one; two", "label": "joy"}),
            (2, {"text": " three ", "label": "sad"}),
        ]

    @pytest.mark.parametrize("header", ["text;label", "Text;Label", "\ufefftext;label"])
    def test_a_header_is_passed_over_and_counted(self, tmp_path: Path, header: str) -> None:
        assert rows_of(write(tmp_path, "a.txt", f"{header}\na;b\n")) == [(2, {"text": "a", "label": "b"})]

    def test_the_words_of_the_header_may_stand_further_down(self, tmp_path: Path) -> None:
        assert rows_of(write(tmp_path, "a.txt", "a;b\ntext;label\n"))[1] == (
            2,
            {"text": "text", "label": "label"},
        )

    def test_plain_text_is_one_text_a_line(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.txt", "one;two\nthree\u2028four\n\n\n")
        assert rows_of(path, labeled=False) == [(1, {"text": "one;two"}), (2, {"text": "three\u2028four"})]

    def test_a_line_without_a_semicolon_is_named(self, tmp_path: Path) -> None:
        message = refused(write(tmp_path, "a.txt", "a;b\nno label here\n"))
        assert message.startswith(f"{tmp_path}/a.txt:2: no ';'")
        assert "hint: each line of a .txt file must be text;label" in message

    def test_an_empty_line_is_named_unless_it_ends_the_file(self, tmp_path: Path) -> None:
        assert "a.txt:2: the line is empty" in refused(write(tmp_path, "a.txt", "a;b\n \n\nc;d\n"))


class TestCsv:
    def test_quoted_commas_quotes_and_line_ends(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.csv", 'text,label\r\n"a, ""b""\r\nc",x\r\n\r\nd,y\r\n')
        assert rows_of(path) == [
            (2, {"text": 'a, "b"\r\nc', "label": "x"}),
            (5, {"text": "d", "label": "y"}),
        ]

    def test_tabs(self, tmp_path: Path) -> None:
        assert rows_of(write(tmp_path, "a.TSV", "text\tlabel\na, b\tx\n")) == [
            (2, {"text": "a, b", "label": "x"})
        ]

    @pytest.mark.parametrize("word", ["null", "NA", "nan", "None", "NaN", "1", "1.0", "true"])
    def test_words_stay_text(self, tmp_path: Path, word: str) -> None:
        assert rows_of(write(tmp_path, "a.csv", f"text,label\n{word},{word}\n"))[0][1] == {
            "text": word,
            "label": word,
        }

    def test_no_mark_or_space_sticks_to_a_column(self, tmp_path: Path) -> None:
        for header in ("\ufefftext, label ", '\ufeff"text","label"'):
            assert rows_of(write(tmp_path, "a.csv", f"{header}\na,b\n"))[0][1] == {"text": "a", "label": "b"}

    def test_old_mac_line_ends(self, tmp_path: Path) -> None:
        assert rows_of(write(tmp_path, "a.csv", "text,label\ra,b\r")) == [(2, {"text": "a", "label": "b"})]

    def test_a_column_named_twice(self, tmp_path: Path) -> None:
        assert "a.csv:1: the column 'text' appears twice" in refused(
            write(tmp_path, "a.csv", "text,text \na,b\n")
        )

    @pytest.mark.parametrize(("line", "fields"), [("c", "1 field"), ("c,d,e", "3 fields")])
    def test_a_row_of_another_width(self, tmp_path: Path, line: str, fields: str) -> None:
        message = refused(write(tmp_path, "a.csv", f'text,label\n"a\nb",x\n{line}\n'))
        assert f"a.csv:4: {fields}, but the header has 2" in message

    def test_a_quote_left_open_is_named_where_it_begins(self, tmp_path: Path) -> None:
        message = refused(write(tmp_path, "a.csv", 'text,label\na,b\n"c,d\ne,f\n'))
        assert "a.csv:3: not CSV" in message and "quote left open" in message
        long = 'text,label\n"' + "word, word\n" * 20_000
        assert "a.csv:2: not CSV" in refused(write(tmp_path, "a.csv", long))

    def test_text_after_a_closing_quote(self, tmp_path: Path) -> None:
        assert "a.csv:2: not CSV" in refused(write(tmp_path, "a.csv", 'text,label\n"so" she said,b\n'))
        two = 'text\tlabel\n"a\tb"\tx\n"so" she said\tb\n'
        assert "a.tsv:3: not TSV" in refused(write(tmp_path, "a.tsv", two))

    @quick
    @given(pairs=st.lists(st.tuples(TEXTS, TEXTS), max_size=8))
    def test_what_csv_writes_is_read_back_with_its_lines(
        self, tmp_path: Path, pairs: list[tuple[str, str]]
    ) -> None:
        out = io.StringIO(newline="")
        writer = csv.writer(out)
        begins, expected = [], []
        for pair in [("text", "label"), *pairs]:
            # Inside a field, \r, \n and \r\n each count as one line ending, as in an editor.
            written = out.getvalue()
            begins.append(len(written.replace("\r\n", "\n").replace("\r", "\n").split("\n")))
            expected.append(pair)
            writer.writerow(pair)
        path = write(tmp_path, "a.csv", out.getvalue())
        found = [(number, tuple(row.values())) for number, row in rows_of(path)]
        assert found == list(zip(begins, expected, strict=True))[1:]


class TestJsonLines:
    def test_rows_keep_all_their_fields(self, tmp_path: Path) -> None:
        lines = '{"text": "a\\nb", "label": 1, "more": [1, null]}\n\n{"text": "\\u0000", "label": true}'
        for name in ("a.jsonl", "a.ndjson", "a.json"):
            assert rows_of(write(tmp_path, name, lines)) == [
                (1, {"text": "a\nb", "label": 1, "more": [1, None]}),
                (3, {"text": "\0", "label": True}),
            ]

    @pytest.mark.parametrize(
        ("line", "what"),
        [
            ('{"text": "a"', "not JSON: Expecting ',' delimiter (column 13)"),
            ("[1]", "not a JSON object"),
            ('"a"', "not a JSON object"),
            ('{"text": "a", "text": "b"}', "duplicate names"),
            ("[" * 100_000, "cannot be read as JSON"),
            ("1" * 5000, "cannot be read as JSON"),
        ],
    )
    def test_what_is_no_object_is_named(self, tmp_path: Path, line: str, what: str) -> None:
        message = refused(write(tmp_path, "a.jsonl", f'{{"text": "a"}}\n{line}\n'))
        assert message.startswith(f"{tmp_path}/a.jsonl:2: ") and what in message

    @quick
    @given(rows=st.lists(st.dictionaries(TEXTS, TEXTS, min_size=1), min_size=1, max_size=6))
    def test_what_json_writes_is_read_back(self, tmp_path: Path, rows: list[dict[str, str]]) -> None:
        path = write(tmp_path, "a.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        assert rows_of(path) == list(enumerate(rows, 1))


class TestParquet:
    def test_rows_are_streamed_and_numbered_across_batches(self, tmp_path: Path) -> None:
        path, size = tmp_path / "a.parquet", 2 * BATCH_ROWS + 3
        table = pyarrow.table({"text": [f"t{n}" for n in range(size)], "label": list(range(size))})
        pyarrow.parquet.write_table(table, path, row_group_size=700)
        assert rows_of(path) == [(n + 1, {"text": f"t{n}", "label": n}) for n in range(size)]

    def test_dictionary_columns(self, tmp_path: Path) -> None:
        column = pyarrow.array(["x", "y", "x"]).dictionary_encode()
        pyarrow.parquet.write_table(
            pyarrow.table({"text": ["a", "b", None], "label": column}), tmp_path / "a.parquet"
        )
        assert rows_of(tmp_path / "a.parquet")[2] == (3, {"text": None, "label": "x"})

    def test_damaged_files(self, tmp_path: Path) -> None:
        assert "a.parquet: " in refused(write(tmp_path, "a.parquet", b"text,label\n" * 5))
        path = tmp_path / "b.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": ["a"] * 50}), path)
        path.write_bytes(path.read_bytes()[:-9] + b"\xff" + path.read_bytes()[-8:])
        assert "b.parquet: " in refused(path)

    def test_a_string_that_is_not_utf8(self, tmp_path: Path) -> None:
        bad = pyarrow.array([b"good", b"\xff"]).cast(pyarrow.string(), safe=False)
        pyarrow.parquet.write_table(pyarrow.table({"text": bad}), tmp_path / "a.parquet")
        assert "a.parquet: row 1: a string in this row or a later one" in refused(tmp_path / "a.parquet")

    def test_class_names_are_found_and_odd_notes_passed_over(self, tmp_path: Path) -> None:
        note = {
            "info": {
                "features": {
                    "text": {"_type": "Value"},
                    "label": {"_type": "ClassLabel", "names": ["n", "p"]},
                }
            }
        }
        for metadata, expected in (
            (json.dumps(note), {"label": ["n", "p"]}),
            ("{", {}),
            ('{"info": {"features": [1]}}', {}),
            ('{"info": {"features": {"label": {"_type": "ClassLabel"}}}}', {}),
        ):
            table = pyarrow.table({"text": ["a"], "label": [1]}).replace_schema_metadata(
                {"huggingface": metadata}
            )
            pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
            with open_table(tmp_path / "a.parquet") as opened:
                assert opened.classes == expected


class TestFiles:
    @pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.jsonl", "a.parquet"])
    def test_an_empty_file(self, tmp_path: Path, name: str) -> None:
        assert refused(write(tmp_path, name, "")).startswith(f"{tmp_path}/{name}: the file is empty\nhint: ")

    @pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.parquet"])
    def test_gzip_under_another_name(self, tmp_path: Path, name: str) -> None:
        message = refused(write(tmp_path, name, gzip.compress(b"text,label\na,b\n")))
        assert f"{name}: the file is compressed with gzip\nhint: add .gz to its name" in message

    @pytest.mark.parametrize("name", ["a.docx", "a", "a.gz", "a.parquet.gz"])
    def test_an_unknown_suffix(self, tmp_path: Path, name: str) -> None:
        content = b"text,label\n"
        message = refused(write(tmp_path, name, gzip.compress(content) if name.endswith(".gz") else content))
        assert (
            "suffix" in message and ".json, .parquet, .arrow, .xlsx; the first six also with .gz" in message
        )

    @pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
    def test_not_utf8_is_named_by_line_and_offset(self, tmp_path: Path, name: str) -> None:
        good = {"a.txt": "é;b\n", "a.csv": "text,é\n", "a.jsonl": '{"text": "é"}\n'}[name].encode()
        message = refused(write(tmp_path, name, good * 3000 + b"caf\xe9;b\n"))
        assert f"{name}:3001: not UTF-8: byte 0xe9 at offset {3000 * len(good) + 3}" in message
        assert "iconv -f WINDOWS-1252 -t UTF-8" in message

    def test_utf16(self, tmp_path: Path) -> None:
        for name in ("utf-16", "utf-32"):
            assert rows_of(write(tmp_path, "a.csv", "text,label\na\u2603,b\n".encode(name))) == [
                (2, {"text": "a\u2603", "label": "b"})
            ]
        cut = "text,label\na,b\n".encode("utf-16")[:-1]
        assert "a.csv: not UTF-16, although it begins with its mark" in refused(write(tmp_path, "a.csv", cut))
        assert "a.csv:1: the line contains a NUL byte" in refused(
            write(tmp_path, "a.csv", "text,label\na,b\n".encode("utf-16-le"))
        )

    @pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
    def test_a_nul_byte(self, tmp_path: Path, name: str) -> None:
        good = {"a.txt": "a;b\n", "a.csv": "text,label\n", "a.jsonl": '{"text": "a"}\n'}[name]
        assert f"{name}:2: the line contains a NUL byte" in refused(write(tmp_path, name, good + "a\0;b\n"))

    def test_no_such_file(self, tmp_path: Path) -> None:
        assert refused(tmp_path / "none.csv").startswith(f"{tmp_path}/none.csv: no such file\nhint: ")

    def test_a_folder_and_a_pipe(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").mkdir()
        os.mkfifo(tmp_path / "b.csv")
        assert "a.csv: expected a file, not a folder" in refused(tmp_path / "a.csv")
        assert "b.csv: not a regular file" in refused(tmp_path / "b.csv")

    def test_paths_that_the_system_refuses(self, tmp_path: Path) -> None:
        (tmp_path / "loop.csv").symlink_to("loop.csv")
        assert "loop.csv: the file cannot be read: Too many levels" in refused(tmp_path / "loop.csv")
        assert "the file cannot be read: File name too long" in refused(tmp_path / f"{'a' * 300}.csv")

    def test_no_permission(self, tmp_path: Path) -> None:
        path = write(tmp_path, "a.csv", "text,label\n")
        path.chmod(0)
        with _without_root():
            assert "a.csv: the file cannot be read: Permission denied" in refused(path)


@contextmanager
def _without_root() -> Iterator[None]:
    """Root ignores permissions, so tests of permissions must run as another user."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_names_and_values_are_kept_short() -> None:
    assert listed([]) == "nothing"
    assert listed(["a", "b c"]) == "a, b c"
    assert listed([str(n) for n in range(25)]).endswith("18, 19 and 5 more")
    assert short("a") == "'a'"
    assert short("a" * 100) == "'" + "a" * 56 + "..."
