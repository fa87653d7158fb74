"""The splits as token ids and targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rankwise.data.load import Split
from rankwise.models import windows
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.batch import Ids
from rankwise.tasks.single import SINGLE
from rankwise.tasks.task import Targets, Task


@dataclass(frozen=True)
class EncodedSplit:
    """A split with its texts as token ids.

    A text that is too long has several windows, one after another. Three texts, the second in two windows::

        ids        a b c | d e f g | f g h i | j        windows   1 2 1
    """

    source: Split  # texts and labels as read
    ids: list[Ids]  # of each window, (length,) int64
    targets: Targets  # (texts,) label ids, or (texts, classes) 0 and 1 for a multi-label task
    windows: NDArray[np.int64] | None = None  # (texts,) number of windows; None if each text has one
    cut: int = 0  # texts of which only a part is read

    @classmethod
    def encode(
        cls,
        split: Split,
        tokenizer: Tokenizer,
        max_length: int,
        task: Task = SINGLE,
        classes: int = 0,
        stride: int | None = None,
    ) -> Self:
        """Encode a split of a task with this many classes.

        Args:
            split: texts and labels.
            tokenizer: of the base model.
            max_length: most tokens of a window.
            task: how the labels become targets.
            classes: number of labels.
            stride: tokens from the start of a window to that of the next; None to truncate long texts.
        """
        found, cut = tokenizer.in_windows(split.texts, max_length, stride)
        counts = np.array([len(of_text) for of_text in found], dtype=np.int64)
        ids = [each for of_text in found for each in of_text]
        targets = task.targets(split.labels, classes)
        return cls(split, ids, targets, counts if (counts > 1).any() else None, cut)

    @property
    def windowed(self) -> int:
        """Number of texts with several windows."""
        return 0 if self.windows is None else int((self.windows > 1).sum())

    @property
    def tokens_per_text(self) -> float:
        """Mean number of tokens that are read of a text, those of all its windows."""
        return sum(map(len, self.ids)) / len(self)

    def mean(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """(..., texts, classes) logits from (..., windows, classes)."""
        return windows.mean(logits, self.windows)

    def pick(self, texts: NDArray[np.int64]) -> EncodedSplit:
        """The texts at these indices, without their sources."""
        nothing, counts = Split(self.source.name, [], []), self.windows
        chosen = texts if counts is None else windows.members(texts, counts)
        return EncodedSplit(
            nothing,
            [self.ids[i] for i in chosen],
            self.targets[texts],
            None if counts is None else counts[texts],
        )

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
