"""The labels of texts as a task knows them. Data is read with this part of a task, which imports no NumPy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rankwise.schema import MetricName, TaskName

Label = str | tuple[str, ...]
"""The label of a text, or all of its labels."""
LabelIds = Any
"""The same as indices into the class names: an int, or a tuple of them."""
SEPARATOR = "|"
"""Default of the sign that joins the labels of a text in a cell of a table."""
FEWEST = 10
"""Validation texts that must have a label, and that must lack it, for its threshold to be chosen."""


class Labels(Protocol):
    """How a task encodes labels. Label ids are indices into the class names, in the model's order."""

    @property
    def name(self) -> TaskName:
        """Name of the task in a recipe."""

    @property
    def several(self) -> bool:
        """Whether a text may have any number of labels."""

    @property
    def separator(self) -> str:
        """Joins the labels of a text in a cell of a table."""

    @property
    def metric(self) -> MetricName:
        """The metric that ranks and epochs are compared by, if no other is asked for."""

    def names(self, label: Label) -> tuple[str, ...]:
        """The labels of a text."""

    def ids(self, label: Label, index: Mapping[str, int]) -> LabelIds:
        """The labels of a text as ids."""

    def named(self, ids: LabelIds, labels: Sequence[str]) -> tuple[str, ...]:
        """The labels of a text from their ids."""

    def strata(self, ids: Sequence[LabelIds]) -> list[int]:
        """(texts,) groups of texts that a sample takes equal shares of: a label id, or -1 for no label."""

    def untunable(self, ids: Sequence[LabelIds], classes: int) -> list[int]:
        """The labels with too few of these validation texts to choose their thresholds."""


@dataclass(frozen=True)
class OneLabel:
    """Each text has exactly one label. See `Labels` for all methods."""

    name: TaskName = "single-label"
    several: bool = False
    separator: str = ""
    metric: MetricName = "accuracy"

    def names(self, label: Label) -> tuple[str, ...]:
        """The label, alone."""
        assert isinstance(label, str)
        return (label,)

    def ids(self, label: Label, index: Mapping[str, int]) -> LabelIds:
        """The label's id."""
        assert isinstance(label, str)
        return index[label]

    def named(self, ids: LabelIds, labels: Sequence[str]) -> tuple[str, ...]:
        """The label, alone."""
        return (labels[ids],)

    def strata(self, ids: Sequence[LabelIds]) -> list[int]:
        """The labels themselves."""
        return list(ids)

    def untunable(self, ids: Sequence[LabelIds], classes: int) -> list[int]:
        """None: there are no thresholds."""
        return []


@dataclass(frozen=True)
class SeveralLabels:
    """Each text has any number of labels, none included. See `Labels` for all methods."""

    name: TaskName = "multi-label"
    several: bool = True
    separator: str = SEPARATOR
    metric: MetricName = "macro-f1"

    def names(self, label: Label) -> tuple[str, ...]:
        """All labels of the text."""
        assert isinstance(label, tuple)
        return label

    def ids(self, label: Label, index: Mapping[str, int]) -> LabelIds:
        """The ids of the labels, ascending."""
        return tuple(sorted(index[name] for name in self.names(label)))

    def named(self, ids: LabelIds, labels: Sequence[str]) -> tuple[str, ...]:
        """All labels of the text, in the model's order."""
        return tuple(labels[i] for i in ids)

    def strata(self, ids: Sequence[LabelIds]) -> list[int]:
        """The rarest label of each text; -1 for a text without labels.

        >>> SeveralLabels().strata([(0, 1), (0,), ()])
        [1, 0, -1]
        """
        texts = Counter(label for of_text in ids for label in of_text)
        return [min(of_text, key=texts.__getitem__, default=-1) for of_text in ids]

    def untunable(self, ids: Sequence[LabelIds], classes: int) -> list[int]:
        """The labels that fewer than `FEWEST` texts have, or lack."""
        texts = Counter(label for of_text in ids for label in of_text)
        return [i for i in range(classes) if min(texts[i], len(ids) - texts[i]) < FEWEST]


def labels_of(name: TaskName, separator: str = SEPARATOR) -> Labels:
    """The labels of the task of this name.

    Args:
        name: as in a recipe.
        separator: joins the labels of a text in a cell of a table.
    """
    return SeveralLabels(separator=separator) if name == "multi-label" else ONE_LABEL


ONE_LABEL = OneLabel()
