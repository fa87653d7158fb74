"""Long texts in overlapping windows of tokens, each as long as what a model reads at once.

Windows begin a stride apart. The last one ends where the text ends, and is full. It overlaps more than the
others, so that no window is a tail of a few tokens. Ten tokens in windows of 4 with a stride of 3, and of 2::

    tokens    0 1 2 3 4 5 6 7 8 9        0 1 2 3 4 5 6 7 8 9
    windows   0 1 2 3                    0 1 2 3
                    3 4 5 6                  2 3 4 5
                          6 7 8 9                4 5 6 7
                                                     6 7 8 9
"""

from __future__ import annotations

from rankwise.errors import UsageError, option

MOST = 100
"""Windows of a text. What follows them is not read."""


def starts(tokens: int, width: int, stride: int) -> list[int]:
    """The first token of each window of a text that is longer than a window.

    >>> starts(10, 4, 3), starts(10, 4, 2), starts(9, 4, 3)
    ([0, 3, 6], [0, 2, 4, 6], [0, 3, 5])
    """
    return [*range(0, tokens - width, stride), tokens - width]


def most_tokens(width: int, stride: int) -> int:
    """Tokens of the longest text that is read as a whole."""
    return width + (MOST - 1) * stride


def stride_of(given: int | None, width: int) -> int:
    """The tokens from the start of a window to that of the next; by default half a window.

    Args:
        given: what the user has asked for, if anything.
        width: tokens of a window, without special tokens.

    Raises:
        UsageError: windows would not move on, or would skip tokens.
    """
    if given is None:
        return max(1, width // 2)
    if type(given) is not int or not 1 <= given <= width:
        what = f"{option('window_stride', given)}: a window has {width} tokens of a text"
        raise UsageError(what, hint=f"give a whole number from 1 to {width}; half a window is the default")
    return given
