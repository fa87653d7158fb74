"""The `explain` command: which words of a text contributed to its label, by occlusion or by gradient."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rankwise.errors import DataError, UsageError, option

MOST_WORDS = 256
"""More words than this are refused: each costs a text to classify."""
METHODS = ("occlusion", "gradient")
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Word:
    """A word of a text, and how much of the label's probability is lost without it."""

    text: str
    start: int  # offset of its first character in the text
    effect: float  # probability with the word minus probability without it; by gradient, to first order


@dataclass(frozen=True)
class Explanation:
    """The label of a text, and the effect of each of its words."""

    label: str
    probability: float
    words: tuple[Word, ...]  # in the order of the text


@dataclass(frozen=True)
class TokenEffects:
    """The probabilities of a text, and the effect of each of its tokens on the largest."""

    probabilities: NDArray[np.float64]  # (classes,)
    effects: NDArray[np.float64]  # (tokens,)
    places: NDArray[np.int64]  # (tokens, 2) start and end in the text; equal for a token of no characters


class Predicts(Protocol):
    """A classifier, local or on a server."""

    labels: tuple[str, ...]

    def predict_proba(self, texts: Iterable[str]) -> NDArray[np.float64]:
        """(texts, classes) probabilities."""

    def token_effects(self, text: str) -> TokenEffects:
        """Gradient times input of each token."""


def explain(classifier: Predicts, text: str, method: str = "occlusion") -> Explanation:
    """Measure how much each word of a text contributes to its label.

    With `occlusion`, each word in turn is left out, and the text is classified again (Zeiler and Fergus 2014,
    arXiv 1311.2901). The texts share most of their beginnings, which are computed once.

    With `gradient`, the effect of a word is the sum over its tokens of gradient times embedding
    (`rankwise.nn.saliency`). It takes one forward and one backward pass, and is only a first-order
    estimate, whose order of words may be another one. Words beyond the maximum length have no effect.

    Args:
        classifier: the classifier to explain.
        text: a text of 2 to `MOST_WORDS` words.
        method: one of `METHODS`.

    Raises:
        UsageError: the text has only one word, or too many; or there is no such method.
        DataError: the text is empty.
    """
    if method not in METHODS:
        raise UsageError(f"{option('method', method)}: no such method", hint=f"choose {' or '.join(METHODS)}")
    if method == "occlusion":
        return explanation(text, classifier.labels, classifier.predict_proba(variants(text)))
    words = _words(text)
    found = classifier.token_effects(text)
    return _explanation(words, classifier.labels, found.probabilities, _by_word(words, found))


def variants(text: str) -> list[str]:
    """The text, and the text without each of its words.

    Raises the same errors as `explain`.

    >>> variants("so very glad")
    ['so very glad', 'very glad', 'so glad', 'so very']
    """
    return [text, *(_without(text, word.start(), word.end()) for word in _words(text))]


def explanation(text: str, labels: Sequence[str], probabilities: NDArray[np.float64]) -> Explanation:
    """The explanation of a text from the probabilities of its variants.

    Args:
        text: the text.
        labels: label names.
        probabilities: (1 + words, classes), in the order of `variants`.
    """
    whole, without = probabilities[0], probabilities[1:]
    label = int(whole.argmax())
    return _explanation(_words(text), labels, whole, whole[label] - without[:, label])


def _words(text: str) -> list[re.Match[str]]:
    words = list(_WORD.finditer(text))
    if not words:
        raise DataError("the text is empty", hint="give it some text")
    if not 2 <= len(words) <= MOST_WORDS:
        hint = f"give a text of 2 to {MOST_WORDS} words"
        raise UsageError(f"the text has {len(words)} word{'s' * (len(words) > 1)}", hint=hint)
    return words


def _explanation(
    words: Sequence[re.Match[str]],
    labels: Sequence[str],
    probabilities: NDArray[np.float64],
    effects: NDArray[np.float64],
) -> Explanation:
    """From the words, the (classes,) probabilities of the text, and the (words,) effects."""
    label, pairs = int(probabilities.argmax()), zip(words, effects.tolist(), strict=True)
    found = tuple(Word(word.group(), word.start(), effect) for word, effect in pairs)
    return Explanation(labels[label], float(probabilities[label]), found)


def _by_word(words: Sequence[re.Match[str]], found: TokenEffects) -> NDArray[np.float64]:
    """(words,) the summed effects of each word's tokens: those of which it is the first word.

    Tokens of spaces alone belong to no word.
    """
    starts, ends = (np.array([edge(word) for word in words]) for edge in (re.Match.start, re.Match.end))
    sums = np.zeros(len(words))
    for effect, (start, end) in zip(found.effects, found.places, strict=True):
        word = int(np.searchsorted(ends, start, side="right"))  # the first that ends after the token's start
        if word < len(words) and starts[word] < end:
            sums[word] += effect
    return sums


def _without(text: str, start: int, end: int) -> str:
    """The text without a word and the space after it; at the end of the text, the space before it."""
    before, after = text[:start], text[end:]
    return before + after.lstrip() if after.strip() else before.rstrip()
