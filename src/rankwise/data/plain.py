"""Text files: `text;label` lines, fastText lines, or one text per line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain, islice
from typing import BinaryIO

from rankwise.data.lines import filled_lines, text_lines
from rankwise.data.tables import NumberedRows, Origin, Table

FASTTEXT = re.compile(r"__label__\S|.*\s__label__\S+\s*$")
FASTTEXT_LABEL = re.compile(r"(?:(?<=\s)|^)__label__(\S+)\s?")


def read_plain(origin: Origin, file: BinaryIO) -> Table:
    """One text per line, in the column `text`."""
    lines = filled_lines(origin, text_lines(origin, file, "\n"), keep_empty=True)
    return Table(origin, ["text"], ((number, {"text": line}) for number, line in lines))


def read_pairs(origin: Origin, file: BinaryIO) -> Table:
    """Columns `text` and `label`: fastText lines if the first line is one, else `text;label` lines."""
    lines = filled_lines(origin, text_lines(origin, file, "\n"))
    first = list(islice(lines, 1))
    in_fasttext = bool(first) and is_fasttext(first[0][1])
    rows = _fasttext(origin, chain(first, lines)) if in_fasttext else _pairs(origin, chain(first, lines))
    notes = [origin.note("read as fastText lines")] if in_fasttext else []
    return Table(origin, ["text", "label"], rows, notes=notes)


def is_fasttext(line: str) -> bool:
    """Whether a line begins or ends with a fastText label.

    >>> is_fasttext("__label__joy so glad"), is_fasttext("so glad __label__joy"), is_fasttext("so glad;joy")
    (True, True, False)
    """
    return FASTTEXT.match(line) is not None


def split_fasttext(line: str) -> tuple[str, list[str]]:
    """(text, labels) of a fastText line.

    >>> split_fasttext("__label__joy so glad; today")
    ('so glad; today', ['joy'])
    """
    return FASTTEXT_LABEL.sub("", line).strip(), FASTTEXT_LABEL.findall(line)


def _pairs(origin: Origin, lines: Iterable[tuple[int, str]]) -> NumberedRows:
    """Lines split at the last semicolon, skipping the optional header `text;label`."""
    for number, line in lines:
        text, semicolon, label = line.rpartition(";")
        if not semicolon:
            hint = "each line of a .txt file must be text;label"
            raise origin.error("no ';' between text and label", number, hint=hint)
        if number > 1 or (text.strip().lower(), label.strip().lower()) != ("text", "label"):
            yield number, {"text": text, "label": label}


def _fasttext(origin: Origin, lines: Iterable[tuple[int, str]]) -> NumberedRows:
    for number, line in lines:
        text, labels = split_fasttext(line)
        if not labels:
            hint = "the first line is in fastText's format, so each line needs a __label__NAME"
            raise origin.error("no __label__ in the line", number, hint=hint)
        yield number, {"text": text, "label": labels if len(labels) > 1 else labels[0]}
