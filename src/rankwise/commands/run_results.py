"""The results of a finished sweep, with the verdict, for Python."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from rankwise import schema
from rankwise.errors import RankwiseError
from rankwise.report import ranks
from rankwise.report.run import load
from rankwise.report.tables import Table, rank_table
from rankwise.report.verdict import chosen
from rankwise.schema import AdapterResult, Comparison, Metrics
from rankwise.store.run_folder import RunFolder


@dataclass(frozen=True)
class Recommendation:
    """The adapter that a run recommends."""

    rank: int
    """The smallest rank that is shown to be enough, or else the best one."""
    adapter: str
    """Its adapter with the highest validation accuracy, such as `r4-s110`."""
    folder: Path
    """Folder of that adapter."""


class Results(schema.Results):
    """The results of a sweep: the content of results.json, and what follows from it.

    Two results are equal if their results.json is the same, wherever they are.

    >>> results = Results.load("runs/first")  # doctest: +SKIP
    >>> results.recommended.rank, results.recommended.adapter  # doctest: +SKIP
    (4, 'r4-s110')
    """

    _folder: Path = PrivateAttr(default=Path())
    _comparison: Comparison | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, results: schema.Results, folder: PathLike[str] | str) -> Results:
        """The results of the run in a folder."""
        made = cls.model_construct(**{name: getattr(results, name) for name in schema.Results.model_fields})
        made._folder = Path(folder)
        return made

    @classmethod
    def load(cls, folder: PathLike[str] | str) -> Results:
        """Read the results of a finished sweep from its run folder.

        Raises:
            UsageError: this is not a finished run, or its schema version is not supported.
        """
        return cls.of(RunFolder(Path(folder)).read_results(), folder)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self._folder

    @property
    def comparison(self) -> Comparison:
        """All pairs of ranks, compared by validation accuracy with the default margin; read once.

        Raises:
            UsageError: the run folder cannot be read.
        """
        if self._comparison is None:
            self._comparison = ranks.compare(load(RunFolder(self.folder)))
        return self._comparison

    @property
    def verdict(self) -> str:
        """Which rank is enough, and how sure that is, in words."""
        return self.comparison.verdict

    @property
    def recommended(self) -> Recommendation:
        """The recommended rank and adapter. If the verdict is open, the best rank by validation."""
        found = chosen(self, self.comparison)
        return Recommendation(found.rank, found.best.name, RunFolder(self.folder).adapters / found.best.name)

    def to_pandas(self) -> Any:
        """One row per adapter, as a pandas DataFrame. Accuracies, F1 scores and shares are fractions."""
        import pyarrow as pa

        return pa.Table.from_pylist([_row(each) for each in self.adapters]).to_pandas()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, schema.Results) and self.model_dump() == other.model_dump()

    def __repr__(self) -> str:
        return f"Results({str(self.folder)!r}, adapters={[each.name for each in self.adapters]})"

    __str__ = __repr__

    def _repr_html_(self) -> str | None:
        """The verdict and the rank table, for notebooks; None if the run folder cannot be read."""
        try:
            return f"<p>{escape(self.verdict)}</p>\n{_html(rank_table(load(RunFolder(self.folder))))}"
        except RankwiseError:
            return None


def _row(adapter: AdapterResult) -> dict[str, Any]:
    """An adapter as a row of a table: its settings and parameters, then its metrics on each split."""
    of_adapter = adapter.model_dump(exclude={"settings", "validation", "test"})
    settings = {name: value for name, value in adapter.settings.items() if name not in of_adapter}
    splits = {"validation": adapter.validation, "test": adapter.test}
    measured = [_metrics(split, found) for split, found in splits.items() if found]
    return of_adapter | settings | {name: value for each in measured for name, value in each.items()}


def _metrics(split: str, found: Metrics) -> dict[str, Any]:
    names = ("accuracy", "accuracy_low", "accuracy_high", "macro_f1", "log_loss", "ece")
    return {f"{split}_{name}": getattr(found, name) for name in names}


def _html(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in table.rows]
    body = "\n".join(f"<tr>{cells}</tr>" for cells in rows)
    caption, note = escape(table.title), escape(table.note)
    return (
        f"<table>\n<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n<p>{note}</p>"
    )
