"""Texts -> token ids, by the base model's own tokenizer.

Ids are those of transformers' default call (special tokens added, the end of a long text cut off)
with one difference: a special token spelled out in a text is read as plain text, so that nobody
can put the model's control tokens into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwise.errors import DataError, ModelError, UsageError

FILE_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
CHUNK_TEXTS = 512
CHUNK_CHARACTERS = 1_000_000


class Tokenizer:
    """The tokenizer in a base model's or adapter's folder."""

    folder: Path
    has_pad_token: bool

    def __init__(self, folder: Path, backend: Any, *, has_pad_token: bool) -> None:
        """`backend` is a `tokenizers.Tokenizer`; it is changed, so it must belong to this object alone."""
        self.folder = folder
        self.has_pad_token = has_pad_token
        self._backend = backend
        self._backend.encode_special_tokens = True
        self._backend.no_padding()

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer in a folder; nothing is downloaded, and no code of the folder's is run.

        Raises:
            ModelError: the folder has no tokenizer, a damaged one, or one without a fast form.
        """
        if not cls.is_in(folder):
            raise ModelError(f"{folder}: no tokenizer in this folder", hint=f"it needs {FILE_NAMES[0]}")
        from transformers import AutoTokenizer

        try:
            found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises bare Exceptions at a damaged file
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            hint = "it needs tokenizer.json, or vocab.json and merges.txt beside the model's config.json"
            raise ModelError(f"{folder}: the tokenizer cannot be loaded: {what}", hint=hint) from None
        if not found.is_fast:
            raise ModelError(f"{folder}: no fast tokenizer", hint="save it as tokenizer.json")
        backend = found.backend_tokenizer
        # A family's class makes do with an empty vocabulary where the file that holds it is missing.
        if backend.get_vocab_size(with_added_tokens=False) < 2:
            raise ModelError(f"{folder}: the tokenizer has no vocabulary", hint=f"it needs {FILE_NAMES[0]}")
        return cls(folder, backend, has_pad_token=found.pad_token is not None)

    @classmethod
    def is_in(cls, folder: Path) -> bool:
        """Whether a folder holds a tokenizer's files."""
        return bool(cls._files(folder))

    def __call__(self, texts: Sequence[str], max_length: int) -> list[NDArray[np.int64]]:
        """The ids of each text, (1 to max_length,) int64.

        Raises:
            DataError: a text is no string, cannot be encoded, or has no tokens in this vocabulary.
            UsageError: max_length has no room for the special tokens that are always added.
        """
        self._truncate(max_length)
        ids: list[NDArray[np.int64]] = []
        for chunk in _chunks(texts):
            for encoding in self._encode(chunk):
                if not encoding.ids:
                    raise DataError(f"no token stands for this text: {texts[len(ids)][:60]!r}")
                ids.append(np.array(encoding.ids, dtype=np.int64))
        return ids

    def lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """(texts,) int64 tokens of each text as it is, special tokens included: nothing is cut off.

        Raises:
            DataError: as for a call.
        """
        self._backend.no_truncation()
        return np.array(
            [len(encoding.ids) for chunk in _chunks(texts) for encoding in self._encode(chunk)],
            dtype=np.int64,
        )

    def _encode(self, chunk: list[str]) -> list[Any]:
        try:
            encodings: list[Any] = self._backend.encode_batch_fast(chunk)
        except TypeError:  # what the library says of a string with a lone surrogate
            text = next(text for text in chunk if not _is_encodable(text))
            raise DataError(f"half of a surrogate pair, no character, stands in {text[:60]!r}") from None
        return encodings

    def files(self) -> list[Path]:
        """The tokenizer's files in its folder, to be copied beside an adapter."""
        return self._files(self.folder)

    @staticmethod
    def _files(folder: Path) -> list[Path]:
        return [folder / name for name in FILE_NAMES if (folder / name).is_file()]

    def _truncate(self, max_length: int) -> None:
        added = self._backend.num_special_tokens_to_add(is_pair=False)
        if max_length <= added:
            raise UsageError(f"max_length {max_length} has no room for text beside {added} special tokens")
        self._backend.enable_truncation(max_length, direction="right")


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    """A bounded number of texts and characters at a time: between two chunks Ctrl-C is answered."""
    chunk: list[str] = []
    characters = 0
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"a text is of type {type(text).__name__}, not a string")
        chunk.append(text)
        characters += len(text)
        if len(chunk) == CHUNK_TEXTS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
