"""Base models: a name -> a folder with config.json, safetensors and tokenizer files.

A name is, in this order,

- ``smollm2-135m``: SmolLM2-135M (Allal et al. 2025, arXiv 2502.02737) out of a Python package (`packaged`);
- a local folder;
- the id of a model on the Hub.

Whatever a model brings along is untrusted: it is read as data, and nothing of it is run. Only JSON, text,
tokenizer and safetensors files are fetched.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rankwise import hub
from rankwise.errors import ModelError, RankwiseError, Unreachable
from rankwise.models import packaged, registry
from rankwise.models.llama import SMOLLM2 as SMOLLM2
from rankwise.models.packaged import cache_folder as cache_folder
from rankwise.models.registry import KNOWN as KNOWN
from rankwise.models.weights import Weights
from rankwise.nn.backbone import Backbone
from rankwise.nn.batch import Ids
from rankwise.store import files

PAD_FILES = ("tokenizer_config.json", "special_tokens_map.json")
PAD_FILE_LIMIT = 1 << 24  # bytes; some tokenizers list thousands of added tokens there
SETTINGS = ["config.json", *PAD_FILES]
EVERYTHING = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"]
HUB_SECONDS = 10.0  # to wait for the Hub's answer


@dataclass(frozen=True)
class Base:
    """A base model on this machine's disk."""

    name: str
    """As the user wrote it."""
    folder: Path
    """Holds config.json, *.safetensors and the tokenizer's files."""


def find(name: str, *, revision: str | None = None) -> Base:
    """The base model of this name, fetched or converted where that has not been done before.

    Args:
        name: smollm2-135m, a local folder, or a Hub id.
        revision: branch, tag or commit of a Hub id; None for the newest.

    Raises:
        ModelError: there is no such model, or it cannot be used: what is wrong, and where.
        Unreachable: the Hub does not answer, and the model is not in its cache.
        ResourceError: there is no room on the disk.
    """
    if name in packaged.PACKAGED:
        return Base(name, packaged.unpacked(name))
    folder = _local_folder(name)
    if folder is None:
        # Settings first: a model that cannot be used is refused before its weights are fetched.
        _read_config(_hub_folder(name, revision, SETTINGS), name)
        folder = _hub_folder(name, revision, EVERYTHING)
    _read_config(folder, name)
    return Base(name, folder)


def config(name: str) -> dict[str, Any]:
    """The model's config.json. No weights are fetched, and for the names in `KNOWN` nothing is.

    Raises:
        ModelError: there is no such model, or its family or one of its settings is not supported.
        Unreachable: the Hub does not answer, and the file is not in its cache.
    """
    if _is_known(name):
        return copy.deepcopy(KNOWN[name])
    return _read_config(_local_folder(name) or _hub_folder(name, None, SETTINGS), name)


def has_pad_token(name: str) -> bool:
    """Whether the model has a pad token; where not, users of PEFT add one, and a row of embeddings.

    Raises as `config` does.
    """
    if _is_known(name):
        return "pad_token_id" in KNOWN[name]
    folder = _local_folder(name) or _hub_folder(name, None, SETTINGS)
    pad = _read_config(folder, name).get("pad_token_id")
    # Some Llamas have -1 there, which stands for none.
    if type(pad) is int and pad >= 0:
        return True
    present = [folder / file for file in PAD_FILES if (folder / file).is_file()]
    return any(files.read_object(path, limit=PAD_FILE_LIMIT).get("pad_token") for path in present)


def at_hand(name: str) -> Path | None:
    """The folder of a model whose tokenizer is on this machine already; None where it must be fetched.

    Raises:
        ModelError: the name is a file's.
    """
    if name in packaged.PACKAGED:
        found: Path | None = packaged.folder_of(name)
    else:
        found = _local_folder(name) or _cached_folder(name)
    return found if found and (found / "tokenizer.json").is_file() else None


def package(name: str) -> tuple[str, str]:
    """(module, pip requirement) of the Python package that a base comes in; KeyError where it is in none."""
    return packaged.PACKAGED[name].module, packaged.PACKAGED[name].requirement


