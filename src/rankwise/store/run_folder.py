"""A run folder: the names of its files, and the schemas of results.json and timing.json.

results.json is the same, byte for byte, whenever the same recipe is run on the same machine; what
differs from run to run, the seconds above all, stands in timing.json.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from rankwise.errors import UsageError
from rankwise.schema import Results, Timing

M = TypeVar("M", bound=BaseModel)


class RunFolder:
    """Where a run keeps what."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.toml"
        self.results = self.path / "results.json"
        self.timing = self.path / "timing.json"
        self.history = self.path / "history.jsonl"
        self.predictions = self.path / "predictions.csv"
        self.data = self.path / "data.json"
        self.table = self.path / "table.md"
        self.samples = self.path / "samples.md"
        self.adapters = self.path / "adapters"
        self.logits = self.path / "logits"
        self.checkpoint = self.path / "checkpoint"

    def is_begun(self) -> bool:
        """Whether a sweep was begun here."""
        return self.recipe.exists()

    def require_begun(self) -> None:
        """Check that there is a sweep to go on with.

        Raises:
            UsageError: there is none.
        """
        if not self.is_begun():
            raise UsageError(
                f"{self.path}: nothing to resume: no sweep was begun here",
                hint="give the command without --resume",
            )

    def is_complete(self) -> bool:
        """Whether a sweep was brought to its end here."""
        return self.results.exists() and not self.checkpoint.exists()

    def read_results(self) -> Results:
        """The finished run's results.

        Raises:
            UsageError: this is no finished run.
        """
        return self._read(self.results, Results)

    def read_timing(self) -> Timing:
        """How long the finished run took.

        Raises:
            UsageError: this is no finished run.
        """
        return self._read(self.timing, Timing)

    def _read(self, path: Path, model: type[M]) -> M:
        try:
            return model.model_validate_json(path.read_text("utf-8"))
        except FileNotFoundError:
            raise UsageError(
                f"{self.path}: no {path.name}: this is no finished run",
                hint="give a folder such as runs/NAME",
            ) from None
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot be read: {error}") from None


def slug(text: str) -> str:
    """A folder name made of a data or model name.

    >>> slug("dair-ai/emotion")
    'dair-ai-emotion'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "run"
