"""Texts as classifiers take them: checked, and with their token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rankwise.errors import DataError, UsageError
from rankwise.nn.batch import Ids

Texts = Iterable[str | Sequence[str]]
"""Strings; for an adapter of pairs, lists of two strings, or both joined by a line break."""


@dataclass(frozen=True)
class LongTexts:
    """How texts longer than an adapter's maximum length were read."""

    cut: int = 0  # texts of which only a part was read
    windowed: int = 0  # texts that were read in windows, also in part
    windows: int = 0  # their windows

    def __add__(self, other: LongTexts) -> LongTexts:
        """The sum over two lists of texts."""
        return LongTexts(self.cut + other.cut, self.windowed + other.windowed, self.windows + other.windows)


class EncodedTexts(list[str]):
    """Texts with their token ids, which a classifier then does not compute again.

    Args:
        texts: the texts.
        ids: token ids of each text, or of its first window, (length,) int64.
        long: how long texts are read.
        further: index of a text that is read in windows -> token ids of its other windows.
    """

    def __init__(
        self,
        texts: Iterable[str],
        ids: Sequence[Ids],
        long: LongTexts,
        further: Mapping[int, Sequence[Ids]] | None = None,
    ) -> None:
        super().__init__(texts)
        self.ids, self.long, self.further = ids, long, further or {}


def listed(texts: Iterable[object]) -> list[str]:
    """The texts as a list of plain strings, checked."""
    if isinstance(texts, str | bytes):
        raise UsageError("give a list of texts, not one string", hint="classifier([text])")
    if _is_table(texts):
        raise UsageError("give the texts of one column, not a table", hint='classifier(table["text"])')
    if not isinstance(texts, Iterable):
        raise UsageError(f"give a list of texts, not {type(texts).__name__}", hint="classifier([text])")
    return [_checked(number, text) for number, text in enumerate(texts, 1)]


def _is_table(texts: object) -> bool:
    """Whether it is a mapping of columns, a DataFrame, a dataset or an array of several dimensions."""
    named = hasattr(texts, "columns") or hasattr(texts, "column_names")
    return isinstance(texts, Mapping) or named or getattr(texts, "ndim", 1) != 1


def _checked(number: int, text: object) -> str:
    """A text as a plain string. Raises DataError if it is missing, empty or something else."""
    if isinstance(text, str):
        if not text.strip():
            raise DataError(f"text {number} is empty", hint="remove it, or give it some text")
        return str(text)
    missing = text is None or type(text).__name__ in ("NAType", "NaTType") or text != text
    what = "missing" if missing else f"of type {type(text).__name__}, not a string"
    raise DataError(f"text {number} is {what}", hint="remove it, or give it some text")
