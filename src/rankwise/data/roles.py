"""What each row is for: the column `split`, and columns of other names that say the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rankwise.data.names import SPLIT_COLUMN, SPLIT_VALUES, key
from rankwise.data.tables import Origin, Row, short

VALUES = "it says what a row is for: train, validation (or val, valid, dev) or test; rename other columns"
FLAGS = {f"is{name}": split for name, split in SPLIT_VALUES.items()}
"""Column that marks the rows of a split, such as is_test, as `names.key` gives it -> split."""
MARKS = {"1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False, "": False}
MOST_VALUES = 50
"""A column with more distinct values is about something else."""


class Roles:
    """Columns besides the text and the label that may say what each row is for.

    A column `split` divides the rows. A column of another name that says the same is refused, because its
    test rows would be trained on. It is one in which at least half of the values name splits, or one such as
    is_test.
    """

    def __init__(
        self,
        origin: Origin,
        columns: Sequence[str],
        classes: Mapping[str, Sequence[str]],
        used: Iterable[str],
    ) -> None:
        self._origin, self._classes = origin, classes
        others = [column for column in columns if column not in set(used)]
        found = [column for column in others if key(column) == SPLIT_COLUMN]
        self.column = found[0] if len(found) == 1 else None
        """The column `split`, if there is one."""
        self._counts: dict[str, Counter[Any]] = {} if self.column else {each: Counter() for each in others}

    def add(self, number: int, row: Row) -> str | None:
        """The split of the next row; None without a column `split`.

        Raises:
            DataError: the column `split` has another value.
        """
        if self.column is not None:
            return self._split_of(number, row.get(self.column))
        self._counts = {
            each: counts for each, counts in self._counts.items() if _counted(row.get(each), counts)
        }
        return None

    def check(self) -> None:
        """Raise a DataError if a column of another name says what each row is for."""
        for column, counts in self._counts.items():
            self._refuse_names(column, counts)
            self._refuse_marks(column, counts)

    def _refuse_names(self, column: str, counts: Counter[Any]) -> None:
        """Raise a DataError if at least half of the values name splits, and not all the same one."""
        names = self._classes.get(column, ())
        named = {value: split for value in counts if (split := _named(value, names))}
        splits, rows = sorted(set(named.values())), sum(map(counts.__getitem__, named))
        if len(splits) < 2 or 2 * rows < counts.total():
            return
        which = "every row names" if rows == counts.total() else f"{rows:,} of {counts.total():,} rows name"
        hint = "rename it to split to use it, or remove it"
        if rows < counts.total():
            hint += "; the other rows need a split, too"
        raise self._origin.error(f"{which} a split: {', '.join(splits)}", column=column, hint=hint)

    def _refuse_marks(self, column: str, counts: Counter[Any]) -> None:
        """Raise a DataError if a column such as is_test marks some of the rows."""
        split = FLAGS.get(key(column))
        marks = {value: MARKS.get("" if value is None else str(value).strip().lower()) for value in counts}
        if split is None or set(marks.values()) != {True, False}:
            return
        rows = sum(counts[value] for value, mark in marks.items() if mark)
        what = f"{rows:,} of {counts.total():,} rows are marked as {split}"
        hint = "name the split of each row in a column split (train, validation or test), or remove it"
        raise self._origin.error(what, column=column, hint=hint)

    def _split_of(self, number: int, value: object) -> str:
        assert self.column is not None
        split = _named(value, self._classes.get(self.column, ()))
        if split is None:
            raise self._origin.error(f"unknown split {short(value)}", number, column=self.column, hint=VALUES)
        return split


def _counted(value: object, counts: Counter[Any]) -> bool:
    """Whether a value and the ones before may be those of a column of splits or marks."""
    if not isinstance(value, str | int | float | None):
        return False
    counts[value] += 1
    return len(counts) <= MOST_VALUES


def _named(value: object, names: Sequence[str]) -> str | None:
    """The split that a value names, which may be an index into class names; None for any other value.

    >>> _named(" Dev", ()), _named(1, ["train", "test"]), _named("left", ())
    ('validation', 'test', None)
    """
    if names and isinstance(value, int) and 0 <= value < len(names):
        value = names[value]
    return SPLIT_VALUES.get(value.strip().lower()) if isinstance(value, str) else None
