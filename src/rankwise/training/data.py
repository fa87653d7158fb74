"""The splits as token ids and label ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rankwise.data.load import Split
from rankwise.nn.batch import Ids


@dataclass(frozen=True)
class EncodedSplit:
    """A split with its texts as token ids."""

    source: Split  # texts and labels as read
    ids: list[Ids]  # of each text, (length,) int64
    targets: NDArray[np.int64]  # (texts,) label ids

    @classmethod
    def encode(
        cls, split: Split, tokenizer: Callable[[Sequence[str], int], list[Ids]], max_length: int
    ) -> Self:
        """Encode a split; texts are truncated to `max_length` tokens."""
        return cls(split, tokenizer(split.texts, max_length), np.array(split.labels, dtype=np.int64))

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.targets)


def balanced_weights(targets: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """(classes,) weights inversely proportional to class frequency, with mean 1 over the texts.

    The same as scikit-learn's `class_weight="balanced"`; a class without texts gets 0.
    """
    from sklearn.utils.class_weight import compute_class_weight

    present = np.unique(targets)
    weights = np.zeros(classes, dtype=np.float32)
    weights[present] = compute_class_weight("balanced", classes=present, y=targets)
    return weights


def hold_out(targets: NDArray[np.int64], size: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the texts to keep and of those held out, (n,) each, ascending; the same share of each class.

    At least one text of each class is kept.

    >>> kept, held = hold_out(np.array([0, 1] * 10), 4, seed=0)
    >>> len(kept), np.bincount(np.array([0, 1] * 10)[held]).tolist()
    (16, [2, 2])
    """
    random = np.random.default_rng(seed)
    held: list[NDArray[np.int64]] = []
    for label in np.unique(targets):
        members = random.permutation(np.flatnonzero(targets == label))
        held.append(members[: min(round(size * len(members) / len(targets)), len(members) - 1)])
    chosen = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(targets)), chosen), chosen
