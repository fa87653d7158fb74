"""The files of each split in a folder, and the pieces that a split may be stored in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rankwise.data.names import SPLIT_NAMES
from rankwise.data.readers import SUFFIXES
from rankwise.data.tables import Origin, listed

SUFFIX = f"({'|'.join(map(re.escape, sorted(SUFFIXES, key=len, reverse=True)))})"
PIECE = re.compile(r"(.+?)[-_.](\d+)-of-(\d+)\b", re.IGNORECASE)
"""The name of a piece, such as train-00000-of-00003, which may be followed by a hash."""


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


def check_pieces(origin: Origin, names: Iterable[str]) -> None:
    """Raise a DataError if files named N of M are not exactly the M pieces."""
    places = {name: (int(match[2]), int(match[3])) for name in names if (match := PIECE.match(name))}
    totals = sorted({total for _, total in places.values()})
    if not totals:
        return
    hint = "copy the data set again, or remove the files that do not belong to it"
    if len(totals) > 1:
        what = f"the pieces are of several data sets, with {listed(list(map(str, totals)))} pieces"
        raise origin.error(f"{what}: {listed(list(places))}", hint=hint)
    counts = Counter(number for number, _ in places.values())
    double = [name for name, (number, _) in places.items() if counts[number] > 1]
    if double:
        raise origin.error(f"a piece is there twice: {listed(double)}", hint=hint)
    missing = [str(number) for number in range(totals[0]) if number not in counts]
    if missing:
        what = (
            f"{len(counts)} of {totals[0]} pieces are here; missing are those with number {listed(missing)}"
        )
        raise origin.error(what, hint=hint)


def piece_note(origin: Origin) -> list[str]:
    """A note if a file that is read alone is a piece of a data set."""
    match = PIECE.match(origin.name)
    if not match or int(match[3]) < 2:
        return []
    return [origin.note(f"one of {int(match[3])} pieces by its name; to read all of them, pass their folder")]
