"""Parquet and Arrow files, read in batches."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

from rankwise.data.delimited import check_header
from rankwise.data.tables import AGAIN, BATCH_ROWS, NumberedRows, Origin, Table, first_line


def read_parquet(origin: Origin, file: BinaryIO) -> Table:
    """A Parquet file."""
    from pyarrow.parquet import ParquetFile

    with _errors(origin, "cannot be read as Parquet"):
        source = ParquetFile(file)
    return _table(origin, source.schema_arrow, source.iter_batches(batch_size=BATCH_ROWS))


def read_arrow(origin: Origin, file: BinaryIO) -> Table:
    """An Arrow file: IPC file format (Feather version 2), or the stream format of the datasets library."""
    from pyarrow import ArrowInvalid, ipc

    with _errors(origin, "cannot be read as Arrow"):
        try:
            source = ipc.open_file(file)
            batches = (source.get_batch(at) for at in range(source.num_record_batches))
        except ArrowInvalid:
            file.seek(0)
            source = ipc.open_stream(file)
            batches = iter(source)
    return _table(origin, source.schema, (part for batch in batches for part in _parts(batch)))


def _parts(batch: Any) -> Iterator[Any]:
    """A record batch in pieces of at most BATCH_ROWS rows."""
    return (batch.slice(start, BATCH_ROWS) for start in range(0, batch.num_rows, BATCH_ROWS))


def _table(origin: Origin, schema: Any, batches: Iterable[Any]) -> Table:
    check_header(origin, list(schema.names), None)
    return Table(origin, list(schema.names), _rows(origin, batches), class_names(schema.metadata or {}))


def _rows(origin: Origin, batches: Iterable[Any]) -> NumberedRows:
    done, source = 0, iter(batches)
    while True:
        with _errors(origin, "this row or a later one cannot be read", done + 1):
            batch = next(source, None)
            rows = [] if batch is None else batch.to_pylist()
        if batch is None:
            return
        yield from enumerate(rows, done + 1)
        done += len(rows)


@contextmanager
def _errors(origin: Origin, what: str, number: int | None = None) -> Iterator[None]:
    """Turn pyarrow's errors (a damaged file, a value out of Python's range) into DataErrors."""
    from pyarrow import ArrowException

    try:
        yield
    except UnicodeDecodeError:
        what = "a string in this row or a later one is not UTF-8"
        raise origin.error(what, number, hint=AGAIN) from None
    except (ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        why = re.split(r"[:.] ", first_line(error))[0]  # the rest is raw bytes or advice
        raise origin.error(f"{what}: {why}", number, hint=AGAIN) from None


def class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Column -> ClassLabel names, from the metadata that the datasets library writes to its files.

    A column of lists has the names of their elements.
    """
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        elements = {column: feature.get("feature", feature) for column, feature in features.items()}
        return {
            column: [str(name) for name in element["names"]]
            for column, element in elements.items()
            if element.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}  # no metadata, or an unknown layout: use the labels as stored
