"""Checkpoints: the whole state of a sweep in training, as JSON and safetensors.

What is saved, in a folder `RUN/checkpoint/NUMBER`::

    state.json           SweepState: recipe, fingerprint, banks, how far each adapter has come, seconds
    state.safetensors    for each adapter in training
        NAME/parameters      (parameters,) float32
        NAME/exp_avg         (parameters,) float32   AdamW's moving averages
        NAME/exp_avg_sq      (parameters,) float32
        NAME/losses          (steps,) float64
        NAME/kept TENSOR     float32, the adapter as it was after the epoch that is kept
        NAME/kept logits     (validation texts, classes) float32
    manifest.json        size and SHA-256 of the two files above, written last

Nothing else is needed. Data order and dropout masks are keyed by seed, epoch, step and name, so an
adapter's number of steps is its random state and its place in the data.

The folder is filled under another name, flushed to the disk, and renamed, so it is there whole or not at all.
The last two are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from rankwise.schema import Diverged
from rankwise.store import files
from rankwise.training.state import AdapterState, Kept

SCHEMA = 2
NEWEST = 2
"""Checkpoints that stay: the newest, and the one before in case the newest is damaged."""
STATE, TENSORS, MANIFEST = "state.json", "state.safetensors", "manifest.json"
_FLAT = ("parameters", "exp_avg", "exp_avg_sq")
_KEPT, _KEPT_LOGITS = "kept ", "kept logits"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class BankPlan(_Strict):
    """Adapters that train together."""

    adapters: list[str]
    micro_batches: int = 1  # that a batch is split into, its gradients added up


class AdapterProgress(_Strict):
    """How far an adapter in training has come; its numbers lie among the tensors."""

    parameters: int
    steps: int
    epochs: int = 0  # validated
    kept_epoch: int = 0  # 0: none yet
    kept_accuracy: float = 0.0


class SweepState(_Strict):
    """state.json."""

    schema_version: int = SCHEMA
    recipe: dict[str, Any]
    fingerprint: dict[str, str]  # split or "base" -> SHA-256
    environment: dict[str, str]  # versions, device, precision, threads
    banks: list[BankPlan]
    progress: dict[str, AdapterProgress] = {}  # adapters in training
    diverged: list[Diverged] = []
    history_bytes: int = 0
    trained_tokens: int = 0
    seconds: dict[str, float] = {}  # stage -> wall seconds so far
    train_seconds: dict[str, float] = {}  # adapter -> seconds so far


@dataclass(frozen=True)
class Checkpoint:
    """What a sweep needs to go on as if it had never stopped."""

    state: SweepState
    adapters: dict[str, AdapterState] = field(default_factory=dict)  # those in training


class Damaged(Exception):
    """A checkpoint that is not whole; the message says why."""


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Add a checkpoint to a folder of checkpoints, and remove all but the last two.

    Raises:
        ResourceError: the disk is full; the checkpoints that were there are left alone.
        UsageError: it cannot be written for another reason; likewise.
    """
    numbers = _numbers(folder)
    target = folder / f"{1 + max(numbers, default=0):08d}"
    progress = {name: _progress(adapter) for name, adapter in checkpoint.adapters.items()}
    state = checkpoint.state.model_copy(update={"progress": progress})
    tensors = {
        f"{name}/{what}": tensor
        for name, adapter in checkpoint.adapters.items()
        for what, tensor in _tensors(adapter).items()
    }
    content = {
        STATE: state.model_dump_json(indent=1).encode() + b"\n",
        TENSORS: safetensors.torch.save(tensors),
    }
    with files.new_folder(target) as new:
        for name, data in content.items():
            files.write_bytes(new / name, data)
        files.write_bytes(new / MANIFEST, _manifest(content))
    for number in sorted(numbers)[: len(numbers) + 1 - NEWEST]:
        files.remove(folder / f"{number:08d}")


