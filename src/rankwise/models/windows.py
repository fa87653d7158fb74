"""Long texts in windows of tokens, each as long as what a model reads at once.

Windows begin a stride apart, by default a window. The last one ends where the text ends, and is full: it
overlaps more than the others, so that no window is a tail of a few tokens. Ten tokens in windows of 4 with a
stride of 4, and of 2::

    tokens    0 1 2 3 4 5 6 7 8 9        0 1 2 3 4 5 6 7 8 9
    windows   0 1 2 3                    0 1 2 3
                      4 5 6 7                2 3 4 5
                          6 7 8 9                4 5 6 7
                                                     6 7 8 9

A smaller stride only adds windows from the middle of the text. They begin within a sentence and end before
the text does. Alone, they are wrong more often than the first and the last
(docs/records/2026-11-26-windows.md).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwise.errors import UsageError, option

MOST = 100
"""Windows of a text. What follows them is not read."""


def starts(tokens: int, width: int, stride: int) -> list[int]:
    """The first token of each window of a text that is longer than a window.

    >>> starts(10, 4, 3), starts(10, 4, 2), starts(9, 4, 3)
    ([0, 3, 6], [0, 2, 4, 6], [0, 3, 5])
    """
    return [*range(0, tokens - width, stride), tokens - width]


def mean(logits: NDArray[np.float32], windows: NDArray[np.int64] | None) -> NDArray[np.float32]:
    """The logits of texts: the mean over the windows of each.

    Args:
        logits: (..., windows, classes), the windows of a text one after another.
        windows: (texts,) number of windows of each text; None if each has one.

    Returns:
        (..., texts, classes). Those of a text with one window are its own.

    >>> mean(np.array([[1], [2], [4]], dtype=np.float32), np.array([1, 2])).tolist()
    [[1.0], [3.0]]
    """
    if windows is None:
        return logits
    sums: NDArray[Any] = np.add.reduceat(logits.astype(np.float64), begins(windows), axis=-2)
    return np.asarray((sums / windows[:, None]).astype(np.float32))


def begins(windows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(texts,) index of the first window of each text, from (texts,) numbers of windows.

    >>> begins(np.array([1, 2, 1])).tolist()
    [0, 1, 3]
    """
    return np.cumsum(windows) - windows


def members(texts: NDArray[np.int64], windows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the windows of some texts, in the order of the texts.

    >>> members(np.array([2, 1]), np.array([1, 2, 1])).tolist()
    [3, 1, 2]
    """
    first = begins(windows)
    return np.concatenate([np.arange(first[i], first[i] + windows[i]) for i in texts])


def most_tokens(width: int, stride: int) -> int:
    """Tokens of the longest text that is read as a whole."""
    return width + (MOST - 1) * stride


def tokens_read(tokens: float, width: int, stride: int) -> float:
    """Tokens in all windows of a text, approximately if the number of tokens is.

    >>> tokens_read(3.5, 4, 2), tokens_read(9.2, 4, 2)
    (3.5, 16)
    """
    if tokens <= width:
        return tokens
    return width * len(starts(min(math.ceil(tokens), most_tokens(width, stride)), width, stride))


def stride_of(given: int | None, width: int) -> int:
    """The tokens from the start of a window to that of the next; by default a window.

    Args:
        given: what the user has asked for, if anything.
        width: tokens of a window, without special tokens.

    Raises:
        UsageError: windows would not move on, or would skip tokens.
    """
    if given is None:
        return width
    if type(given) is not int or not 1 <= given <= width:
        what = f"{option('window_stride', given)}: a window has {width} tokens of a text"
        raise UsageError(what, hint=f"give a whole number from 1 to {width}; a window is the default")
    return given
