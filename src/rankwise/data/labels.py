"""The order of labels, and labels that look alike."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

SIGNS = "|;,/"
"""What joins the labels of a text in files where a text has several."""
WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Distinct labels: by value if all are whole numbers, else in order of first appearance.

    Labels 0 to n - 1 are thus their own indices.

    >>> in_order(["2", "0", "1", "0"]), in_order(["joy", "anger"])
    (('0', '1', '2'), ('joy', 'anger'))
    """
    found = tuple(dict.fromkeys(labels))
    return tuple(sorted(found, key=int)) if all(map(WHOLE.fullmatch, found)) else found


def alike(label: str) -> str:
    """A label without what cannot be seen: case, Unicode form (NFKC), spaces and zero-width characters.

    >>> alike("Joy\\u200b") == alike("joy"), alike("cafe\\u0301") == alike("caf\\xe9")
    (True, True)
    """
    normal = unicodedata.normalize("NFKC", label).casefold()
    shown = "".join(sign for sign in normal if unicodedata.category(sign) != "Cf")
    return " ".join(shown.split())


def look_alikes(labels: Sequence[str], used: Iterable[str]) -> list[str]:
    """Notes on labels that look alike, with the number of training texts that have them.

    Args:
        labels: distinct labels.
        used: the label of each training text.
    """
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(alike(label), []).append(label)
    several = [group for group in groups.values() if len(group) > 1]
    if not several:
        return []
    texts = Counter(used)
    return [
        "labels that look alike, but are separate classes: "
        + ", ".join(f"{label!a} ({texts[label]:,} texts)" for label in group)
        for group in several
    ]


def joined_label(labels: Sequence[str]) -> tuple[str, str] | None:
    """The first label that consists of other labels, and the sign between them; None if there is none.

    >>> joined_label(["joy", "love", "joy|love"]), joined_label(["joy", "love", "and|or"])
    (('joy|love', '|'), None)
    """
    known = set(labels)
    for label in labels:
        for sign in SIGNS:
            parts = [part.strip() for part in label.split(sign)]
            if len(parts) > 1 and known.issuperset(parts):
                return label, sign
    return None
