"""What a finished run says, for people who follow it in Python."""

from __future__ import annotations

from pathlib import Path

from rankwise.report import ranks, search
from rankwise.report.run import load
from rankwise.report.verdict import chosen
from rankwise.store.run_folder import RunFolder


def outcome(folder: Path) -> list[str]:
    """The verdict of a finished run, or the conclusions of a search; then where it is, and how to use it.

    Raises:
        UsageError: the run is not finished, or one of its files cannot be read.
    """
    run = RunFolder(folder)
    if run.search.exists():
        found = run.read_search()
        return [*search.sentences(found), *_where(run, "search.md", found.best)]
    finished = load(run)
    comparison = ranks.compare(finished)
    best = chosen(finished.results, comparison).best.name
    return [comparison.verdict, *_where(run, "report.html", best)]


def _where(run: RunFolder, page: str, adapter: str) -> list[str]:
    return [
        f"written to {run.path}; to read: {run.path / page}",
        f"Classifier.load({str(run.adapters / adapter)!r})",
    ]
