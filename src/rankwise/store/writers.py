"""Rows -> a file of any known format, written as they come."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from rankwise.errors import UsageError
from rankwise.store import files

Row = Mapping[str, Any]
WriteRows = Callable[[Sequence[Row]], None]


@contextmanager
def write_rows(path: Path) -> Iterator[WriteRows]:
    """A function that writes batches of rows; the file is put in place at the end.

    All rows must have the columns of the first.

    Raises:
        UsageError: the suffix is none of .csv, .tsv, .jsonl and .parquet.
    """
    match path.suffix.lower():
        case ".csv" | ".tsv" as suffix:
            with files.writing(path) as text:
                yield _csv_writer(text, "," if suffix == ".csv" else "\t")
        case ".jsonl" | ".ndjson":
            with files.writing(path) as text:
                yield lambda rows: text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        case ".parquet":
            with files.writing(path, binary=True) as binary, _parquet_writer(binary) as write:
                yield write
        case other:
            raise UsageError(
                f"{path}: cannot write {other or 'a file without suffix'}",
                hint="use .csv, .tsv, .jsonl or .parquet",
            )


def _csv_writer(file: TextIO, delimiter: str) -> WriteRows:
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    columns: list[str] = []

    def write(rows: Sequence[Row]) -> None:
        if not columns and rows:
            columns.extend(rows[0])
            writer.writerow(columns)
        writer.writerows([row.get(column) for column in columns] for row in rows)

    return write


@contextmanager
def _parquet_writer(file: BinaryIO) -> Iterator[WriteRows]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    opened: list[Any] = []

    def write(rows: Sequence[Row]) -> None:
        table = pa.Table.from_pylist(list(rows), schema=opened[0].schema if opened else None)
        if not opened:
            opened.append(pq.ParquetWriter(file, table.schema))
        opened[0].write_table(table)

    try:
        yield write
    finally:
        for writer in opened:
            writer.close()
