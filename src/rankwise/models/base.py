"""Base models: resolve a name to a folder with config.json, safetensors and tokenizer files.

A name is resolved in this order:

- ``smollm2-135m``: SmolLM2-135M (Allal et al. 2025, arXiv 2502.02737) from a Python package (`packaged`);
- a local folder;
- the id of a model on the Hub.

Model files are untrusted: they are read as data, and no code in them is run. Only JSON, text, tokenizer and
safetensors files are downloaded.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rankwise.errors import ModelError
from rankwise.models import packaged, registry
from rankwise.models.download import hub_folder
from rankwise.models.llama import SMOLLM2 as SMOLLM2
from rankwise.models.packaged import cache_folder as cache_folder
from rankwise.models.packaged import cache_note
from rankwise.models.registry import KNOWN as KNOWN
from rankwise.models.weights import Weights
from rankwise.nn.backbone import Backbone
from rankwise.nn.batch import Ids
from rankwise.paths import expanded
from rankwise.store import files

PAD_FILES = ("tokenizer_config.json", "special_tokens_map.json")
PAD_FILE_LIMIT = 1 << 24  # bytes; some tokenizers list thousands of added tokens
SETTINGS = ["config.json", *PAD_FILES]
EVERYTHING = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"]


@dataclass(frozen=True)
class Base:
    """A base model on local disk."""

    name: str
    """The name as given by the user."""
    folder: Path
    """Contains config.json, *.safetensors and the tokenizer files."""


def find(name: str, *, revision: str | None = None) -> Base:
    """Find a base model by name, and download or convert it if necessary.

    Args:
        name: smollm2-135m, a local folder, or a Hub id.
        revision: branch, tag or commit of a Hub id; None for the latest.

    Raises:
        ModelError: there is no such model, or it cannot be used.
        Unreachable: the Hub does not answer, and the model is not in its cache.
        ResourceError: the disk is full.
    """
    if name in packaged.PACKAGED:
        return Base(name, packaged.unpacked(name))
    folder = _local_folder(name)
    if folder is None:
        # Fetch the settings first, to reject an unsupported model before downloading its weights.
        _read_config(_hub_folder(name, revision, SETTINGS), name)
        folder = _hub_folder(name, revision, EVERYTHING)
    _read_config(folder, name)
    return Base(name, folder)


def config(name: str) -> dict[str, Any]:
    """The model's config.json. Downloads no weights, and nothing at all for names in `KNOWN`.

    Raises:
        ModelError: there is no such model, or its family or one of its settings is not supported.
        Unreachable: the Hub does not answer, and the file is not in its cache.
    """
    if _is_known(name):
        return copy.deepcopy(KNOWN[name])
    return _read_config(_local_folder(name) or _hub_folder(name, None, SETTINGS), name)


def has_pad_token(name: str) -> bool:
    """Whether the model has a pad token. If not, PEFT users must add one, with an embedding.

    Raises the same errors as `config`.
    """
    if _is_known(name):
        return "pad_token_id" in KNOWN[name]
    folder = _local_folder(name) or _hub_folder(name, None, SETTINGS)
    pad = _read_config(folder, name).get("pad_token_id")
    # Some Llama configs use -1 for no pad token.
    if type(pad) is int and pad >= 0:
        return True
    present = [folder / file for file in PAD_FILES if (folder / file).is_file()]
    return any(files.read_object(path, limit=PAD_FILE_LIMIT).get("pad_token") for path in present)


def at_hand(name: str) -> Path | None:
    """The folder of a model whose tokenizer is available locally; None if it must be downloaded.

    Raises:
        ModelError: the name is a file.
    """
    if name in packaged.PACKAGED:
        found: Path | None = packaged.folder_of(name)
    else:
        found = _local_folder(name) or _cached_folder(name)
    return found if found and (found / "tokenizer.json").is_file() else None


def package(name: str) -> tuple[str, str]:
    """(module, pip requirement) of a base model's Python package; KeyError if it has none."""
    return packaged.PACKAGED[name].module, packaged.PACKAGED[name].requirement


