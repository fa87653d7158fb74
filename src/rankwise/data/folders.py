"""The files of each split in a folder, and the pieces that a split may be stored in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rankwise.data.names import SPLIT_NAMES
from rankwise.data.readers import SUFFIXES
from rankwise.data.tables import Origin, listed

SUFFIX = f"({'|'.join(map(re.escape, sorted(SUFFIXES, key=len, reverse=True)))})"
PIECE = re.compile(r"(.+?)[-_.](\d+)-of-(\d+)\b", re.IGNORECASE)
"""The name of a piece, such as train-00000-of-00003, which may be followed by a hash."""
NUMBERED = re.compile(r"[a-z]+-(\d+)\.parquet", re.IGNORECASE)
"""The name of a piece that does not say how many there are, such as train-00000.parquet."""

AGAIN = "copy the data set again, or remove the files that do not belong to it"


def files_of(folder: Path) -> dict[str, list[Path]]:
    """The files of each split in a folder: one file, or the pieces that make it up, in order.

    Raises:
        DataError: there is no training file, several files could be a split, a piece is missing, or one is
            there twice.
    """
    origin = Origin(folder)
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise origin.error(f"the folder cannot be read: {error.strerror}") from None
    found: dict[str, list[Path]] = {}
    for split in SPLIT_NAMES:
        whole, pieces = _candidates(split, names)
        if len(whole) > 1 or (whole and pieces):
            hint = "keep only one of them in the folder, or pass the files explicitly"
            several = listed(whole + pieces)
            raise origin.error(f"more than one file could be the {split} split: {several}", hint=hint)
        check_pieces(origin, pieces)
        if whole or pieces:
            found[split] = [folder / name for name in whole or pieces]
    if "train" not in found:
        hint = f"name the files train, validation and test, with one of {', '.join(SUFFIXES)}"
        raise origin.error(f"no training file in this folder; it contains {listed(names)}", hint=hint)
    return found


def _candidates(split: str, names: list[str]) -> tuple[list[str], list[str]]:
    """(single files, pieces) among these file names that match this split."""
    stem = f"({'|'.join(SPLIT_NAMES[split])})"
    whole = [name for name in names if re.fullmatch(stem + SUFFIX, name, re.IGNORECASE)]
    numbered = rf"{stem}[-_.]\d+-of-\d+.*{SUFFIX}"
    pieces = rf"{numbered}|{stem}-.+\.parquet"
    return whole, [name for name in names if re.fullmatch(pieces, name, re.IGNORECASE)]


def check_pieces(origin: Origin, names: Sequence[str]) -> None:
    """Raise a DataError if files named N of M are not exactly the M pieces, or numbered files have gaps.

    The first piece may have the number 0 or 1.
    """
    places = {name: (int(match[2]), int(match[3])) for name in names if (match := PIECE.match(name))}
    totals = sorted({total for _, total in places.values()})
    if not totals:
        _check_numbers(origin, names)
        return
    if len(totals) > 1:
        what = f"the pieces are of several data sets, with {listed(list(map(str, totals)))} pieces"
        raise origin.error(f"{what}: {listed(list(places))}", hint=AGAIN)
    counts = Counter(number for number, _ in places.values())
    _refuse_double(origin, {name: number for name, (number, _) in places.items()})
    first = int(0 not in counts and totals[0] in counts)
    missing = [str(number) for number in range(first, totals[0] + first) if number not in counts]
    if missing:
        what = (
            f"{len(counts)} of {totals[0]} pieces are here; missing are those with number {listed(missing)}"
        )
        raise origin.error(what, hint=AGAIN)


def _check_numbers(origin: Origin, names: Sequence[str]) -> None:
    """Raise a DataError if numbered files have a gap. Numbers that are years or the like may have gaps."""
    found = {name: match[1] for name in names if (match := NUMBERED.fullmatch(name))}
    numbers = {name: int(digits) for name, digits in found.items()}
    padded = any(digits.startswith("0") for digits in found.values())
    if len(found) < len(names) or not (padded or min(numbers.values(), default=2) < 2):
        return
    _refuse_double(origin, numbers)
    there = sorted(numbers.values())
    missing = [str(number) for number in range(min(1, there[0]), there[-1]) if number not in there]
    if missing:
        what = (
            f"the pieces have a gap: {listed(list(names))}; missing are those with number {listed(missing)}"
        )
        raise origin.error(what, hint=AGAIN)


def _refuse_double(origin: Origin, numbers: Mapping[str, int]) -> None:
    """Raise a DataError if two pieces have the same number."""
    counts = Counter(numbers.values())
    if double := [name for name, number in numbers.items() if counts[number] > 1]:
        raise origin.error(f"a file of the split appears twice: {listed(double)}", hint=AGAIN)


def unread_note(folder: Path, used: Iterable[Path]) -> list[str]:
    """A note on data files of a folder that are not read, although their names begin like those of splits."""
    known = "|".join(name for names in SPLIT_NAMES.values() for name in names)
    alike = re.compile(rf"({known})(?![a-z]).*{SUFFIX}", re.IGNORECASE)
    read = {path.name for path in used}
    others = sorted(
        entry.name for entry in folder.iterdir() if alike.fullmatch(entry.name) and entry.name not in read
    )
    if not others:
        return []
    return [
        Origin(folder).note(f"not read: {listed(others)}; a split is a file such as train.csv, or pieces")
    ]


def piece_note(origin: Origin) -> list[str]:
    """A note if a file that is read alone is a piece of a data set."""
    match = PIECE.match(origin.name)
    if not match or int(match[3]) < 2:
        return []
    return [origin.note(f"one of {int(match[3])} pieces by its name; to read all of them, pass their folder")]
