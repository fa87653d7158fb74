"""The tensors of a model folder: safetensors only, mapped into memory, one tensor read at a time.

Pickled weights are never opened: a pickle can run code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankwise.errors import ModelError
from rankwise.store.files import read_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
INDEX_LIMIT = 1 << 24  # bytes; the index of a model of 400 billion parameters has 0.1 MB
SHARD = re.compile(r"\w[\w.-]*\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
DTYPES = ("BF16", "F16", "F32", "F64")
HINT = "rankwise reads safetensors only; convert with transformers: from_pretrained(...).save_pretrained(...)"


class Weights(Mapping[str, Tensor]):
    """The tensors in a model folder, by their names in transformers' base model.

    What transformers puts before them is left out, as far as the file has it. Heads such as `lm_head.weight`
    have no such prefix and keep their names.

    Args:
        folder: holds model.safetensors, or shards and model.safetensors.index.json.
        prefix: what transformers calls the backbone inside its classifier.

    Raises:
        ModelError: there are no safetensors, or a file is missing or damaged.
    """

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.folder = folder
        self._where: dict[str, tuple[Any, str]] = {}  # name -> open file, name in the file
        for shard, names in _shards(folder).items():
            file = _open(folder / shard)
            stored = dict.fromkeys(sorted(file.keys()))
            for full in stored if names is None else names:
                if full not in stored:
                    raise ModelError(f"{folder / shard}: lacks the tensor {full}, which {INDEX} says it has")
                short = full.removeprefix(f"{prefix}.")
                if self._where.setdefault(short, (file, full)) != (file, full):
                    raise ModelError(f"{folder}: holds the tensor {short} twice")

    def __getitem__(self, name: str) -> Tensor:
        """The tensor as it is stored, on the CPU.

        Raises:
            KeyError: there is none of this name.
        """
        file, full = self._where[name]
        tensor: Tensor = file.get_tensor(full)
        return tensor

    def __iter__(self) -> Iterator[str]:
        """Every tensor's name."""
        return iter(self._where)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._where)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor, checked, in the floating-point type in which it is stored, on the CPU.

        Shape and type are read from the file's header, before anything is allocated.

        Raises:
            ModelError: there is none of this name, or it has another shape, or holds quantized numbers
                or such that are not finite.
        """
        if name not in self._where:
            raise ModelError(f"{self.folder}: lacks the tensor {name}, of shape {shape}")
        file, full = self._where[name]
        header = file.get_slice(full)
        if (found := tuple(header.get_shape())) != shape:
            raise ModelError(f"{self.folder}: the tensor {name} has shape {found}, expected was {shape}")
        # Without their scales, 8-bit numbers are other numbers.
        if (dtype := header.get_dtype()) not in DTYPES:
            raise ModelError(
                f"{self.folder}: the tensor {name} is {dtype}; quantized weights are not supported",
                hint="take the model in bfloat16, float16 or float32",
            )
        tensor = self[name]
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"{self.folder}: the tensor {name} holds numbers that are not finite",
                hint="the file is damaged, or the model's training diverged; take another copy of it",
            )
        return tensor


def _shards(folder: Path) -> dict[str, list[str] | None]:
    """File name -> names of the tensors to read from it; None for all."""
    if (folder / SINGLE).is_file():
        return {SINGLE: None}
    if not (folder / INDEX).is_file():
        raise ModelError(f"{folder}: {_absent(folder)}", hint=HINT)
    entries = read_object(folder / INDEX, limit=INDEX_LIMIT).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise ModelError(f"{folder / INDEX}: has no weight_map")
    shards: dict[str, list[str]] = {}
    for name, shard in entries.items():
        # A path could lead out of the folder, to any file of this machine.
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise ModelError(f"{folder / INDEX}: {shard!r} is not the name of a safetensors file")
        shards.setdefault(shard, []).append(name)
    return {**shards}


def _absent(folder: Path) -> str:
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
    return f"has pickled weights only ({pickles[0]}), no {SINGLE}" if pickles else f"has no {SINGLE}"


def _open(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"{path}: no such file, though {INDEX} names it")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: truncated or damaged: {error}",
            hint="download it again; a file of a few hundred bytes is a git-lfs pointer, not weights",
        ) from None
