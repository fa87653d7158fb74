"""Data in memory, which a recipe accepts wherever it accepts a path.

A recipe only holds the object; `data.memory` reads it. pandas, polars and datasets are not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankwise.errors import UsageError

KINDS = (
    "a pandas or polars DataFrame, a Dataset or DatasetDict, a pair (texts, labels), a mapping of columns, "
    "or a mapping of splits"
)
"""What can be given instead of a path."""


class InMemory:
    """Texts and labels that are in memory instead of in a file.

    Two are equal if they hold the same object.

    Raises:
        UsageError: the value is not data in memory.
    """

    def __init__(self, value: Any) -> None:
        if not is_table(value):
            raise UsageError(f"data in memory must be {KINDS}, not {type(value).__name__}")
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InMemory) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return f"<{type(self.value).__name__} in memory>"


def is_table(value: Any) -> bool:
    """Whether a value is data in memory, by its form.

    >>> is_table((["so glad"], ["joy"])), is_table({"text": ["so glad"], "label": ["joy"]})
    (True, True)
    >>> is_table("reviews.csv"), is_table({"source": "reviews.csv"})
    (False, False)
    """
    if isinstance(value, Mapping):
        return bool(value) and not any(map(_is_single, value.values()))
    if isinstance(value, tuple | list):
        return len(value) == 2 and not any(map(_is_single, value))
    return hasattr(value, "__getitem__") and (hasattr(value, "columns") or hasattr(value, "column_names"))


def _is_single(value: Any) -> bool:
    """Whether a value is one string, number or the like, rather than a column or a table."""
    return isinstance(value, str | bytes) or not hasattr(value, "__getitem__")
