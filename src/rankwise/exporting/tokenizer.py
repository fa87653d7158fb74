"""Tokenizer files for other libraries, which give the token ids that rankwise uses.

The `tokenizers` library reads tokenizer.json, and transformers reads both files. Padding is on the right,
because learned positions count from the first token. Special tokens that are spelled out in a text stay plain
text in transformers, too; with `tokenizers`, the caller sets `encode_special_tokens`, which is not stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from rankwise.exporting.source import Source
from rankwise.models.tokenizer import CONFIG, LARGEST_SETTINGS, SPECIAL, WHOLE
from rankwise.store import files

SPECIAL_TOKENS = ("pad_token", "eos_token", "bos_token", "unk_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenizerFiles:
    """The contents of tokenizer.json and tokenizer_config.json."""

    whole: str
    settings: dict[str, Any]
    pad_id: int | None
    """Token that fills up a batch; None if no token can be told from those of texts."""

    def write(self, folder: Path) -> None:
        """Write both files into a folder."""
        files.write_text(folder / WHOLE, self.whole)
        files.write_json(folder / CONFIG, self.settings)


def tokenizer_files(source: Source) -> TokenizerFiles:
    """The tokenizer of an adapter, with its maximum length and padding on the right."""
    tokenizer = source.tokenizer
    backend = Backend.from_str(tokenizer.as_json() or (tokenizer.folder / WHOLE).read_text("utf-8"))
    backend.no_padding()
    backend.no_truncation()
    special = {name: text for name, text in _special_tokens(tokenizer.folder).items() if text}
    pad_id = _pad_id(backend, special, source.base_config.get("pad_token_id"), source.vocabulary)
    backend.enable_truncation(source.max_length, direction=tokenizer.truncation_side)
    backend.enable_padding(direction="right", pad_id=pad_id or 0, pad_token=backend.id_to_token(pad_id or 0))
    special.pop("pad_token", None)
    padding = {} if pad_id is None else {"pad_token": backend.id_to_token(pad_id)}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": source.max_length,
        "padding_side": "right",
        "truncation_side": tokenizer.truncation_side,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    return TokenizerFiles(backend.to_str(), settings | special | padding, pad_id)


def _special_tokens(folder: Path) -> dict[str, str]:
    """Name -> special token, from the settings in a tokenizer's folder."""
    found: dict[str, Any] = {}
    for name in (SPECIAL, CONFIG):
        if (folder / name).is_file():
            found |= files.read_object(folder / name, limit=LARGEST_SETTINGS)
    tokens = {name: found.get(name) for name in SPECIAL_TOKENS}
    texts = {
        name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _pad_id(backend: Any, special: Mapping[str, str], own: Any, vocabulary: int) -> int | None:
    """The model's own pad token, or a special token that never ends a text.

    transformers classifies a text at the last token that is not the pad token.
    """
    if type(own) is int and 0 <= own < vocabulary and backend.id_to_token(own) is not None:
        return own
    reserved = {number for number, token in backend.get_added_tokens_decoder().items() if token.special}
    reserved -= set(backend.encode("x").ids[-1:])
    numbers = (backend.token_to_id(special[name]) for name in SPECIAL_TOKENS if name in special)
    return next((number for number in numbers if number in reserved and number < vocabulary), None)


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in an exported folder's tokenizer_config.json."""
    found: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))
    return found
