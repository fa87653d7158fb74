"""Checkpoints: the complete training state of a sweep, as JSON and safetensors.

The contents of a checkpoint folder, `RUN/checkpoint/NUMBER`::

    state.json           SweepState: recipe, fingerprint, banks, progress of each adapter, seconds
    state.safetensors    for each adapter in training
        NAME/parameters      (parameters,) float32
        NAME/exp_avg         (parameters,) float32   AdamW's moving averages
        NAME/exp_avg_sq      (parameters,) float32
        NAME/losses          (steps,) float64
        NAME/kept TENSOR     float32, the adapter after its best epoch (with keep = "last", its last)
        NAME/kept logits     (validation texts, classes) float32
    manifest.json        size and SHA-256 of the two files above, written last

Nothing else is needed. Data order and dropout masks are keyed by seed, epoch, step and name, so the number
of steps determines an adapter's random state and its position in the data.

A checkpoint is written under a temporary name, flushed to disk, and renamed, so it is either complete or
absent. The last two are kept.
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

from rankwise.errors import UsageError
from rankwise.schema import Diverged, Trial
from rankwise.store import files
from rankwise.training.state import AdapterState, Kept

SCHEMA = 3
NEWEST = 2
"""Number of checkpoints to keep: the newest, and the previous one in case the newest is damaged."""
STATE, TENSORS, MANIFEST = "state.json", "state.safetensors", "manifest.json"
_FLAT = ("parameters", "exp_avg", "exp_avg_sq")
_KEPT, _KEPT_LOGITS = "kept ", "kept logits"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class BankPlan(_Strict):
    """Adapters that train together."""

    adapters: list[str]
    micro_batches: int = 1  # per batch, with gradient accumulation


class AdapterProgress(_Strict):
    """Progress of an adapter in training; its arrays are in state.safetensors."""

    parameters: int
    steps: int
    validated: int = 0  # steps at the last validation
    kept_epoch: int = 0  # 0: none yet
    kept_score: float = 0.0


class SearchPlan(_Strict):
    """What a search was asked to do, besides its recipe."""

    trials: int | None  # random draws; None: every combination
    places: int  # number of adapters that train at once
    in_waves: bool = False  # rung by rung, instead of in places that are filled again


class SweepState(_Strict):
    """The contents of state.json."""

    schema_version: int = SCHEMA
    recipe: dict[str, Any]
    fingerprint: dict[str, str]  # split or "base" -> SHA-256
    environment: dict[str, str]  # versions, device, precision, threads
    banks: list[BankPlan]
    progress: dict[str, AdapterProgress] = {}  # adapters in training
    diverged: list[Diverged] = []
    search: SearchPlan | None = None  # None: this is a sweep
    trials: list[Trial] = []  # finished trials of tuning or of a search
    trial_banks: list[BankPlan] = []  # the trials in training
    history_bytes: int = 0
    trained_tokens: int = 0
    seconds: dict[str, float] = {}  # stage -> wall seconds so far
    train_seconds: dict[str, float] = {}  # adapter -> seconds so far


@dataclass(frozen=True)
class Checkpoint:
    """Everything a sweep needs to resume as if it had never stopped."""

    state: SweepState
    adapters: dict[str, AdapterState] = field(default_factory=dict)  # those in training


class Damaged(Exception):
    """A checkpoint is incomplete or corrupt; the message says why."""


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Add a checkpoint to a folder of checkpoints, and remove all but the last two.

    If writing fails, the existing checkpoints are left untouched.

    Raises:
        ResourceError: the disk is full.
        UsageError: the checkpoint cannot be written for another reason.
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
    """Load the newest intact checkpoint from a folder of checkpoints.

    Returns:
        The checkpoint, or None if none is intact; and a message for each newer, damaged one.

    Raises:
        UsageError: it has another schema version.
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
    """Load one checkpoint, verifying every byte.

    Raises:
        Damaged: a file is missing, does not match the manifest, or has invalid contents.
        UsageError: it has another schema version.
    """
    content = _verified(path)
    try:
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
        validated=adapter.validated,
        kept_epoch=kept.epoch if kept else 0,
        kept_score=kept.score if kept else 0.0,
    )


def _tensors(adapter: AdapterState) -> dict[str, Tensor]:

    tensors = {name: getattr(adapter, name) for name in _FLAT}
    tensors["losses"] = torch.tensor(adapter.losses, dtype=torch.float64)
    if adapter.kept:
        tensors |= {_KEPT + name: tensor for name, tensor in adapter.kept.tensors.items()}
        tensors[_KEPT_LOGITS] = torch.from_numpy(np.ascontiguousarray(adapter.kept.logits))
    return tensors


def _adapter(name: str, progress: AdapterProgress, tensors: Mapping[str, Tensor]) -> AdapterState:
    """The inverse of `_progress` and `_tensors`."""
    own = {
        key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")
    }
    sizes = dict.fromkeys(_FLAT, progress.parameters) | {"losses": progress.steps}
    for what, size in sizes.items():
        if what not in own or own[what].shape != (size,):
            raise Damaged(f"{name}/{what} must hold {size} numbers")
    kept = None
    if progress.kept_epoch:
        logits = own.pop(_KEPT_LOGITS).numpy()
        stored = {key.removeprefix(_KEPT): value for key, value in own.items() if key.startswith(_KEPT)}
        kept = Kept(progress.kept_epoch, progress.kept_score, stored, logits)
    parameters, exp_avg, exp_avg_sq = (own[what] for what in _FLAT)
    losses = own["losses"].tolist()
    return AdapterState(parameters, exp_avg, exp_avg_sq, losses, progress.validated, kept)


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise Damaged(f"{name} holds values that are not finite")


def _manifest(content: Mapping[str, bytes]) -> bytes:
    entries = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in content.items()
    }
    return json.dumps({"schema_version": SCHEMA, "files": entries}, indent=1, sort_keys=True).encode() + b"\n"


def _verified(path: Path) -> dict[str, bytes]:
    """The contents of the files. The manifest must match them byte for byte.

    Another schema version is no damage: as `Damaged`, the checkpoint would be passed over and later removed.
    """
    try:
        content = {name: (path / name).read_bytes() for name in (STATE, TENSORS)}
        manifest = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise Damaged(f"{Path(error.filename or path).name}: {error.strerror}") from None
    if (version := _version(manifest)) != SCHEMA:
        raise UsageError(
            f"{path}: has schema version {version}, but this rankwise reads version {SCHEMA}",
            hint="resume with the version of rankwise that wrote it, or start the run in a new folder",
        )
    expected = _manifest(content)
    if manifest != expected:
        raise Damaged(_difference(manifest, expected))
    return content


def _version(manifest: bytes) -> int:
    """The schema version in a manifest; this one's if none can be read."""
    try:
        return int(json.loads(manifest)["schema_version"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return SCHEMA


def _difference(manifest: bytes, expected: bytes) -> str:
    try:
        listed, actual = json.loads(manifest)["files"], json.loads(expected)["files"]
        wrong = [name for name in actual if listed[name] != actual[name]]
    except (ValueError, KeyError, TypeError, RecursionError):
        wrong = []
    return f"{wrong[0]} is not the file that was written" if wrong else f"{MANIFEST} cannot be read"


def _numbers(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if len(path.name) == 8 and path.name.isdecimal()]
