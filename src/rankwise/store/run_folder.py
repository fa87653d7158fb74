"""Layout of a run folder, and access to results.json, timing.json and search.json."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from rankwise.errors import UsageError, either
from rankwise.paths import expanded
from rankwise.schema import SCHEMA, Results, SearchResults, Timing, Versioned

M = TypeVar("M", bound=BaseModel)


class RunFolder:
    """Paths of the files of a run."""

    def __init__(self, path: Path | str) -> None:
        self.path = expanded(path)
        self.recipe = self.path / "recipe.toml"
        self.results = self.path / "results.json"
        self.search = self.path / "search.json"
        self.timing = self.path / "timing.json"
        self.history = self.path / "history.jsonl"
        self.predictions = self.path / "predictions.csv"
        self.data = self.path / "data.json"
        self.tables = self.path / "data"  # texts and labels of a run whose data was in memory
        self.table = self.path / "table.md"
        self.samples = self.path / "samples.md"
        self.adapters = self.path / "adapters"
        self.exports = self.path / "exports"
        self.logits = self.path / "logits"
        self.checkpoint = self.path / "checkpoint"
        self.merged = self.path / "merged.json"  # of a run merged from others

    def is_begun(self) -> bool:
        """Whether a sweep was started here."""
        return self.recipe.exists()

    def require_begun(self) -> None:
        """Check that there is a sweep to resume.

        Raises:
            UsageError: there is none, or it has another schema version.
        """
        if not self.is_begun():
            raise UsageError(
                f"{self.path}: nothing to resume: no sweep was started here",
                hint=f"run the command without {either('--resume', 'resume=True')}",
            )
        self.require_known_schema()

    def is_complete(self) -> bool:
        """Whether a sweep was completed here."""
        return self.results.exists() and not self.checkpoint.exists()

    def has_known_schema(self) -> bool:
        """Whether results.json, if it exists, has the supported schema version."""
        return not self.results.exists() or _version(self.results) in (SCHEMA, None)

    def require_known_schema(self) -> None:
        """Check the schema version of results.json, if it exists.

        Raises:
            UsageError: the version is not supported.
        """
        if not self.has_known_schema():
            raise _other_schema(self.results, _version(self.results))

    def read_results(self) -> Results:
        """The finished run's results.

        Raises:
            UsageError: this is not a finished run, or its schema version is not supported.
        """
        return self._read(self.results, Results)

    def read_timing(self) -> Timing:
        """The finished run's wall times.

        Raises:
            UsageError: this is not a finished run, or its schema version is not supported.
        """
        return self._read(self.timing, Timing)

    def read_search(self) -> SearchResults:
        """The finished search's results.

        Raises:
            UsageError: this is not a finished search, or its schema version is not supported.
        """
        return self._read(self.search, SearchResults)

    def _read(self, path: Path, model: type[M]) -> M:
        try:
            text = path.read_text("utf-8")
            version = Versioned.model_validate_json(text).schema_version
            if version != SCHEMA:
                raise _other_schema(path, version)
            return model.model_validate_json(text)
        except FileNotFoundError:
            raise UsageError(
                f"{self.path}: no {path.name}: this is not a finished run",
                hint="pass a folder such as runs/NAME",
            ) from None
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot be read: {error}") from None


def _version(path: Path) -> int | None:
    """Schema version of a JSON file; None if it cannot be read."""
    try:
        return Versioned.model_validate_json(path.read_text("utf-8")).schema_version
    except (OSError, ValidationError, UnicodeDecodeError):
        return None


def _other_schema(path: Path, version: int | None) -> UsageError:
    return UsageError(
        f"{path}: has schema version {version}, but this rankwise reads version {SCHEMA}",
        hint="rerun the sweep into a new folder, or use the version of rankwise that wrote this one",
    )


def command(*words: object) -> str:
    """A rankwise command that the user can paste into a shell.

    >>> command("report", "my runs/first")
    "rankwise report 'my runs/first'"
    """
    return shlex.join(["rankwise", *map(str, words)])


def slug(text: str) -> str:
    """A folder name derived from a data or model name.

    >>> slug("dair-ai/emotion")
    'dair-ai-emotion'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "run"
