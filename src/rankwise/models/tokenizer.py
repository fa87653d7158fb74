"""Tokenization with the base model's own tokenizer.

Token ids match transformers' default call (special tokens added, long texts truncated) with two differences.
Special tokens spelled out in a text are tokenized as plain text, so that texts cannot inject control tokens.
Pad tokens at the end of a text, which a model may have among its ordinary tokens, are left out: transformers
classifies a text at the last token that is not the model's pad token.

The `tokenizers` library reads tokenizer.json directly. If a folder only has the older vocab.json and
merges.txt, transformers builds a tokenizer from them and the family's name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwise.errors import DataError, ModelError, UsageError
from rankwise.models import windows
from rankwise.models.long_texts import LONG, PIECE, Cuts
from rankwise.store import files
from rankwise.store.files import read_object

FILE_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
WHOLE, CONFIG, SPECIAL = FILE_NAMES[:3]
LARGEST_FILE = 1 << 27  # bytes; a tokenizer.json with a vocabulary of 256,000 has 35 MB
LARGEST_SETTINGS = 1 << 24  # bytes; some list thousands of added tokens
SETTINGS = (
    "tokenizer_class", "model_max_length", "bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
    "cls_token", "mask_token", "additional_special_tokens", "extra_special_tokens", "added_tokens_decoder",
    "add_prefix_space", "add_bos_token", "add_eos_token", "clean_up_tokenization_spaces",
    "split_special_tokens", "padding_side", "truncation_side", "trim_offsets", "errors", "legacy",
    "model_input_names",
)  # fmt: skip
"""The keys read from tokenizer_config.json. None of them refers to a file or code."""
CHUNK_TEXTS = 512
CHUNK_CHARACTERS = 1_000_000
NEEDS = f"it needs {WHOLE}, or vocab.json and merges.txt beside the model's config.json"


class Tokenizer:
    """The tokenizer in a base model's or adapter's folder. It is thread-safe: calls do not modify it.

    Args:
        folder: folder that it was read from.
        backend: a `tokenizers.Tokenizer`; this object takes ownership of it.
        has_pad_token: whether the model has a pad token.
        keeps_end: whether long texts are truncated at the start instead of the end.
        pad_id: the model's pad token, which is left out at the end of a text; None if it has none.
    """

    folder: Path
    has_pad_token: bool
    truncation_side: str

    def __init__(
        self,
        folder: Path,
        backend: Any,
        *,
        has_pad_token: bool = False,
        keeps_end: bool = False,
        pad_id: int | None = None,
    ) -> None:
        self.folder, self.has_pad_token, self._pad_id = folder, has_pad_token, pad_id
        self._backend, self.truncation_side = backend, "left" if keeps_end else "right"
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self._added: int = backend.num_special_tokens_to_add(is_pair=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by construction: a pickled backend forgets that special tokens in texts are plain text."""
        keeps_end = self.truncation_side == "left"
        return _restored, (self.folder, self._backend, self.has_pad_token, keeps_end, self._pad_id)

    @classmethod
    def load(cls, folder: Path, model: Path | None = None) -> Tokenizer:
        """Load the tokenizer in a folder. Nothing is downloaded, and no code from the folder is run.

        Args:
            folder: contains the tokenizer's files.
            model: folder of the model's config.json; by default the same.

        Raises:
            ModelError: the tokenizer is missing, damaged or inconsistent.
        """
        if not cls.is_in(folder):
            raise ModelError(f"{folder}: no tokenizer in this folder", hint=f"it needs {WHOLE}")
        config = _config(model or folder)
        paths, objects = _checked(folder, config)
        settings = {**objects.get(SPECIAL, {}), **objects.get(CONFIG, {})}
        backend = _read(folder, settings) if WHOLE in paths else _put_together(folder, paths, objects)
        # transformers' classes silently use an empty vocabulary if the vocabulary file is missing.
        if backend.get_vocab_size(with_added_tokens=False) < 2:
            raise ModelError(f"{folder}: the tokenizer has no vocabulary", hint=NEEDS)
        pad = settings.get("pad_token") or (backend.padding or {}).get("pad_token")
        side = settings.get("truncation_side") or (backend.truncation or {}).get("direction") or "right"
        if side not in ("left", "right"):
            raise ModelError(
                f"{folder / CONFIG}: truncation_side must be left or right, not {str(side)[:40]!r}"
            )
        pad_id = config.get("pad_token_id")
        return cls(
            folder,
            backend,
            has_pad_token=bool(pad),
            keeps_end=side == "left",
            pad_id=pad_id if type(pad_id) is int else None,
        )

    @classmethod
    def is_in(cls, folder: Path) -> bool:
        """Whether a folder contains tokenizer files."""
        return bool(cls._files(folder))

    def __call__(self, texts: Sequence[str], max_length: int) -> list[NDArray[np.int64]]:
        """Tokenize texts: for each text, its token ids (1 to max_length,) int64.

        Raises:
            DataError: a text is not a string, cannot be encoded, or has no tokens in this vocabulary.
            UsageError: max_length leaves no room for text besides the special tokens.
        """
        self.room(max_length)
        return [self._cut(encoding, max_length) for encoding in self._starts(texts, max_length)]

    def room(self, max_length: int) -> int:
        """The most tokens of a text besides the special tokens.

        Raises:
            UsageError: there is no room.
        """
        if max_length <= self._added:
            what = f"max_length {max_length} leaves no room for text besides {self._added} special tokens"
            raise UsageError(what)
        return max_length - self._added

    def longest(self, max_length: int, stride: int | None) -> int | None:
        """Tokens of the longest text that is read as a whole, including special tokens; None without windows.

        Takes and raises what `in_windows` does.
        """
        return stride and self._added + windows.most_tokens(self.room(max_length), stride)

    def in_windows(
        self, texts: Sequence[str], max_length: int, stride: int | None
    ) -> tuple[list[list[NDArray[np.int64]]], int]:
        """Tokenize texts, and those that are too long in windows (`rankwise.models.windows`).

        Args:
            texts: the texts.
            max_length: most tokens of a window, including special tokens.
            stride: tokens of the text from the start of a window to that of the next; None to read one window
                of each text.

        Returns:
            for each text the ids of its windows, each (1 to max_length,) int64, and the number of texts with
            more windows than are read. The first window of a text has the ids of a call.

        Raises the same errors as a call.
        """
        room = self.room(max_length)
        most = room if stride is None else windows.most_tokens(room, stride)
        found, cut = [], 0
        for encoding in self._starts(texts, most + 1):
            cut += len(encoding) > most
            encoding.truncate(most, direction=self.truncation_side)
            found.append(self._windows(encoding, max_length, stride or room))
        return found, cut

    def places(self, text: str, max_length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokenize a text, and say which of its characters each token stands for.

        Returns:
            (tokens,) the ids of a call, and (tokens, 2) start and end in the text, which are equal for a
            special token.

        Raises the same errors as a call.
        """
        (ids,) = self([text], max_length)
        encoding = self._backend.encode(text, add_special_tokens=False)  # the fast one has no offsets
        encoding.truncate(max_length - self._added, direction=self.truncation_side)
        whole = self._backend.post_process(encoding) if self._added else encoding
        return ids, np.array(whole.offsets[: len(ids)], dtype=np.int64)

    def lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """(texts,) int64: the number of tokens per text, including special tokens, without truncation.

        Raises:
            DataError: see `__call__`.
        """
        found = [size for chunk in _chunks(texts) for size in self._sizes(chunk)]
        return np.array(found, dtype=np.int64) + self._added

    def truncated(self, texts: Sequence[str], max_length: int) -> int:
        """The number of texts that have more than `max_length` tokens.

        Raises:
            DataError: see `__call__`.
        """
        room = self.room(max_length)
        return sum(len(encoding) > room for encoding in self._starts(texts, max_length + 1))

    def _sizes(self, chunk: list[str]) -> list[int]:
        """Tokens of each text, without special tokens. Long texts are counted piece by piece."""
        if max(map(len, chunk)) <= PIECE:
            return list(map(len, self._encode(chunk)))
        return [sum(len(self._encode([piece])[0]) for piece in self._cuts.pieces(text)) for text in chunk]

    def _starts(self, texts: Sequence[str], max_length: int) -> Iterator[Any]:
        """Encodings as from `_encode_starts`, for any number of texts.

        Raises:
            DataError: see `__call__`.
        """
        for chunk in _chunks(texts):
            for text, encoding in zip(chunk, self._encode_starts(chunk, max_length), strict=True):
                if not len(encoding) and not self._added:
                    raise DataError(f"the vocabulary has no tokens for {text[:60]!r}")
                yield encoding

    def _encode_starts(self, chunk: list[str], max_length: int) -> list[Any]:
        """Encodings that have at least the first `max_length` tokens of each text, or all of them."""
        if self.truncation_side == "left" or max(map(len, chunk)) <= LONG:
            return self._encode(chunk)
        starts = [self._cuts.start(text, max_length) for text in chunk]
        return [
            self._encode([text])[0] if len(start) < len(text) and len(encoding) < max_length else encoding
            for text, start, encoding in zip(chunk, starts, self._encode(starts), strict=True)
        ]

    @cached_property
    def _cuts(self) -> Cuts:
        return Cuts.of(self._backend)

    def _encode(self, chunk: list[str]) -> list[Any]:
        """Encodings without the special tokens that are always added."""
        try:
            encodings: list[Any] = self._backend.encode_batch_fast(chunk, add_special_tokens=False)
        except TypeError:  # raised for a string with a lone surrogate
            text = next(text for text in chunk if not _is_encodable(text))
            raise DataError(f"a lone surrogate in {text[:60]!r}") from None
        except BaseException as error:  # a tokenizer.json may load and still fail on a text
            raise _unusable(self.folder, error) from None
        return encodings

    def _cut(self, encoding: Any, max_length: int) -> NDArray[np.int64]:
        """Token ids truncated to max_length, including special tokens."""
        return self._without_padding(np.array(self._truncated(encoding, max_length).ids, dtype=np.int64))

    def _truncated(self, encoding: Any, max_length: int) -> Any:
        """The encoding, itself truncated, with special tokens: at most max_length tokens together."""
        encoding.truncate(max_length - self._added, direction=self.truncation_side)
        return self._backend.post_process(encoding) if self._added else encoding

    def _windows(self, encoding: Any, max_length: int, stride: int) -> list[NDArray[np.int64]]:
        """Token ids of the windows of a text, including special tokens, from the side that a cut keeps."""
        width = max_length - self._added
        if len(encoding) <= width:
            return [self._cut(encoding, max_length)]
        tokens = np.array(encoding.ids, dtype=np.int64)
        whole = self._truncated(encoding, max_length)
        frame, of_text = np.array(whole.ids, dtype=np.int64), np.array(whole.special_tokens_mask) == 0
        ids = []
        for start in windows.starts(len(tokens), width, stride):
            at = start if self.truncation_side == "right" else len(tokens) - width - start
            frame[of_text] = tokens[at : at + width]
            ids.append(self._without_padding(frame.copy()))
        return ids

    def _without_padding(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token ids without pad tokens at the end; at least one remains."""
        end = len(ids)
        while end > 1 and ids[end - 1] == self._pad_id:
            end -= 1
        return ids[:end]

    def as_json(self) -> str | None:
        """The contents of a tokenizer.json for a folder that has only vocab.json and merges.txt, else None.

        Such files say which tokenizer they are for only beside a model's config.json.
        """
        return None if (self.folder / WHOLE).is_file() else self._backend.to_str()

    def files(self) -> list[Path]:
        """The tokenizer's files, to be copied into an adapter's folder."""
        return self._files(self.folder)

    @staticmethod
    def _files(folder: Path) -> list[Path]:
        return [folder / name for name in FILE_NAMES if (folder / name).is_file()]


def _restored(
    folder: Path, backend: Any, has_pad_token: bool, keeps_end: bool, pad_id: int | None
) -> Tokenizer:
    return Tokenizer(folder, backend, has_pad_token=has_pad_token, keeps_end=keeps_end, pad_id=pad_id)


def _read(folder: Path, settings: Mapping[str, Any]) -> Any:
    """Read tokenizer.json. As in transformers, it alone determines the special tokens added to a text."""
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_file(str(folder / WHOLE))
    except BaseException as error:
        raise _unusable(folder, error) from None
    _refuse_differences(folder, backend, settings)
    return backend


def _refuse_differences(folder: Path, backend: Any, settings: Mapping[str, Any]) -> None:
    """Reject settings of tokenizer_config.json that contradict tokenizer.json and would change ids."""
    spaces = json.dumps(settings.get("add_prefix_space"))
    before = json.loads(backend.to_str())["pre_tokenizer"] or {}
    for part in before.get("pretokenizers", [before]):
        if part.get("type") == "ByteLevel" and spaces not in (
            "null",
            json.dumps(part.get("add_prefix_space")),
        ):
            raise ModelError(f"{folder / CONFIG}: add_prefix_space is {spaces}, which contradicts {WHOLE}")
    kind = str(settings.get("tokenizer_class"))
    if kind.startswith("GPTNeoXTokenizer") and backend.num_special_tokens_to_add(is_pair=False):
        what = f"tokenizer_class {kind} adds no special tokens in transformers, but {WHOLE} does"
        raise ModelError(f"{folder / CONFIG}: {what}")
    added = settings.get("added_tokens_decoder")
    for token in added.values() if isinstance(added, dict) else ():
        plain = isinstance(token, dict) and not token.get("special")
        if plain and backend.token_to_id(_content(token)) is None:
            raise ModelError(f"{folder / CONFIG}: {WHOLE} lacks the added token {_content(token)[:40]!r}")


def _content(token: Any) -> str:
    """The content of a special token, which is stored as a string or an object."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _put_together(folder: Path, paths: Mapping[str, Path], objects: Mapping[str, Any]) -> Any:
    """Build a tokenizer from vocab.json and merges.txt with transformers' class for the family.

    transformers only sees a temporary folder with the known settings and links to the vocabulary. It never
    reads anything else that the folder's JSON refers to, such as code or other files.
    """
    if not {"vocab.json", "merges.txt"} <= paths.keys():
        raise ModelError(f"{folder}: the tokenizer has no vocabulary", hint=NEEDS)
    from transformers import AutoTokenizer

    with files.scratch_folder(paths, objects) as copy:
        try:
            found = AutoTokenizer.from_pretrained(copy, local_files_only=True, trust_remote_code=False)
        except BaseException as error:
            raise _unusable(folder, error, str(copy)) from None
    if not found.is_fast:
        raise ModelError(f"{folder}: no fast tokenizer", hint=f"save it as {WHOLE}")
    return found.backend_tokenizer


def _config(folder: Path) -> dict[str, Any]:
    """A model's config.json; empty if there is none."""
    path = folder / "config.json"
    return read_object(path, limit=LARGEST_SETTINGS) if path.is_file() else {}


def _checked(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, Path], dict[str, dict[str, Any]]]:
    """(vocabulary files, JSON objects of settings) of a tokenizer, checked to be safe to read."""
    paths: dict[str, Path] = {}
    objects: dict[str, dict[str, Any]] = {}
    for path in Tokenizer._files(folder):
        _refuse_outside(folder, path)
        if path.name in (CONFIG, SPECIAL):
            found = read_object(path, limit=LARGEST_SETTINGS)
            if found.get("auto_map"):
                raise ModelError(f"{path}: requires custom code (auto_map), which is not supported")
            objects[path.name] = {key: found[key] for key in SETTINGS if key in found}
        elif path.stat().st_size > LARGEST_FILE:
            raise ModelError(f"{path}: larger than {LARGEST_FILE} bytes")
        else:
            paths[path.name] = path
    if config:
        kept = {key: config.get(key) for key in ("model_type", "tokenizer_class")}
        objects["config.json"] = {key: value for key, value in kept.items() if isinstance(value, str)}
    return paths, objects


def _refuse_outside(folder: Path, path: Path) -> None:
    """Reject links out of the folder, since tokenizer files are copied into adapter folders.

    The exception is the Hub's cache, which links from `snapshots/REVISION` to `blobs`.
    """
    real, home = path.resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs"
    if not any(real.is_relative_to(inside) for inside in (home, blobs)):
        hint = "copy the file itself into the folder"
        raise ModelError(f"{path}: a link that leads out of its folder", hint=hint)


def _unusable(folder: Path, error: BaseException, copy: str = "") -> ModelError:
    """A ModelError for errors of the tokenizers library: bare Exceptions, or panics of its Rust code."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    what = (str(error).strip() or type(error).__name__).splitlines()[0]
    what = what.replace(copy, str(folder)) if copy else what
    return ModelError(f"{folder}: the tokenizer cannot be used: {what}", hint=NEEDS)


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    """Split texts into chunks of bounded size, so that Ctrl-C is handled between chunks."""
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