def load_backbone(base: Base, dtype: torch.dtype, device: torch.device) -> Backbone:
    """The frozen backbone of a base model on disk.

    Raises:
        ModelError: the model is not supported, or its files are damaged.
    """
    config = files.read_object(base.folder / "config.json")
    weights = Weights(base.folder, registry.family_of(config).prefix)
    return registry.build(config, weights, dtype, device)


def check_ids(texts: Sequence[Ids], backbone: Backbone) -> None:
    """Check that the model has an embedding for every token.

    Raises:
        ModelError: the tokenizer is another model's, or tokens were added to it and not to the model.
    """
    largest = max(int(ids.max()) for ids in texts)
    if largest >= len(backbone.tokens):
        raise ModelError(
            f"the tokenizer gives token {largest}, and the model has {len(backbone.tokens)} tokens",
            hint="the tokenizer's files in the folder belong to another model, or to another version of it",
        )


def _is_known(name: str) -> bool:
    """Whether the built-in table speaks for the model that `find` finds under this name."""
    return name in packaged.PACKAGED or (name in KNOWN and _local_folder(name) is None)


def _local_folder(name: str) -> Path | None:
    path = os.path.expanduser(name)
    if os.path.isfile(path):
        raise ModelError(f"{name}: is a file", hint="give the folder that holds config.json and the weights")
    return Path(path) if os.path.isdir(path) else None


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    """The known keys of the model's config.json, checked."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{name}: has no config.json",
            hint="a base model's folder holds config.json, model.safetensors and the tokenizer's files",
        )
    config = files.read_object(folder / "config.json")
    if config.get("quantization_config"):
        raise ModelError(f"{name}: quantized weights are not supported", hint="take the original model")
    try:
        family = registry.family_of(config)
        family.config.from_json(config)
    except ModelError as error:
        raise ModelError(f"{name}: {error.message}", hint=error.hint) from None
    return family.config.known(config)


def _cached_folder(name: str) -> Path | None:
    """The newest folder of a model in the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "tokenizer.json")
    except ValueError:  # the name is no Hub id
        return None
    return Path(found).parent if isinstance(found, str) else None


def _hub_folder(name: str, revision: str | None, patterns: list[str]) -> Path:
    """The Hub's files that match the patterns, in the Hub's own cache folder.

    Where the Hub cannot be asked, what was fetched before serves.
    """
    from huggingface_hub import snapshot_download

    refusal = _ask_hub(name, revision)
    try:
        found = snapshot_download(
            name,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=["*/*"],  # other formats of the same weights stand in sub-folders
            local_files_only=refusal is not None,
        )
    except Exception as error:  # the Hub's client lets through whatever its HTTP library raises
        reason = refusal or error
        if isinstance(reason, hub.MISTAKES):
            raise reason from None
        raise _explained(name, revision, reason) from error
    return Path(found)


def _ask_hub(name: str, revision: str | None) -> Exception | None:
    """Why the Hub does not give this model; None where it does.

    Asked apart from the download, since that would wait without end for a network that is silent.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS)
    except Exception as error:  # as above
        return error
    return None


def _explained(name: str, revision: str | None, error: Exception) -> RankwiseError:
    """What to say of an error of the Hub's client."""
    if refused := _refused(name, revision, error) or hub.disk_error(name, error):
        return refused
    if hub.is_outage(error):
        return Unreachable(
            f"{name}: not a folder here, and the Hub cannot be reached: {hub.reason(error)}",
            hint=f"give a local folder, or use {SMOLLM2}, which needs no Hub; behind a proxy, "
            "set HTTPS_PROXY",
        )
    return ModelError(f"{name}: cannot be fetched: {hub.reason(error)}")


def _refused(name: str, revision: str | None, error: Exception) -> RankwiseError | None:
    """What to say where the Hub, or its client, refuses the name; None where it does not."""
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return ModelError(f"{name}: neither a folder here nor a Hub id", hint="check the spelling")
    if isinstance(error, errors.GatedRepoError):
        return ModelError(f"{name}: closed to you", hint="accept its terms on the Hub, then: hf auth login")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            f"{name}: neither a folder here nor a model on the Hub",
            hint="check the spelling; if it is private: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{name}: has no revision {revision!r} on the Hub")
    return None
