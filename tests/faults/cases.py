# ruff: noqa: E501, RUF001
"""Realistic input files: (name, file name, bytes, expected rows or error message).

Messages follow the file's path and must match completely.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from datetime import date
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[tuple[str, str]]  # text, label

PLAIN = "text,label\nso glad,joy\nsò cross,anger\n"
BIG = "word " * 200_000 + "."


def parquet(columns: dict[str, Any]) -> bytes:
    return _written(pa.table(columns))


def classes(names: list[str], labels: list[int]) -> bytes:
    """A file with ClassLabel names in its metadata, as written by the datasets library."""
    note = {"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}
    table = pa.table({"text": [f"t{i}" for i in range(len(labels))], "label": labels})
    return _written(table.replace_schema_metadata({"huggingface": json.dumps(note)}))


def zipped(text: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.csv", text)
    return out.getvalue()


def _written(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


NOT_UTF8 = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a", b"\xff"]).buffers())
TWICE = _written(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"]))
GOOD = parquet({"text": ["a", "b"], "label": ["x", "y"]})

CASES: list[tuple[str, str, bytes, Rows | str]] = [
    ("utf8", "a.csv", PLAIN.encode(), [("so glad", "joy"), ("sò cross", "anger")]),
    ("utf8 bom", "a.csv", PLAIN.encode("utf-8-sig"), [("so glad", "joy"), ("sò cross", "anger")]),
    (
        "utf16 bom",
        "a.csv",
        PLAIN.encode("utf-16"),
        [("so glad", "joy"), ("sò cross", "anger")],
    ),
    (
        "utf16le no bom",
        "a.csv",
        PLAIN.encode("utf-16-le"),
        ":3: not UTF-8: byte 0xf2 at offset 48\nhint: if it is UTF-16: iconv -f UTF-16 -t UTF-8 a.csv > NEW",
    ),
    (
        "utf32",
        "a.csv",
        PLAIN.encode("utf-32"),
        [("so glad", "joy"), ("sò cross", "anger")],
    ),
    (
        "latin1",
        "a.csv",
        PLAIN.encode("latin-1"),
        ":3: not UTF-8: byte 0xf2 at offset 24\nhint: if it is WINDOWS-1252: iconv -f WINDOWS-1252 -t UTF-8 a.csv > NEW",
    ),
    (
        "cp1252 quotes",
        "a.csv",
        b"text,label\nso glad,joy\n\x93cross\x94,anger\n",
        ":3: not UTF-8: byte 0x93 at offset 23\nhint: if it is WINDOWS-1252: iconv -f WINDOWS-1252 -t UTF-8 a.csv > NEW",
    ),
    (
        "utf8 cut",
        "a.csv",
        PLAIN.encode() + "é".encode()[:1],
        ":4: not UTF-8: byte 0xc3 at offset 39\nhint: if it is WINDOWS-1252: iconv -f WINDOWS-1252 -t UTF-8 a.csv > NEW",
    ),
    (
        "latin1 txt",
        "a b.txt",
        "caf\xe9;x\n".encode("latin-1"),
        ":1: not UTF-8: byte 0xe9 at offset 3\nhint: if it is WINDOWS-1252: iconv -f WINDOWS-1252 -t UTF-8 'a b.txt' > NEW",
    ),
    ("bom txt", "a.txt", "\ufeffa;x\nb;y\n".encode(), [("a", "x"), ("b", "y")]),
    (
        "bom jsonl",
        "a.jsonl",
        '\ufeff{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n'.encode(),
        [("a", "x"), ("b", "y")],
    ),
    (
        "overlong",
        "a.csv",
        b"text,label\n\xc0\xaf,x\nb,y\n",
        ":2: not UTF-8: byte 0xc0 at offset 11\nhint: if it is WINDOWS-1252: iconv -f WINDOWS-1252 -t UTF-8 a.csv > NEW",
    ),
    ("crlf", "a.csv", b"text,label\r\na,x\r\nb,y\r\n", [("a", "x"), ("b", "y")]),
    ("cr", "a.csv", b"text,label\ra,x\rb,y\r", [("a", "x"), ("b", "y")]),
    ("mixed ends", "a.csv", b"text,label\na,x\r\nb,y\r", [("a", "x"), ("b", "y")]),
    ("no last end", "a.csv", b"text,label\na,x\nb,y", [("a", "x"), ("b", "y")]),
    ("crlf txt", "a.txt", b"a;x\r\nb;y\r\n", [("a", "x"), ("b", "y")]),
    (
        "cr txt",
        "a.txt",
        b"a;x\rb;y\r",
        ":1: a carriage return within the line\nhint: line endings must be LF or CR LF; to convert CR: tr '\\r' '\\n' < OLD > NEW",
    ),
    (
        "crlf jsonl",
        "a.jsonl",
        b'{"text": "a", "label": "x"}\r\n{"text": "b", "label": "y"}\r\n',
        [("a", "x"), ("b", "y")],
    ),
    (
        "cr jsonl",
        "a.jsonl",
        b'{"text": "a", "label": "x"}\r{"text": "b", "label": "y"}\r',
        ':1: not JSON: Extra data (column 29)\nhint: JSON Lines: one object per line, such as {"text": "...", "label": "..."}',
    ),
    ("empty lines csv", "a.csv", b"text,label\n\na,x\n\n\nb,y\n\n", [("a", "x"), ("b", "y")]),
    (
        "unicode line sep",
        "a.csv",
        "text,label\na\u2028b\x85c,x\nb,y\n".encode(),
        [("a\u2028b\x85c", "x"), ("b", "y")],
    ),
    ("form feed", "a.txt", b"a\x0cb;x\nb;y\n", [("a\x0cb", "x"), ("b", "y")]),
    ("quotes", "a.csv", b'text,label\n"a, ""b""",x\n\'b\',y\n', [('a, "b"', "x"), ("'b'", "y")]),
    ("embedded newline", "a.csv", b'text,label\n"a\nb\r\nc",x\nb,y\n', [("a\nb\r\nc", "x"), ("b", "y")]),
    (
        "unbalanced",
        "a.csv",
        b'text,label\na,x\n"b,y\nc,x\n',
        ':3: not CSV: unexpected end of data\nhint: is a quote left open? Quotes inside a field are doubled: "so ""good"", they said"',
    ),
    (
        "text after quote",
        "a.csv",
        b'text,label\n"a" b,x\nc,y\n',
        ':2: not CSV: \',\' expected after \'"\'\nhint: is a quote left open? Quotes inside a field are doubled: "so ""good"", they said"',
    ),
    ("stray quote inside", "a.csv", b'text,label\na "b" c,x\nb,y\n', [('a "b" c', "x"), ("b", "y")]),
    (
        "curly quotes",
        "a.csv",
        "text,label\n“a, b”,x\nb,y\n".encode(),
        ":2: 3 fields, but the header has 2\nhint: quote fields that contain the separator, a quote or a newline",
    ),
    ("quote tsv", "a.tsv", b'text\tlabel\n"a\tb"\tx\nb\ty\n', [("a\tb", "x"), ("b", "y")]),
    ("padded header", "a.csv", b" text , label\na,x\nb,y\n", [("a", "x"), ("b", "y")]),
    ("quoted bom header", "a.csv", '\ufeff"text","label"\na,x\nb,y\n'.encode(), [("a", "x"), ("b", "y")]),
    ("capital header", "a.csv", b"Text,LABEL\na,x\nb,y\n", [("a", "x"), ("b", "y")]),
    (
        "dup header",
        "a.csv",
        b"text,label,text\na,x,c\n",
        ":1: the column 'text' appears twice in the header\nhint: give each column a unique name",
    ),
    (
        "dup header padded",
        "a.csv",
        b"text,label,label \na,x,c\n",
        ":1: the column 'label' appears twice in the header\nhint: give each column a unique name",
    ),
    (
        "no header",
        "a.csv",
        b"i am glad,joy,1\nso cross,anger,2\n",
        ": no column for the text is known by its name; the columns are i am glad, joy, 1\nhint: use --text-column NAME; the first line of the file must contain the column names",
    ),
    (
        "no header of two",
        "a.csv",
        b"i am glad,joy\nso cross,anger\n",
        ": no column for the text is known by its name; the columns are i am glad, joy\nhint: use --text-column NAME; the first line of the file must contain the column names",
    ),
    (
        "header only",
        "a.csv",
        b"text,label\n",
        ": the file has no texts\nhint: is this the right file, and is it complete?",
    ),
    ("index column", "a.csv", b",text,label\n0,a,x\n1,b,y\n", [("a", "x"), ("b", "y")]),
    ("extra column", "a.csv", b"id,text,label,more\n1,a,x,p\n2,b,y,q\n", [("a", "x"), ("b", "y")]),
    (
        "extra field",
        "a.csv",
        b"text,label\na,x\nb,y,z\n",
        ":3: 3 fields, but the header has 2\nhint: quote fields that contain the separator, a quote or a newline",
    ),
    (
        "missing field",
        "a.csv",
        b"text,label\na,x\nb\n",
        ":3: 1 field, but the header has 2\nhint: quote fields that contain the separator, a quote or a newline",
    ),
    ("trailing comma", "a.csv", b"text,label,\na,x,\nb,y,\n", [("a", "x"), ("b", "y")]),
    (
        "unquoted comma",
        "a.csv",
        b"text,label\nso, glad,x\nb,y\n",
        ":2: 3 fields, but the header has 2\nhint: quote fields that contain the separator, a quote or a newline",
    ),
    (
        "no label column",
        "a.csv",
        b"text,id,more\na,1,2\nb,2,3\n",
        ": no column for the label is known by its name; the columns are text, id, more\nhint: use --label-column NAME; the first line of the file must contain the column names",
    ),
    (
        "semicolon csv",
        "a.csv",
        b"text;label\na;x\nb;y\n",
        [("a", "x"), ("b", "y")],
    ),
    (
        "tabs csv",
        "a.csv",
        b"text\tlabel\na\tx\nb\ty\n",
        [("a", "x"), ("b", "y")],
    ),
    (
        "commas tsv",
        "a.tsv",
        b"text,label\na,x\nb,y\n",
        [("a", "x"), ("b", "y")],
    ),
    (
        "sep line of excel",
        "a.csv",
        b"sep=,\ntext,label\na,x\nb,y\n",
        [("a", "x"), ("b", "y")],
    ),
    (
        "gzip csv",
        "a.csv",
        gzip.compress(PLAIN.encode(), mtime=0),
        ": the file is compressed with gzip\nhint: add .gz to its name, as in data.csv.gz",
    ),
    (
        "gzip txt",
        "a.txt",
        gzip.compress(b"a;x\n", mtime=0),
        ": the file is compressed with gzip\nhint: add .gz to its name, as in data.csv.gz",
    ),
    (
        "bzip2",
        "a.csv",
        bz2.compress(PLAIN.encode()),
        ": the file is compressed with bzip2\nhint: unpack it first, with bunzip2",
    ),
    (
        "xz",
        "a.csv",
        lzma.compress(PLAIN.encode()),
        ": the file is compressed with xz\nhint: unpack it first, with unxz",
    ),
    (
        "zstd",
        "a.csv",
        b"\x28\xb5\x2f\xfd" + b"\0" * 20,
        ": the file is compressed with zstd\nhint: unpack it first, with unzstd",
    ),
    (
        "xlsx csv",
        "a.csv",
        zipped(PLAIN),
        ": the file is a ZIP archive or a spreadsheet\nhint: unpack it, or give a spreadsheet the suffix .xlsx",
    ),
    ("parquet csv", "a.csv", GOOD, ": the file is Parquet\nhint: give it the suffix .parquet"),
    (
        "csv parquet",
        "a.parquet",
        PLAIN.encode(),
        ": cannot be read as Parquet: Parquet magic bytes not found in footer\nhint: write or copy the file again",
    ),
    (
        "gz suffix",
        "a.csv.gz",
        gzip.compress(PLAIN.encode(), mtime=0),
        [("so glad", "joy"), ("sò cross", "anger")],
    ),
    (
        "xlsx suffix",
        "a.xlsx",
        b"x",
        ": cannot be read as a spreadsheet: File is not a zip file\nhint: write or copy the file again, or save the sheet as CSV in UTF-8",
    ),
    (
        "no suffix",
        "data",
        b"x",
        ": the file name has no suffix\nhint: supported suffixes are .txt, .csv, .tsv, .jsonl, .ndjson, .json, .parquet, .arrow, .xlsx; the first six also with .gz",
    ),
    (
        "nul",
        "a.csv",
        b"text,label\na,x\nb\0c,y\n",
        ":3: the line contains a NUL byte\nhint: remove it; if the file is UTF-16: iconv -f UTF-16 -t UTF-8 OLD > NEW",
    ),
    (
        "nul txt",
        "a.txt",
        b"a;x\n\0;y\n",
        ":2: the line contains a NUL byte\nhint: remove it; if the file is UTF-16: iconv -f UTF-16 -t UTF-8 OLD > NEW",
    ),
    (
        "nul jsonl raw",
        "a.jsonl",
        b'{"text": "a", "label": "x"}\n\0\n',
        ":2: the line contains a NUL byte\nhint: remove it; if the file is UTF-16: iconv -f UTF-16 -t UTF-8 OLD > NEW",
    ),
    (
        "nul escaped",
        "a.jsonl",
        b'{"text": "a\\u0000b", "label": "x"}\n{"text": "b", "label": "y"}\n',
        ":1: the value contains a NUL (column 'text')\nhint: remove it",
    ),
    (
        "only nul",
        "a.csv",
        b"\0" * 100,
        ":1: the line contains a NUL byte\nhint: remove it; if the file is UTF-16: iconv -f UTF-16 -t UTF-8 OLD > NEW",
    ),
    (
        "zero bytes",
        "a.csv",
        b"",
        ": the file is empty\nhint: is this the right file, and is it complete?",
    ),
    (
        "zero bytes parquet",
        "a.parquet",
        b"",
        ": the file is empty\nhint: is this the right file, and is it complete?",
    ),
    (
        "blank",
        "a.csv",
        b"\n\n  \n",
        ": the file has no column names\nhint: put them in the first line, such as text,label",
    ),
    (
        "blank txt",
        "a.txt",
        b"\n \n",
        ": the file has no texts\nhint: is this the right file, and is it complete?",
    ),
    (
        "label ints",
        "a.jsonl",
        b'{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n',
        [("a", "0"), ("b", "1")],
    ),
    (
        "label floats",
        "a.jsonl",
        b'{"text": "a", "label": 0.0}\n{"text": "b", "label": 1.0}\n',
        [("a", "0"), ("b", "1")],
    ),
    (
        "label half",
        "a.jsonl",
        b'{"text": "a", "label": 0}\n{"text": "b", "label": 0.5}\n',
        ":2: the label is 0.5, neither a string nor an integer (column 'label')\nhint: for numbers, round them to a few classes, or use AutoModelForSequenceClassification of transformers with problem_type=\"regression\"",
    ),
    (
        "label bools",
        "a.jsonl",
        b'{"text": "a", "label": true}\n{"text": "b", "label": false}\n',
        [("a", "true"), ("b", "false")],
    ),
    (
        "label null",
        "a.jsonl",
        b'{"text": "a", "label": "x"}\n{"text": "b", "label": null}\n',
        ":2: the label is missing (column 'label')\nhint: add a label or remove the row; labels are strings, integers, true or false",
    ),
    (
        "label absent",
        "a.jsonl",
        b'{"text": "a", "label": "x"}\n{"text": "b"}\n',
        ":2: the label is missing (column 'label')\nhint: add a label or remove the row; labels are strings, integers, true or false",
    ),
    (
        "label NaN",
        "a.jsonl",
        b'{"text": "a", "label": NaN}\n',
        ":1: the label is nan, neither a string nor an integer (column 'label')\nhint: add a label or remove the row; labels are strings, integers, true or false",
    ),
    (
        "label list",
        "a.jsonl",
        b'{"text": "a", "label": ["x"]}\n',
        ":1: the label is a list: ['x'] (column 'label')\nhint: for texts with several labels: --task multi-label",
    ),
    (
        "label words",
        "a.csv",
        b"text,label\nnull,NA\nnan,None\nNone,nan\nNA,null\n",
        [("null", "NA"), ("nan", "None"), ("None", "nan"), ("NA", "null")],
    ),
    (
        "label empty",
        "a.csv",
        b"text,label\na,x\nb,\n",
        ":3: the label is empty (column 'label')\nhint: add a label or remove the line",
    ),
    (
        "label blank",
        "a.txt",
        b"a;x\nb; \n",
        ":2: the label is empty\nhint: add a label or remove the line",
    ),
    ("label padded", "a.csv", b"text,label\na, x\nb,y \n", [("a", "x"), ("b", "y")]),
    ("label case", "a.csv", b"text,label\na,Joy\nb,joy\n", [("a", "Joy"), ("b", "joy")]),
    (
        "label numbers csv",
        "a.csv",
        b"text,label\na,1\nb,01\nc,1.0\n",
        [("a", "1"), ("b", "01"), ("c", "1.0")],
    ),
    (
        "label control",
        "a.csv",
        b'text,label\na,x\nb,"y\nz"\n',
        ":3: the label 'y\\nz' contains a control character (column 'label')\nhint: is a quote left open, or is this the text column?",
    ),
    (
        "label escape",
        "a.jsonl",
        b'{"text": "a", "label": "\\u001b[31mx"}\n',
        ":1: the label '\\x1b[31mx' contains a control character (column 'label')\nhint: is a quote left open, or is this the text column?",
    ),
    (
        "label huge int",
        "a.jsonl",
        b'{"text": "a", "label": 1' + b"0" * 5000 + b"}\n",
        ':1: cannot be read as JSON: Exceeds the limit (4300 digits) for integer string conversion: value has 5001 digits\nhint: JSON Lines: one object per line, such as {"text": "...", "label": "..."}',
    ),
    (
        "one class",
        "a.csv",
        b"text,label\na,x\nb,x\n",
        ": only one class: every text has the label 'x'\nhint: a classifier needs texts with at least two labels",
    ),
    (
        "one row",
        "a.csv",
        b"text,label\na,x\n",
        ": only one class: every text has the label 'x'\nhint: a classifier needs texts with at least two labels",
    ),
    (
        "thousand classes",
        "a.csv",
        ("text,label\n" + "".join(f"text {i},class {i % 1000}\n" for i in range(2000))).encode(),
        [(f"text {i}", f"class {i % 1000}") for i in range(2000)],
    ),
    (
        "text empty",
        "a.csv",
        b"text,label\na,x\n,y\n",
        ":3: the text is empty (column 'text')\nhint: add a text, or remove the line",
    ),
    (
        "text empty quoted",
        "a.csv",
        b'text,label\na,x\n"",y\n',
        ":3: the text is empty (column 'text')\nhint: add a text, or remove the line",
    ),
    (
        "text blank",
        "a.csv",
        "text,label\na,x\n \t\u3000\u00a0,y\n".encode(),
        ":3: the text is empty (column 'text')\nhint: add a text, or remove the line",
    ),
    ("text zero width", "a.csv", "text,label\na,x\n\u200b,y\n".encode(), [("a", "x"), ("\u200b", "y")]),
    ("text megabyte", "a.csv", f"text,label\n{BIG},x\nb,y\n".encode(), [(BIG, "x"), ("b", "y")]),
    (
        "text megabyte jsonl",
        "a.jsonl",
        (json.dumps({"text": BIG, "label": "x"}) + '\n{"text": "b", "label": "y"}\n').encode(),
        [(BIG, "x"), ("b", "y")],
    ),
    (
        "text rtl",
        "a.csv",
        "text,label\nשלום عالم,x\n\u202eabc,y\n".encode(),
        [("שלום عالم", "x"), ("\u202eabc", "y")],
    ),
    (
        "text emoji",
        "a.csv",
        "text,label\n👩‍👩‍👧‍👦🏳️‍🌈,😀\nb,😡\n".encode(),
        [
            (
                "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466\U0001f3f3\ufe0f\u200d\U0001f308",
                "\U0001f600",
            ),
            ("b", "\U0001f621"),
        ],
    ),
    (
        "text combining",
        "a.csv",
        "text,label\ne\u0301,x\n\u00e9,y\n".encode(),
        [("e\u0301", "x"), ("\xe9", "y")],
    ),
    (
        "text surrogate",
        "a.jsonl",
        b'{"text": "a", "label": "x"}\n{"text": "b\\ud83d", "label": "y"}\n',
        ":2: the value contains \\ud83d, a lone surrogate (column 'text')\nhint: the text was cut inside a character: restore or remove that character",
    ),
    (
        "text pair",
        "a.jsonl",
        b'{"text": "\\ud83d\\ude00", "label": "x"}\n{"text": "b", "label": "y"}\n',
        [("😀", "x"), ("b", "y")],
    ),
    (
        "label surrogate",
        "a.jsonl",
        b'{"text": "a", "label": "\\udc00"}\n',
        ":1: the value contains \\udc00, a lone surrogate (column 'label')\nhint: the text was cut inside a character: restore or remove that character",
    ),
    (
        "column surrogate",
        "a.jsonl",
        b'{"text": "a", "label": "x", "\\ud800": 1}\n{"text": "b", "label": "y"}\n',
        [("a", "x"), ("b", "y")],
    ),
    (
        "raw surrogate",
        "a.csv",
        b"text,label\n\xed\xa0\x80,x\n",
        ":2: not UTF-8: byte 0xed at offset 11\nhint: if it is WINDOWS-1252: iconv -f WINDOWS-1252 -t UTF-8 a.csv > NEW",
    ),
    (
        "endoftext",
        "a.csv",
        b"text,label\n<|endoftext|>,x\n<|endoftext|> and <s>[PAD],y\n",
        [("<|endoftext|>", "x"), ("<|endoftext|> and <s>[PAD]", "y")],
    ),
    (
        "text number",
        "a.jsonl",
        b'{"text": 5, "label": "x"}\n',
        ":1: the text is of type int, not a string (column 'text')\nhint: add a text or remove the row; --text-column NAME selects the text column",
    ),
    (
        "text list",
        "a.jsonl",
        b'{"text": ["a"], "label": "x"}\n',
        ":1: the text is a list of words (column 'text')\nhint: rankwise trains classifiers: it labels whole texts, not words; for labels of words, use AutoModelForTokenClassification of transformers",
    ),
    (
        "text null",
        "a.jsonl",
        b'{"text": null, "label": "x"}\n',
        ":1: the text is missing (column 'text')\nhint: add a text or remove the row; --text-column NAME selects the text column",
    ),
    (
        "markup",
        "a.csv",
        b"text,label\n[b]bold[/b] <script>,[red]x\n=1+1,:smile:\n",
        [("[b]bold[/b] <script>", "[red]x"), ("=1+1", ":smile:")],
    ),
    (
        "json array",
        "a.json",
        b'[{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]\n',
        [("a", "x"), ("b", "y")],
    ),
    (
        "json pretty",
        "a.json",
        b'{\n  "text": "a",\n  "label": "x"\n}\n',
        ': one JSON object, not a list of them\nhint: an array holds objects, such as [{"text": "...", "label": "..."}]; JSON Lines: one object per line, such as {"text": "...", "label": "..."}',
    ),
    (
        "json cut",
        "a.jsonl",
        b'{"text": "a", "label": "x"}\n{"text": "b", "la',
        ':2: not JSON: Unterminated string starting at (column 15)\nhint: JSON Lines: one object per line, such as {"text": "...", "label": "..."}',
    ),
    (
        "json single quotes",
        "a.jsonl",
        b"{'text': 'a', 'label': 'x'}\n",
        ':1: not JSON: Expecting property name enclosed in double quotes (column 2)\nhint: JSON Lines: one object per line, such as {"text": "...", "label": "..."}',
    ),
    (
        "json twice",
        "a.jsonl",
        b'{"text": "a", "text": "b", "label": "x"}\n',
        ':1: cannot be read as JSON: an object has duplicate names\nhint: JSON Lines: one object per line, such as {"text": "...", "label": "..."}',
    ),
    (
        "json deep",
        "a.jsonl",
        b'{"text": "a", "label": "x", "more": ' + b"[" * 100_000 + b"\n",
        ':1: cannot be read as JSON: maximum recursion depth exceeded while decoding a JSON array from a unicode string\nhint: JSON Lines: one object per line, such as {"text": "...", "label": "..."}',
    ),
    (
        "json scalar",
        "a.jsonl",
        b'"a"\n',
        ':1: not a JSON object\nhint: JSON Lines: one object per line, such as {"text": "...", "label": "..."}',
    ),
    (
        "json empty lines",
        "a.jsonl",
        b'\n{"text": "a", "label": "x"}\n\n{"text": "b", "label": "y"}\n\n',
        [("a", "x"), ("b", "y")],
    ),
    (
        "json other columns",
        "a.jsonl",
        b'{"text": "a", "label": "x"}\n{"sentence": "b", "label": "y"}\n',
        ":2: the text is missing (column 'text')\nhint: add a text or remove the row; --text-column NAME selects the text column",
    ),
    ("txt", "a.txt", b"a; b;x\n c ;y\n", [("a; b", "x"), (" c ", "y")]),
    ("txt header", "a.txt", b"text;label\na;x\nb;y\n", [("a", "x"), ("b", "y")]),
    (
        "txt no semicolon",
        "a.txt",
        b"a;x\nb\n",
        ":2: no ';' between text and label\nhint: each line of a .txt file must be text;label",
    ),
    ("txt empty line", "a.txt", b"a;x\n\nb;y\n", ":2: the line is empty\nhint: remove the line"),
    (
        "txt label only",
        "a.txt",
        b"a;x\n;y\n",
        ":2: the text is empty\nhint: add a text, or remove the line",
    ),
    ("tsv", "a.TSV", b"text\tlabel\na, b\tx\nc\ty\n", [("a, b", "x"), ("c", "y")]),
    (
        "ndjson",
        "a.ndjson",
        b'{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n',
        [("a", "x"), ("b", "y")],
    ),
    ("parquet", "a.parquet", GOOD, [("a", "x"), ("b", "y")]),
    (
        "parquet cut",
        "a.parquet",
        GOOD[:-20],
        ": cannot be read as Parquet: Parquet magic bytes not found in footer\nhint: write or copy the file again",
    ),
    (
        "parquet head",
        "a.parquet",
        GOOD[:100],
        ": cannot be read as Parquet: Parquet magic bytes not found in footer\nhint: write or copy the file again",
    ),
    (
        "parquet footer",
        "a.parquet",
        GOOD[:-40] + b"\xff" * 32 + GOOD[-8:],
        ": cannot be read as Parquet: Couldn't deserialize thrift\nhint: write or copy the file again",
    ),
    (
        "parquet pages",
        "a.parquet",
        GOOD[:4] + b"\xff" * 60 + GOOD[64:],
        ": row 1: this row or a later one cannot be read: Couldn't deserialize thrift\nhint: write or copy the file again",
    ),
    (
        "parquet large strings",
        "a.parquet",
        parquet(
            {
                "text": pa.array(["a", "b"], pa.large_string()),
                "label": pa.array(["x", "y"]).dictionary_encode(),
            }
        ),
        [("a", "x"), ("b", "y")],
    ),
    (
        "parquet bytes",
        "a.parquet",
        parquet({"text": [b"a", b"b"], "label": ["x", "y"]}),
        ": row 1: the text is of type bytes, not a string (column 'text')\nhint: add a text or remove the row; --text-column NAME selects the text column",
    ),
    (
        "parquet not utf8",
        "a.parquet",
        parquet({"text": NOT_UTF8, "label": ["x", "y"]}),
        ": row 1: a string in this row or a later one is not UTF-8\nhint: write or copy the file again",
    ),
    (
        "parquet null text",
        "a.parquet",
        parquet({"text": ["a", None], "label": ["x", "y"]}),
        ": row 2: the text is missing (column 'text')\nhint: add a text or remove the row; --text-column NAME selects the text column",
    ),
    (
        "parquet null label",
        "a.parquet",
        parquet({"text": ["a", "b"], "label": [1, None]}),
        ": row 2: the label is missing (column 'label')\nhint: add a label or remove the row; labels are strings, integers, true or false",
    ),
    (
        "parquet float label",
        "a.parquet",
        parquet({"text": ["a", "b"], "label": [1.0, 2.0]}),
        [("a", "1"), ("b", "2")],
    ),
    (
        "parquet nan label",
        "a.parquet",
        parquet({"text": ["a", "b"], "label": [1.0, float("nan")]}),
        ": row 2: the label is nan, neither a string nor an integer (column 'label')\nhint: add a label or remove the row; labels are strings, integers, true or false",
    ),
    (
        "parquet bool",
        "a.parquet",
        parquet({"text": ["a", "b"], "label": [True, False]}),
        [("a", "true"), ("b", "false")],
    ),
    (
        "parquet date",
        "a.parquet",
        parquet({"text": ["a", "b"], "label": [date(2026, 1, 1), date(2026, 1, 2)]}),
        ": row 1: the label is datetime.date(2026, 1, 1), neither a string nor an integer (column 'label')\nhint: add a label or remove the row; labels are strings, integers, true or false",
    ),
    (
        "parquet decimal",
        "a.parquet",
        parquet({"text": ["a", "b"], "label": [Decimal("1"), Decimal("2")]}),
        ": row 1: the label is Decimal('1'), neither a string nor an integer (column 'label')\nhint: add a label or remove the row; labels are strings, integers, true or false",
    ),
    (
        "parquet year 300000",
        "a.parquet",
        parquet({"text": ["a", "b"], "label": ["x", "y"], "when": pa.array([2**62, 0], pa.timestamp("us"))}),
        ": row 1: this row or a later one cannot be read: date value out of range\nhint: write or copy the file again",
    ),
    (
        "parquet no rows",
        "a.parquet",
        parquet({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}),
        ": the file has no texts\nhint: is this the right file, and is it complete?",
    ),
    (
        "parquet no columns",
        "a.parquet",
        parquet({}),
        ": the file has no column names\nhint: is this the right file, and is it complete?",
    ),
    (
        "parquet twice",
        "a.parquet",
        TWICE,
        ": the column 'text' appears twice in the header\nhint: give each column a unique name",
    ),
    ("classes", "a.parquet", classes(["neg", "pos"], [1, 0]), [("t0", "pos"), ("t1", "neg")]),
    (
        "classes out of range",
        "a.parquet",
        classes(["neg", "pos"], [1, 2]),
        ": row 2: the label 2 is outside 0 to 1 (column 'label')\nhint: labels must be indices into the dataset's class names; -1 marks an unlabeled row",
    ),
    (
        "classes unlabeled",
        "a.parquet",
        classes(["neg", "pos"], [-1, -1]),
        ": row 1: the label -1 is outside 0 to 1 (column 'label')\nhint: labels must be indices into the dataset's class names; -1 marks an unlabeled row",
    ),
    ("gzip txt gz", "a.txt.gz", gzip.compress(b"a;x\nb;y\n", mtime=0), [("a", "x"), ("b", "y")]),
    (
        "gzip cut",
        "a.csv.gz",
        gzip.compress(PLAIN.encode(), mtime=0)[:-9],
        ": the file cannot be unpacked with gzip: Compressed file ended before the end-of-stream marker was reached\nhint: write or copy the file again; if it is not compressed, rename it",
    ),
    (
        "not gzip",
        "a.csv.gz",
        PLAIN.encode(),
        ": the file cannot be unpacked with gzip: Not a gzipped file (b'te')\nhint: write or copy the file again; if it is not compressed, rename it",
    ),
    ("pipes csv", "a.csv", b"text|label\na|x\nb|y\n", [("a", "x"), ("b", "y")]),
    ("padded csv", "a.csv", b"text,label,,\na,x,,\nb,y,,\n,,,\n,,,\n", [("a", "x"), ("b", "y")]),
    (
        "value without name",
        "a.csv",
        b"text,label,\na,x,\nb,y,z\n",
        ":3: column 3 has the value 'z', but no name in the header\nhint: name the column in the first line, or remove it",
    ),
    (
        "two texts",
        "a.csv",
        b"title,content,label\na,b,x\nc,d,y\n",
        ": 2 columns could be the text: content, title\nhint: choose one: --text-column content",
    ),
    (
        "quotes that do not quote",
        "a.tsv",
        b'text\tlabel\n"so glad\tx\nso cross\ty\nmerry "\tx\n',
        [('"so glad', "x"), ("so cross", "y"), ('merry "', "x")],
    ),
    ("fasttext", "a.txt", b"__label__x a; b\n__label__y c\n", [("a; b", "x"), ("c", "y")]),
    (
        "fasttext labels",
        "a.txt",
        b"__label__x a\n__label__x __label__y b\n",
        ":2: the label is a list: ['x', 'y']\nhint: for texts with several labels: --task multi-label",
    ),
    (
        "json in a list",
        "a.json",
        b'{"data": [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]}',
        [("a", "x"), ("b", "y")],
    ),
    (
        "json array item",
        "a.json",
        b'[{"text": "a", "label": "x"}, {"text": "b"}]',
        ": row 2: the label is missing (column 'label')\nhint: add a label or remove the row; labels are strings, integers, true or false",
    ),
    (
        "old excel",
        "a.xls",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        ": the file is an old Excel file, or one with a password\nhint: save it as .xlsx without a password",
    ),
    (
        "whole numbers",
        "a.csv",
        b"text,label\na,0\nb,1\nc,2\nd,1\n",
        [("a", "0"), ("b", "1"), ("c", "2"), ("d", "1")],
    ),
]
