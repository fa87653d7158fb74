"""The `compare` command for one or several runs."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from rankwise.commands.run_results import Results
from rankwise.errors import UsageError
from rankwise.report import ranks
from rankwise.report.criteria import criterion
from rankwise.report.run import load
from rankwise.schema import Comparison
from rankwise.store.run_folder import RunFolder


def compare(
    *runs: Results | PathLike[str] | str, metric: str | None = None, margin: float | None = None
) -> dict[str, Comparison]:
    """Compare every pair of ranks within each run, and say which rank is enough.

    Args:
        runs: run folders, or the results of sweeps.
        metric: accuracy, log-loss or macro-f1; by default the one of each run's recipe.
        margin: accepted loss, above 0: a fraction for accuracy and macro-f1 (0.005 by default), in nats per
            text for log-loss (0.01 by default).

    Returns:
        Run folder -> comparison of its ranks, in the order given.

    Raises:
        UsageError: a folder is not a finished run, or the metric or margin is invalid.
    """
    name = None if metric is None else criterion(metric).name
    if margin is not None and not margin > 0:  # no number of texts can show a loss of exactly nothing
        raise UsageError(f"margin {margin:g}: must be above 0")
    folders = [run.folder if isinstance(run, Results) else Path(run) for run in runs]
    return {str(folder): ranks.compare(load(RunFolder(folder)), margin, name) for folder in folders}
