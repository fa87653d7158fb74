"""The order of labels, and labels that look alike."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from rankwise.data.columns import LabeledRows
from rankwise.tasks.labels import Label, Labels

SIGNS = "|;,/"
"""What joins the labels of a text in files where a text has several."""
WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")
POINT_ZERO = re.compile(r"(0|-?[1-9][0-9]{0,17})\.0+")
NUMBERED = re.compile(r"([^0-9]*)([0-9]{1,18})")

SAME = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc\u2032`", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\xab\xbb", '"'),
    "\u2212": "-",
    **{chr(sign): "" for sign in range(0xFE00, 0xFE10)},
}
"""Quote, minus or variation selector -> what it looks like. Dashes are known by their category."""


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Distinct labels: by value if all are whole numbers, or end in numbers behind the same prefix.

    Others are in order of first appearance. Labels 0 to n - 1 are thus their own indices.

    >>> in_order(["2", "0", "1", "0"]), in_order(["joy", "anger"]), in_order(["LABEL_1", "LABEL_0"])
    (('0', '1', '2'), ('joy', 'anger'), ('LABEL_0', 'LABEL_1'))
    """
    found = tuple(dict.fromkeys(labels))
    if all(map(WHOLE.fullmatch, found)):
        return tuple(sorted(found, key=int))
    numbered = {label: match for label in found if (match := NUMBERED.fullmatch(label))}
    values = {label: int(match[2]) for label, match in numbered.items()}
    alone = len(set(values.values())) == len(found)  # 1 and 01 have no order
    is_numbered = alone and len({match[1] for match in numbered.values()}) == 1
    return tuple(sorted(found, key=values.__getitem__)) if is_numbered else found


def whole_numbers(
    parts: Iterable[LabeledRows], task: Labels, train: Iterable[LabeledRows], given: Sequence[str] = ()
) -> dict[str, str]:
    """Label such as 1.0 -> 1, for all such labels of some rows; empty if labels are not whole numbers.

    Programs write whole numbers in this way if a cell of their column is or was empty.

    Args:
        parts: the rows.
        task: what labels a text has.
        train: the rows whose labels decide: all of them must be whole numbers, in either form.
        given: the labels that a classifier has or is to have, which decide instead of train.
    """
    found = {name: match[1] for name in _names(parts, task) if (match := POINT_ZERO.fullmatch(name))}
    decide = given or [POINT_ZERO.sub(r"\1", name) for name in _names(train, task)]
    return found if all(map(WHOLE.fullmatch, decide)) else {}


def _names(parts: Iterable[LabeledRows], task: Labels) -> set[str]:
    return {name for part in parts for label in set(part.labels) for name in task.names(label)}


def renamed(part: LabeledRows, names: Mapping[str, str]) -> LabeledRows:
    """Rows whose labels have other names."""
    if not names:
        return part
    once: dict[Label, Label] = {
        label: tuple(dict.fromkeys(names.get(each, each) for each in label))
        if isinstance(label, tuple)
        else names.get(label, label)
        for label in set(part.labels)
    }
    return replace(part, labels=[once[label] for label in part.labels])


def alike(label: str) -> str:
    """A label without what is hardly seen: case, Unicode form (NFKC), spaces, kinds of dashes and quotes.

    >>> alike("Joy\\u200b") == alike("joy"), alike("cafe\\u0301") == alike("caf\\xe9")
    (True, True)
    """
    normal = unicodedata.normalize("NFKC", label).casefold()
    signs = (SAME.get(sign, sign) for sign in normal if unicodedata.category(sign) != "Cf")
    shown = "".join("-" if unicodedata.category(sign) == "Pd" else sign for sign in signs if sign)
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
