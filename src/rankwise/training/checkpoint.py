"""Checkpoints: the whole state of a sweep in training, as JSON and safetensors.

A checkpoint is a folder `RUN/checkpoint/NUMBER` with three files: `state.json`,
`state.safetensors`, and `manifest.json`, which holds the size and SHA-256 of the other two and is
written last. The folder is filled under another name, flushed to the disk, and renamed, so it is
there whole or not at all; the last two are kept. Data order and dropout masks are keyed by seed,
epoch, step and target module, so an adapter's number of steps is its random state and its place in the data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from rankwise.schema import Diverged
from rankwise.store import files

SCHEMA = 1
KEPT = 2
"""Checkpoints that are kept: the newest, and the one before in case the newest is damaged."""
STATE, TENSORS, MANIFEST = "state.json", "state.safetensors", "manifest.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class BankPlan(_Strict):
    """Adapters that train together."""

    adapters: list[str]
    micro_batches: int = 1  # that a batch is split into, its gradients added up


class AdapterProgress(_Strict):
    """How far an adapter has come that is not finished; its numbers lie among the tensors."""

    parameters: int
    steps: int
    epochs: int = 0  # validated
    kept_epoch: int = 0  # 0: none yet
    kept_accuracy: float = 0.0


class JobState(_Strict):
    """state.json."""

    schema_version: int = SCHEMA
    recipe: dict[str, Any]
    fingerprint: dict[str, str]  # split or "base" -> SHA-256
    environment: dict[str, str]  # versions, device, precision, threads
    banks: list[BankPlan]
    progress: dict[str, AdapterProgress] = {}  # adapters that were begun and are not finished
    diverged: list[Diverged] = []
    history_bytes: int = 0
    trained_tokens: int = 0
    seconds: dict[str, float] = {}  # stage -> wall seconds so far
    train_seconds: dict[str, float] = {}  # adapter -> seconds so far


@dataclass(frozen=True)
class Checkpoint:
    """What a sweep needs to go on as if it had never stopped."""

    state: JobState
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """`ADAPTER/what`: parameters, mean, square (parameters,) float32; losses (steps,) float64; what was kept."""


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
    content = {
        STATE: checkpoint.state.model_dump_json(indent=1).encode() + b"\n",
        TENSORS: safetensors.torch.save(checkpoint.tensors),
    }
    with files.new_folder(target) as new:
        for name, data in content.items():
            files.write_bytes(new / name, data)
        files.write_bytes(new / MANIFEST, _manifest(content))
    for number in sorted(numbers)[: len(numbers) + 1 - KEPT]:
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
        state = JobState.model_validate_json(content[STATE])
        tensors = safetensors.torch.load(content[TENSORS])
    except (ValidationError, safetensors.SafetensorError, ValueError, KeyError) as error:
        raise Damaged(f"cannot be read: {str(error).splitlines()[0]}") from None
    if state.schema_version != SCHEMA:
        raise Damaged(f"schema version {state.schema_version}, and this version of rankwise reads {SCHEMA}")
    _check_tensors(state, tensors)
    return Checkpoint(state, tensors)


def _check_tensors(state: JobState, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise Damaged(f"{name} holds what is no finite number")
    for adapter, progress in state.progress.items():
        sizes = dict.fromkeys(("parameters", "exp_avg", "exp_avg_sq"), progress.parameters) | {
            "losses": progress.steps
        }
        for what, size in sizes.items():
            found = tensors.get(f"{adapter}/{what}")
            if found is None or found.shape != (size,):
                raise Damaged(f"{adapter}/{what} must hold {size} numbers")


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
