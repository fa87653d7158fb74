"""Text files: `text;label` lines, fastText lines, or one text per line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import BinaryIO

from rankwise.data.lines import filled_lines, text_lines
from rankwise.data.tables import NumberedRows, Origin, Table

FASTTEXT = re.compile(r"__label__\S|.*\s__label__\S+\s*$")
FASTTEXT_LABEL = re.compile(r"(?:(?<=\s)|^)__label__(\S+)\s?")

PREFIXED = re.compile(r"(__[a-zA-Z]+__)(?=\w)|.*\s(__[a-zA-Z]+__)\w[^\s;]*\s*$")
"""A line with a label as in fastText, whatever the prefix."""
JSON = re.compile(r'\[?\s*\{\s*"[^"]*"\s*:.*\}\s*[],]?', re.DOTALL)
HEAD_LINES = 1000
"""Lines by which the format is checked."""
LABEL_FIRST = 10
"""Fewest lines that can show that labels come first."""
LARGE = 4
"""How many times as many ends as beginnings lines then have."""


def read_plain(origin: Origin, file: BinaryIO) -> Table:
    """One text per line, in the column `text`."""
    lines = filled_lines(origin, text_lines(origin, file, "\n"), keep_empty=True)
    return Table(origin, ["text"], ((number, {"text": line}) for number, line in lines))


def read_pairs(origin: Origin, file: BinaryIO) -> Table:
    """Columns `text` and `label`: fastText lines if the first line is one, else `text;label` lines.

    Raises:
        DataError: the first lines are clearly of another format, or have the label first.
    """
    lines = filled_lines(origin, text_lines(origin, file, "\n"))
    first = list(islice(lines, HEAD_LINES))
    in_fasttext = bool(first) and is_fasttext(first[0][1])
    if not in_fasttext:
        _refuse_fasttext(origin, [line for _, line in first])
        _refuse_label_first(origin, [line for _, line in first])
    rows = _fasttext(origin, chain(first, lines)) if in_fasttext else _pairs(origin, chain(first, lines))
    notes = [origin.note("read as fastText lines")] if in_fasttext else []
    return Table(origin, ["text", "label"], rows, notes=notes)


def _refuse_fasttext(origin: Origin, lines: Sequence[str]) -> None:
    """Raise a DataError if most lines have a fastText label, which may have another prefix."""
    found = Counter(match[1] or match[2] for line in lines if (match := PREFIXED.match(line)))
    prefix, count = next(iter(found.most_common(1)), ("", 0))
    if 2 * count <= len(lines):
        return
    if prefix == "__label__":
        hint = "remove the lines before the first one with a __label__"
        raise origin.error("not a fastText line, but most lines are", 1, hint=hint)
    what = f"the labels begin with {prefix} instead of __label__"
    raise origin.error(what, hint=f"replace {prefix} by __label__ in all lines")


def _refuse_label_first(origin: Origin, lines: Sequence[str]) -> None:
    """Raise a DataError if the lines are `label;text`: many texts would be labels, with few texts."""
    begin, end = ({part.strip() for part in parts} for parts in _ends(lines))
    many = len(lines) >= LABEL_FIRST and 2 * len(end) > len(lines) and len(end) >= LARGE * len(begin)
    if many or (lines and [part.strip().lower() for part in lines[0].split(";")] == ["label", "text"]):
        what = f"the labels seem to come first: {len(begin):,} different beginnings, {len(end):,} ends"
        raise origin.error(what, hint="write each line as text;label")


def _ends(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is before the first semicolon of each line, and what is behind its last."""
    return [line.partition(";")[0] for line in lines], [line.rpartition(";")[2] for line in lines]


def is_json(line: str) -> bool:
    """Whether a line is a JSON object, or one of an array of them.

    >>> is_json('{"text": "so glad"}'), is_json('[{"text": "so glad"},'), is_json('{"so": 1} glad;joy')
    (True, True, False)
    """
    return JSON.fullmatch(line.strip()) is not None


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
        if is_json(line):
            hint = "give the file the suffix .jsonl, or .json if it is an array"
            raise origin.error("the line is JSON, not text;label", number, hint=hint)
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
