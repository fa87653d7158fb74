"""Read tensors from a model folder's safetensors files, memory-mapped, one tensor at a time.

Pickled weights are never opened, because unpickling can run arbitrary code.
"""

from __future__ import annotations

import hashlib
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
INDEX_LIMIT = 1 << 24  # bytes; the index of a model with 400 billion parameters has 0.1 MB
SHARD = re.compile(r"\w[\w.-]*\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
DTYPES = ("BF16", "F16", "F32", "F64")
LARGEST = torch.finfo(torch.bfloat16).max
"""Largest number that is finite in every precision of matrix products. float64 has larger ones."""
HINT = "rankwise reads safetensors only; convert with transformers: from_pretrained(...).save_pretrained(...)"


class Weights(Mapping[str, Tensor]):
    """The tensors in a model folder, by their names in transformers' base model.

    The backbone's prefix is removed from names that have it. Heads such as `lm_head.weight` keep their names.

    Args:
        folder: contains model.safetensors, or shards and model.safetensors.index.json.
        prefix: name of the backbone inside transformers' classifier.

    Raises:
        ModelError: there are no safetensors files, or a file is missing or damaged.
    """

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.folder = folder
        self._digests: dict[str, str] = {}  # name -> SHA-256 of a tensor that was taken
        self._where: dict[str, tuple[Any, str]] = {}  # name -> open file, name in the file
        for shard, names in _shards(folder).items():
            file = _open(folder / shard)
            stored = dict.fromkeys(sorted(file.keys()))
            for full in stored if names is None else names:
                if full not in stored:
                    raise ModelError(f"{folder / shard}: lacks the tensor {full}, which {INDEX} lists")
                short = full.removeprefix(f"{prefix}.")
                if self._where.setdefault(short, (file, full)) != (file, full):
                    raise ModelError(f"{folder}: contains the tensor {short} twice")

    def __getitem__(self, name: str) -> Tensor:
        """The tensor as stored, on the CPU.

        Raises:
            KeyError: there is no tensor with this name.
        """
        file, full = self._where[name]
        tensor: Tensor = file.get_tensor(full)
        return tensor

    def __iter__(self) -> Iterator[str]:
        """Iterate over tensor names."""
        return iter(self._where)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._where)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The validated tensor in its stored floating-point dtype, on the CPU.

        Shape and dtype are checked in the file header before anything is allocated.

        Raises:
            ModelError: the tensor is missing, has another shape, is quantized, or has values that are not
                finite in every supported precision.
        """
        if name not in self._where:
            raise ModelError(f"{self.folder}: lacks the tensor {name}, of shape {shape}")
        file, full = self._where[name]
        header = file.get_slice(full)
        if (found := tuple(header.get_shape())) != shape:
            raise ModelError(f"{self.folder}: the tensor {name} has shape {found}, expected {shape}")
        # Quantized values are meaningless without their scales.
        if (dtype := header.get_dtype()) not in DTYPES:
            raise ModelError(
                f"{self.folder}: the tensor {name} is {dtype}; quantized weights are not supported",
                hint="use the model in bfloat16, float16 or float32",
            )
        tensor = self[name]
        if not is_finite(tensor):
            raise ModelError(
                f"{self.folder}: the tensor {name} has non-finite values, or numbers above {LARGEST:.2g}",
                hint="the file is damaged, or the model's training diverged; use another copy",
            )
        digest = hashlib.sha256(f"{name} {dtype} {shape} ".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        self._digests[name] = digest.hexdigest()
        return tensor

    def digest(self) -> str:
        """SHA-256 hex digest of the tensors taken so far: names, dtypes, shapes and values.

        It does not depend on their order, on the files that they are in, or on tensors that were not taken.
        """
        parts = "".join(self._digests[name] for name in sorted(self._digests))
        return hashlib.sha256(parts.encode()).hexdigest()


def is_finite(tensor: Tensor) -> bool:
    """Whether all values of a floating-point tensor are finite in float32 and bfloat16."""
    low, high = tensor.aminmax()  # NaN if any value is
    return float(low) >= -LARGEST and float(high) <= LARGEST


def _shards(folder: Path) -> dict[str, list[str] | None]:
    """File name -> names of its tensors to read; None for all."""
    if (folder / SINGLE).is_file():
        return {SINGLE: None}
    if not (folder / INDEX).is_file():
        raise ModelError(f"{folder}: {_absent(folder)}", hint=HINT)
    entries = read_object(folder / INDEX, limit=INDEX_LIMIT).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise ModelError(f"{folder / INDEX}: has no weight_map")
    shards: dict[str, list[str]] = {}
    for name, shard in entries.items():
        # A path could escape the folder.
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise ModelError(f"{folder / INDEX}: {shard!r} is not the name of a safetensors file")
        shards.setdefault(shard, []).append(name)
    return {**shards}


def _absent(folder: Path) -> str:
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
    return f"has only pickled weights ({pickles[0]}), no {SINGLE}" if pickles else f"has no {SINGLE}"


def _open(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"{path}: no such file, but {INDEX} lists it")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: truncated or damaged: {error}",
            hint="download it again; a file of a few hundred bytes is a git-lfs pointer, not weights",
        ) from None
