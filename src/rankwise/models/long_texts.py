"""Texts far longer than the maximum length, cut before they are tokenized.

The tokens of a text begin with those of its start, if the start ends where no token can reach across.
Byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909) merges neighbors into tokens of the
vocabulary only. So if no token contains a space after another character, no merge crosses the place between
a word and the space behind it, and the merges before it do not depend on what follows. The same holds for
newlines. Pre-tokenizers split a text from left to right and look at most one character ahead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

LONG = 100_000
"""Characters of a text from which it is worth looking for a cut."""
PIECE = 1_000_000
"""Characters of the pieces in which the tokens of a longer text are counted."""
WHITE = " \t\r\n\u0120\u0109\u010d\u010a\u2581"
"""Whitespace in a vocabulary: as it is, as in GPT-2's byte-level vocabulary, and as in SentencePiece."""
SPELLINGS = {" ": " \u0120\u2581", "\n": "\n\u010a"}
"""Character that a text may be cut before -> its spellings in a vocabulary."""


@dataclass(frozen=True)
class Cuts:
    """Where texts can be cut for a vocabulary."""

    longest: int
    """Characters of the longest token."""
    before: re.Pattern[str] | None
    """The places at which a text can be cut; None if there are none for this vocabulary."""

    @classmethod
    def of(cls, backend: Any) -> Self:
        """The cuts for a `tokenizers.Tokenizer`."""
        model, tokens = backend.model, list(backend.get_vocab(with_added_tokens=True))
        whole = type(model).__name__ == "BPE" and not (
            model.dropout or model.end_of_word_suffix or model.continuing_subword_prefix
        )
        signs = [sign for sign in SPELLINGS if whole and not _crossed(tokens, sign)]
        before = re.compile(rf"(?<=\S)(?=[{''.join(signs)}])") if signs else None
        return cls(max(map(len, tokens), default=1), before)

    def start(self, text: str, max_length: int) -> str:
        """The beginning of a text, which has at least the first `max_length` tokens of the whole text.

        It has at least `max_length` times as many characters as the longest token, since a token stands for
        no more characters than it has. That is not so if a tokenizer drops characters; the caller compares
        the number of tokens with `max_length`.

        A text without a place to cut is cut `LONG` characters later, wherever that is. A merge depends on
        what follows only through a chain of neighboring merges, each learned before the one on its left, and
        such chains are short.
        """
        limit = max_length * self.longest
        return text if len(text) <= LONG else text[: self._place(text, limit, limit + LONG)]

    def pieces(self, text: str) -> Iterator[str]:
        """A text in pieces of about `PIECE` characters, whose tokens add up to those of the text.

        A tokenizer that puts a space before each text adds a token to each piece, and so may a cut in a text
        without places to cut.
        """
        begin = 0
        while len(text) - begin > PIECE:
            end = self._place(text, begin + PIECE, begin + PIECE + LONG)
            yield text[begin:end]
            begin = end
        yield text[begin:]

    def _place(self, text: str, begin: int, end: int) -> int:
        """The first place from `begin` at which the text can be cut; `end` if there is none before."""
        found = self.before.search(text, begin, end) if self.before else None
        return found.start() if found else end


def _crossed(tokens: list[str], sign: str) -> bool:
    """Whether a token contains a character other than whitespace, and then this sign."""
    across = re.compile(f"[^{WHITE}][{SPELLINGS[sign]}]")
    return any(map(across.search, tokens))
