"""The `explain` command: which words of a text carried its label, by occlusion."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rankwise.errors import DataError, UsageError

MOST_WORDS = 256
"""More words than this are refused: each costs a text to classify."""
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Word:
    """A word of a text, and how much of the label's probability is lost without it."""

    text: str
    start: int  # offset of its first character in the text
    effect: float  # probability with the word minus probability without it, from -1 to 1


@dataclass(frozen=True)
class Explanation:
    """The label of a text, and the effect of each of its words."""

    label: str
    probability: float
    words: tuple[Word, ...]  # in the order of the text


class Predicts(Protocol):
    """A classifier, local or on a server."""

    labels: tuple[str, ...]

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(texts, classes) probabilities."""


def explain(classifier: Predicts, text: str) -> Explanation:
    """Measure how much each word of a text contributes to its label.

    Each word in turn is left out, and the text is classified again (Zeiler and Fergus 2014, arXiv
    1311.2901). The texts share most of their beginnings, which are computed once.

    Args:
        classifier: the classifier to explain.
        text: a text of 2 to `MOST_WORDS` words.

    Raises:
        UsageError: the text has only one word, or too many.
        DataError: the text is empty.
    """
    return explanation(text, classifier.labels, classifier.predict_proba(variants(text)))


def variants(text: str) -> list[str]:
    """The text, and the text without each of its words.

    Raises the same errors as `explain`.

    >>> variants("so very glad")
    ['so very glad', 'very glad', 'so glad', 'so very']
    """
    words = list(_WORD.finditer(text))
    if not words:
        raise DataError("the text is empty", hint="give it some text")
    if not 2 <= len(words) <= MOST_WORDS:
        hint = f"give a text of 2 to {MOST_WORDS} words"
        raise UsageError(f"the text has {len(words)} word{'s' * (len(words) > 1)}", hint=hint)
    return [text, *(_without(text, word.start(), word.end()) for word in words)]


def explanation(text: str, labels: Sequence[str], probabilities: NDArray[np.float64]) -> Explanation:
    """The explanation of a text from the probabilities of its variants.

    Args:
        text: the text.
        labels: label names.
        probabilities: (1 + words, classes), in the order of `variants`.
    """
    whole, without = probabilities[0], probabilities[1:]
    label = int(whole.argmax())
    effects = (whole[label] - without[:, label]).tolist()
    words = zip(_WORD.finditer(text), effects, strict=True)
    found = tuple(Word(word.group(), word.start(), effect) for word, effect in words)
    return Explanation(labels[label], float(whole[label]), found)


def _without(text: str, start: int, end: int) -> str:
    """The text without a word and the space after it; at the end of the text, the space before it."""
    before, after = text[:start], text[end:]
    return before + after.lstrip() if after.strip() else before.rstrip()
