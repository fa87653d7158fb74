"""The splits as token ids and targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rankwise.data.load import Split
from rankwise.nn.batch import Ids
from rankwise.tasks.single import SINGLE
from rankwise.tasks.task import Targets, Task


@dataclass(frozen=True)
class EncodedSplit:
    """A split with its texts as token ids."""

    source: Split  # texts and labels as read
    ids: list[Ids]  # of each text, (length,) int64
    targets: Targets  # (texts,) label ids, or (texts, classes) 0 and 1 for a multi-label task

    @classmethod
    def encode(
        cls,
        split: Split,
        tokenizer: Callable[[Sequence[str], int], list[Ids]],
        max_length: int,
        task: Task = SINGLE,
        classes: int = 0,
    ) -> Self:
        """Encode a split of a task with this many classes; texts are truncated to `max_length` tokens."""
        return cls(split, tokenizer(split.texts, max_length), task.targets(split.labels, classes))

    def pick(self, texts: NDArray[np.int64]) -> EncodedSplit:
        """The texts at these indices, without their sources."""
        nothing = Split(self.source.name, [], [])
        return EncodedSplit(nothing, [self.ids[i] for i in texts], self.targets[texts])

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.targets)


def hold_out(strata: NDArray[np.int64], size: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the texts to keep and of those held out, (n,) each, ascending; the same share of each class.

    At least one text of each class is kept.

    Args:
        strata: (texts,) the class of each text, as `Labels.strata` gives it.
        size: number of texts to hold out, approximately.
        seed: of the draw.

    >>> kept, held = hold_out(np.array([0, 1] * 10), 4, seed=0)
    >>> len(kept), np.bincount(np.array([0, 1] * 10)[held]).tolist()
    (16, [2, 2])
    """
    random = np.random.default_rng(seed)
    held: list[NDArray[np.int64]] = []
    for label in np.unique(strata):
        members = random.permutation(np.flatnonzero(strata == label))
        held.append(members[: min(round(size * len(members) / len(strata)), len(members) - 1)])
    chosen = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(strata)), chosen), chosen
