"""A run folder: the names of its files, and the schema of results.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from rankwise.errors import UsageError

SCHEMA = 1


class AdapterResult(BaseModel):
    """One row of results.json."""

    name: str  # of its folder under adapters/
    rank: int
    seed: int
    alpha: float
    scale: float
    trainable_params: int
    total_params: int
    trainable_percent: float
    merged_params: int
    bank: int  # which pass trained it, from 1
    train_seconds: float  # of its bank, validation left out, divided by the bank's adapters
    train_loss: float  # mean over all steps
    kept_epoch: int
    validation: dict[str, Any]  # `evaluate.Metrics`
    test: dict[str, Any] | None


class Results(BaseModel):
    """results.json."""

    schema_version: int = SCHEMA
    rankwise: str  # version
    created: str  # ISO 8601, UTC
    base: str
    labels: list[str]
    texts: dict[str, int]  # split -> texts
    notes: list[str]  # what was said about the data
    device: str
    precision: str
    threads: int
    versions: dict[str, str]
    seconds: dict[str, float]  # stage -> wall seconds
    tokens_per_second: float  # trained tokens, over the training seconds
    adapters: list[AdapterResult]


class RunFolder:
    """Where a run keeps what."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.toml"
        self.results = self.path / "results.json"
        self.history = self.path / "history.jsonl"
        self.predictions = self.path / "predictions.csv"
        self.table = self.path / "table.md"
        self.samples = self.path / "samples.md"
        self.adapters = self.path / "adapters"

    def read_results(self) -> Results:
        """The finished run's results.

        Raises:
            UsageError: this is no finished run.
        """
        try:
            return Results.model_validate_json(self.results.read_text("utf-8"))
        except FileNotFoundError:
            raise UsageError(
                f"{self.path}: no results.json: this is no finished run",
                hint="give a folder such as runs/NAME",
            ) from None
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            raise UsageError(f"{self.results}: cannot be read: {error}") from None


def slug(text: str) -> str:
    """A folder name made of a data or model name.

    >>> slug("dair-ai/emotion")
    'dair-ai-emotion'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "run"