def load_last(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint in a folder of checkpoints, and what is wrong with those after it.

    Returns:
        None where there is no whole one; a line for each that is damaged.
    """
    complaints: list[str] = []
    for number in sorted(_numbers(folder), reverse=True):
        path = folder / f"{number:08d}"
        try:
            return load(path), complaints
        except Damaged as why:
            complaints.append(f"{path} is damaged and not used: {why}")
    return None, complaints


def load(path: Path) -> Checkpoint:
    """One checkpoint, every byte of it checked.

    Raises:
        Damaged: a file is missing, is not what the manifest says, or holds what no sweep would write.
    """
    content = _verified(path)
    try:
        version = json.loads(content[STATE])["schema_version"]
        if version != SCHEMA:
            raise Damaged(f"schema version {version}, and this version of rankwise reads {SCHEMA}")
        state = SweepState.model_validate_json(content[STATE])
        tensors = safetensors.torch.load(content[TENSORS])
        _check_finite(tensors)
        adapters = {name: _adapter(name, progress, tensors) for name, progress in state.progress.items()}
    except (ValidationError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"cannot be read: {str(error).splitlines()[0]}") from None
    return Checkpoint(state, adapters)


def _progress(adapter: AdapterState) -> AdapterProgress:
    kept = adapter.kept
    return AdapterProgress(
        parameters=len(adapter.parameters),
        steps=adapter.steps,
        epochs=adapter.epochs,
        kept_epoch=kept.epoch if kept else 0,
        kept_accuracy=kept.accuracy if kept else 0.0,
    )


def _tensors(adapter: AdapterState) -> dict[str, Tensor]:
    found = {name: getattr(adapter, name) for name in _FLAT}
    found["losses"] = torch.tensor(adapter.losses, dtype=torch.float64)
    if adapter.kept:
        found |= {_KEPT + name: tensor for name, tensor in adapter.kept.tensors.items()}
        found[_KEPT_LOGITS] = torch.from_numpy(np.ascontiguousarray(adapter.kept.logits))
    return found


def _adapter(name: str, progress: AdapterProgress, tensors: Mapping[str, Tensor]) -> AdapterState:
    """The state that `_progress` and `_tensors` were made of."""
    mine = {
        key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")
    }
    sizes = dict.fromkeys(_FLAT, progress.parameters) | {"losses": progress.steps}
    for what, size in sizes.items():
        if what not in mine or mine[what].shape != (size,):
            raise Damaged(f"{name}/{what} must hold {size} numbers")
    kept = None
    if progress.kept_epoch:
        logits = mine.pop(_KEPT_LOGITS).numpy()
        stored = {key.removeprefix(_KEPT): value for key, value in mine.items() if key.startswith(_KEPT)}
        kept = Kept(progress.kept_epoch, progress.kept_accuracy, stored, logits)
    parameters, exp_avg, exp_avg_sq = (mine[what] for what in _FLAT)
    losses = mine["losses"].tolist()
    return AdapterState(parameters, exp_avg, exp_avg_sq, losses, progress.epochs, kept)


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise Damaged(f"{name} holds what is no finite number")


def _manifest(content: Mapping[str, bytes]) -> bytes:
    entries = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in content.items()
    }
    return json.dumps({"schema_version": SCHEMA, "files": entries}, indent=1, sort_keys=True).encode() + b"\n"


def _verified(path: Path) -> dict[str, bytes]:
    """The files' contents. The manifest must be, byte for byte, what would be written for them."""
    try:
        content = {name: (path / name).read_bytes() for name in (STATE, TENSORS)}
        manifest = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise Damaged(f"{Path(error.filename or path).name}: {error.strerror}") from None
    expected = _manifest(content)
    if manifest != expected:
        raise Damaged(_difference(manifest, expected))
    return content


def _difference(manifest: bytes, expected: bytes) -> str:
    try:
        listed, found = json.loads(manifest)["files"], json.loads(expected)["files"]
        wrong = [name for name in found if listed[name] != found[name]]
    except (ValueError, KeyError, TypeError, RecursionError):
        wrong = []
    return f"{wrong[0]} is not the file that was written" if wrong else f"{MANIFEST} cannot be read"


def _numbers(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if len(path.name) == 8 and path.name.isdecimal()]
