"""What each row is for: the column `split`, and columns of other names that say the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rankwise.data.names import SPLIT_COLUMN, SPLIT_VALUES, key
from rankwise.data.tables import Origin, Row, short

VALUES = "it says what a row is for: train, validation (or val, valid, dev) or test; rename other columns"


class Roles:
    """Columns besides the text and the label that may say what each row is for.

    A column `split` divides the rows. A column of another name with the same values is refused, because its
    test rows would be trained on.
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
        self._seen: dict[str, set[str]] = {} if self.column else {each: set() for each in others}

    def add(self, number: int, row: Row) -> str | None:
        """The split of the next row; None without a column `split`.

        Raises:
            DataError: the column `split` has another value.
        """
        if self.column is not None:
            return self._split_of(number, row.get(self.column))
        self._seen = {
            each: seen for each, seen in self._seen.items() if self._names(row.get(each), each, seen)
        }
        return None

    def check(self) -> None:
        """Raise a DataError if a column of another name says what each row is for."""
        for column, seen in self._seen.items():
            if len(seen) > 1:
                hint = "rename it to split to use it, or remove it"
                raise self._origin.error(
                    f"every row names a split: {', '.join(sorted(seen))}", column=column, hint=hint
                )

    def _split_of(self, number: int, value: object) -> str:
        assert self.column is not None
        split = _named(value, self._classes.get(self.column, ()))
        if split is None:
            raise self._origin.error(f"unknown split {short(value)}", number, column=self.column, hint=VALUES)
        return split

    def _names(self, value: object, column: str, seen: set[str]) -> bool:
        """Whether a value is the name of a split, which is added to those seen."""
        split = _named(value, self._classes.get(column, ()))
        seen.update([split] if split else [])
        return split is not None


def _named(value: object, names: Sequence[str]) -> str | None:
    """The split that a value names, which may be an index into class names; None for any other value.

    >>> _named(" Dev", ()), _named(1, ["train", "test"]), _named("left", ())
    ('validation', 'test', None)
    """
    if names and isinstance(value, int) and 0 <= value < len(names):
        value = names[value]
    return SPLIT_VALUES.get(value.strip().lower()) if isinstance(value, str) else None