def anchored(name: str) -> str:
    """The name of a base model, with the path of a local folder made absolute.

    Raises:
        ModelError: the name is a file.
    """
    folder = None if name in packaged.PACKAGED else _local_folder(name)
    return os.path.abspath(folder) if folder else name


def note(name: str) -> str:
    """What the user should know about where a base model is stored; empty if nothing."""
    return cache_note() if name in packaged.PACKAGED else ""


def load_backbone(base: Base, dtype: torch.dtype, device: torch.device) -> Backbone:
    """The frozen backbone of a base model on disk.

    Raises:
        ModelError: the model is not supported, or its files are damaged.
    """
    return load_with_digest(base, dtype, device)[0]


def load_with_digest(base: Base, dtype: torch.dtype, device: torch.device) -> tuple[Backbone, str]:
    """A base model's frozen backbone, and the SHA-256 of everything that its answers depend on.

    The digest covers the settings of the backbone and the tensors that it uses. Other files, a language
    modeling head, and another spelling of the same settings do not change it.

    Raises:
        ModelError: the model is not supported, or its files are damaged.
    """
    config = files.read_object(base.folder / "config.json")
    weights = Weights(base.folder, registry.family_of(config).prefix)
    backbone = registry.build(config, weights, dtype, device)
    settings = json.dumps(registry.parse_config(config).decisive(), sort_keys=True)
    parts = (registry.family_of(config).model_type, settings, weights.digest())
    return backbone, hashlib.sha256("\n".join(parts).encode()).hexdigest()


def label_names(base: Base, classes: int) -> tuple[str, ...] | None:
    """The label names in a base model's config.json; None if they are not of this many classes.

    A base model that was itself a classifier has them. transformers' LABEL_0, LABEL_1, ... do not count.
    """
    names = files.read_object(base.folder / "config.json").get("id2label")
    if not isinstance(names, dict) or len(names) != classes:
        return None
    given = [names.get(str(i)) for i in range(classes)]
    found = tuple(name for name in given if isinstance(name, str))
    return None if len(found) != classes or found == tuple(f"LABEL_{i}" for i in range(classes)) else found


def check_ids(texts: Sequence[Ids], backbone: Backbone) -> None:
    """Check that the model has an embedding for every token.

    Raises:
        ModelError: the tokenizer belongs to another model, or has added tokens that the model lacks.
    """
    largest = max(int(ids.max()) for ids in texts)
    if largest >= len(backbone.tokens):
        raise ModelError(
            f"the tokenizer gives token {largest}, but the model has {len(backbone.tokens)} tokens",
            hint="the tokenizer files in the folder belong to another model or another version of it",
        )


def _is_known(name: str) -> bool:
    """Whether `find` resolves this name to a model whose config is built in."""
    return name in packaged.PACKAGED or (name in KNOWN and _local_folder(name) is None)


def _local_folder(name: str) -> Path | None:
    path = expanded(name)
    if os.path.isfile(path):
        raise ModelError(f"{name}: is a file", hint="pass the folder with config.json and the weights")
    return path if os.path.isdir(path) else None


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    """Validate the model's config.json and return its known keys."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{name}: has no config.json",
            hint="a base model's folder contains config.json, model.safetensors and the tokenizer files",
        )
    config = files.read_object(folder / "config.json")
    if config.get("quantization_config"):
        raise ModelError(f"{name}: quantized weights are not supported", hint="use the original model")
    try:
        family = registry.family_of(config)
        family.config.from_json(config)
    except ModelError as error:
        message, hint = error.written
        raise ModelError(f"{name}: {message}", hint=hint) from None
    return family.config.known(config)


def _cached_folder(name: str) -> Path | None:
    """The latest snapshot of a model in the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "tokenizer.json")
    except ValueError:  # not a Hub id
        return None
    return Path(found).parent if isinstance(found, str) else None


def _hub_folder(name: str, revision: str | None, patterns: list[str]) -> Path:
    without = f"a local folder, or {SMOLLM2}, which does not need the Hub"
    return hub_folder(name, revision, patterns, otherwise=without)
