"""Finished adapters' logits: `RUN/logits/NAME.safetensors`, split -> (texts, classes) float32.

The file is written after the adapter's folder. Its metadata, a JSON object under the key `rankwise`, holds
everything else that is needed, so that a finished adapter is never trained again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from rankwise.errors import UsageError
from rankwise.models.peft_format import WEIGHTS
from rankwise.store import files
from rankwise.store.run_folder import RunFolder
from rankwise.training.resume import require_same

KEY = "rankwise"


class Facts(BaseModel):
    """The metadata stored with the logits."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str
    kept_epoch: int
    train_loss: float  # mean over all steps
    fingerprint: dict[str, str]  # split or "base" -> SHA-256 of the input
    adapter_sha256: str  # SHA-256 of its adapter_model.safetensors
    sha256: str = ""  # SHA-256 of the logits and of the fields above


@dataclass(frozen=True)
class Outcome:
    """The result of training one adapter to completion."""

    name: str
    kept_epoch: int
    train_loss: float  # mean over all steps
    logits: dict[str, NDArray[np.float32]]  # split -> (texts, classes)


def save(run: RunFolder, outcome: Outcome, fingerprint: Mapping[str, str]) -> None:
    """Save an outcome. The adapter's folder must exist."""
    facts = Facts(
        name=outcome.name,
        kept_epoch=outcome.kept_epoch,
        train_loss=outcome.train_loss,
        fingerprint=dict(fingerprint),
        adapter_sha256=files.sha256(run.adapters / outcome.name / WEIGHTS),
    )
    facts.sha256 = _digest(facts, outcome.logits)
    data = safetensors.numpy.save(dict(outcome.logits), {KEY: facts.model_dump_json()})
    files.write_bytes(_path(run, outcome.name), data)


def load(
    run: RunFolder, name: str, fingerprint: Mapping[str, str], splits: Mapping[str, int], classes: int
) -> Outcome | None:
    """Load a finished adapter's outcome; None if it is missing, or if it or the adapter is damaged.

    Raises:
        UsageError: it was trained on other data or another base.

    Args:
        run: folder of the run.
        name: name of the adapter.
        fingerprint: fingerprint of data and base, which must match the stored one.
        splits: evaluated split -> number of texts.
        classes: number of labels.
    """
    try:
        data = _path(run, name).read_bytes()
        length = int.from_bytes(data[:8], "little")
        logits = safetensors.numpy.load(data)
        facts = Facts.model_validate_json(json.loads(data[8 : 8 + length])["__metadata__"][KEY])
        adapter = files.sha256(run.adapters / name / WEIGHTS)
    except (OSError, ValueError, KeyError, RecursionError, safetensors.SafetensorError):
        return None
    except UsageError:  # the adapter is missing
        return None
    shapes = {split: array.shape for split, array in logits.items()}
    whole = facts.name == name and facts.adapter_sha256 == adapter and facts.sha256 == _digest(facts, logits)
    if whole:
        require_same(fingerprint, facts.fingerprint, run.path)
    intact = whole and (shapes == {split: (texts, classes) for split, texts in splits.items()})
    return Outcome(name, facts.kept_epoch, facts.train_loss, logits) if intact else None


def _path(run: RunFolder, name: str) -> Path:
    return run.logits / f"{name}.safetensors"


def _digest(facts: Facts, logits: Mapping[str, NDArray[np.float32]]) -> str:
    digest = hashlib.sha256(facts.model_dump_json(exclude={"sha256"}).encode())
    for split in sorted(logits):
        digest.update(split.encode() + np.ascontiguousarray(logits[split]).tobytes())
    return digest.hexdigest()
