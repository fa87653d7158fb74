"""Data in memory as rows: DataFrames, datasets, and lists; and rows as Parquet.

All of these give their columns by `value[name]`. pandas, polars and datasets are not imported.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from rankwise.data.columns import LabeledRows, Wanted, collect, text_and_label, without_labels
from rankwise.data.names import SPLIT_NAMES
from rankwise.data.pairs import paired, with_pairs
from rankwise.data.roles import Roles
from rankwise.data.tables import Origin, Table, listed
from rankwise.in_memory import InMemory, is_table
from rankwise.store import files

PAIR = ("text", "label")
"""Names of the columns of a pair (texts, labels), and of stored files."""
HEAD = 9
"""Values of a column by which it is known whether they are single values."""


def from_memory(data: InMemory, wanted: Wanted, notes: list[str]) -> dict[str, list[LabeledRows]]:
    """Split -> its rows. A mapping of splits has train, and may have validation and test.

    Raises:
        DataError: there is no train split, or a column, text or label cannot be used.
    """
    parts: dict[str, list[LabeledRows]] = {}
    for name, key in _splits(data.value).items():
        table, title = (data.value, "data") if key is None else (data.value[key], f"data[{key!r}]")
        optional = name == "test"
        if optional and (none := without_labels(Origin(title), _names(table), wanted, parts["train"][0])):
            notes += none
        else:
            parts[name] = [read_table(table, title, wanted, optional=optional)]
    return parts


def read_table(table: Any, title: str, wanted: Wanted, *, optional: bool = False) -> LabeledRows:
    """The validated rows of one table. In messages, rows are numbered from 1. Labels may be `optional`.

    Raises:
        DataError: a column, text or label cannot be used.
    """
    origin = Origin(title, in_rows=True)
    text, label = _named(origin, table, wanted)
    read = wanted.pair if text not in _keys(table) and wanted.pair else (text,)
    values = {name: _values(origin, table, name) for name in (*read, label)}
    texts, labels = len(values[read[0]]), len(values[label])
    if texts != labels:
        raise origin.error(f"{texts:,} texts, but {labels:,} labels")
    if not texts:
        raise origin.error("there are no texts")
    values |= _others(origin, table, [text, *values], texts)
    rows = enumerate((dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)), 1)
    found = Table(origin, _names(table), rows, {name: _classes(table, name) for name in values})
    return collect(with_pairs(found, wanted.pair), text, label, wanted.task, optional=optional)


def write_table(path: Path, parts: Sequence[LabeledRows], text: str = PAIR[0]) -> None:
    """Write the texts and labels of a split to a Parquet file, with the declared order of the labels.

    The order is stored as the datasets library stores that of a ClassLabel.

    Args:
        path: the file.
        parts: the rows of the split.
        text: name of the text column.
    """
    import pyarrow as pa
    from pyarrow import parquet

    texts = list(chain.from_iterable(part.texts for part in parts))
    labels = list(chain.from_iterable(part.labels for part in parts))
    several = any(isinstance(label, tuple) for label in labels)
    kind = pa.list_(pa.large_string()) if several else pa.large_string()
    columns = (pa.array(texts, pa.large_string()), pa.array(labels, kind))
    table = pa.table(dict(zip((text, PAIR[1]), columns, strict=True)))
    if classes := next((list(part.classes) for part in parts if part.classes), None):
        feature: dict[str, Any] = {"names": classes, "_type": "ClassLabel"}
        feature = {"feature": feature, "_type": "List"} if several else feature
        info = {"info": {"features": {PAIR[1]: feature}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    sink = pa.BufferOutputStream()
    with parquet.ParquetWriter(sink, table.schema) as writer:
        writer.write_table(table)
    files.write_bytes(path, sink.getvalue().to_pybytes())


def _splits(value: Any) -> dict[str, Any]:
    """Split -> its key in a mapping of splits; for a single table, train -> None."""
    if not isinstance(value, Mapping) or not all(map(is_table, value.values())):
        return {"train": None}
    found = {
        name: key
        for name, keys in SPLIT_NAMES.items()
        if (key := next(filter(value.__contains__, keys), None))
    }
    if "train" not in found:
        raise Origin("data").error(f"no split 'train'; it has {listed([str(key) for key in value])}")
    return found


def _keys(table: Any) -> dict[str, Hashable]:
    """Column name -> what `table[...]` takes for it."""
    pair = isinstance(table, tuple | list)
    return dict(zip(PAIR, (0, 1), strict=True)) if pair else {str(name): name for name in _columns(table)}


def _names(table: Any) -> list[str]:
    """The names of all columns, in order; a name may occur twice."""
    return list(PAIR) if isinstance(table, tuple | list) else list(map(str, _columns(table)))


def _columns(table: Any) -> Iterable[Hashable]:
    names: Any = table.keys() if isinstance(table, Mapping) else getattr(table, "column_names", None)
    found: Iterable[Hashable] = table.columns if names is None else names
    return found


def _named(origin: Origin, table: Any, wanted: Wanted) -> tuple[str, str]:
    """(text column, label column)."""
    return text_and_label(origin, paired(origin, list(_keys(table)), wanted.pair), wanted.text, wanted.label)


def _others(origin: Origin, table: Any, used: Sequence[str], rows: int) -> dict[str, list[Any]]:
    """The other columns that may say what each row is for: those of single values, one for each row.

    Raises:
        DataError: the column `split` has values for more or fewer rows.
    """
    by_split = Roles(origin, _names(table), {}, used).column
    others = {}
    for name in _keys(table):
        if name not in used and _is_single_valued(_column(table, name)):
            others[name] = _values(origin, table, name)
    if by_split in others and len(others[by_split]) != rows:
        raise origin.error(f"{rows:,} texts, but {len(others[by_split]):,} values", column=by_split)
    return {name: values for name, values in others.items() if len(values) == rows}


def _is_single_valued(column: Any) -> bool:
    """Whether a column begins with strings, numbers and the like instead of lists, images or tables."""
    if hasattr(column, "columns") or getattr(column, "ndim", 1) != 1:
        return False
    head = _as_list(getattr(column, "iloc", column)[:HEAD])
    return all(isinstance(_plain(value), str | int | float | None) for value in head)


def _column(table: Any, name: str) -> Any:
    plain = table.with_format(None) if hasattr(table, "with_format") else table  # a Dataset may give tensors
    return plain[_keys(table)[name]]


def _values(origin: Origin, table: Any, name: str) -> list[Any]:
    """A column as Python values; missing values are None."""
    column = _column(table, name)
    if hasattr(column, "columns"):  # pandas, of columns with the same name
        raise origin.error("two columns have the same name", column=name)
    return [_plain(value) for value in _as_list(column)]


def _as_list(column: Any) -> list[Any]:
    if hasattr(column, "notna"):  # pandas: pd.NA, NaT and NaN become None
        column = column.astype(object).where(column.notna(), None)
    for method in ("to_pylist", "to_list", "tolist"):
        if hasattr(column, method):
            values: list[Any] = getattr(column, method)()
            return values
    return list(column)


def _plain(value: Any) -> Any:
    """A NumPy scalar or array as a Python value; NaN as None."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return None if isinstance(value, float) and value != value else value


def _classes(table: Any, label: str) -> Sequence[str]:
    """The names of a ClassLabel of the datasets library; empty for other columns."""
    features = getattr(table, "features", None)
    return class_names_of(features.get(label)) if isinstance(features, Mapping) else ()


def class_names_of(feature: Any) -> Sequence[str]:
    """The names of a ClassLabel of the datasets library, or of lists of them; empty for other features."""
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return names or ()


def is_single(feature: Any) -> bool:
    """Whether a column of the datasets library has single values instead of lists, images or the like.

    Such a column may say what each row is for, so it is read although it is neither the text nor the label.
    """
    kind = str(getattr(feature, "dtype", ""))
    return type(feature).__name__ in ("Value", "ClassLabel") and "binary" not in kind
