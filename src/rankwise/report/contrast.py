"""Accuracy and log loss side by side: which ranks the log loss separates and accuracy does not."""

from __future__ import annotations

from dataclasses import dataclass

from rankwise.errors import UsageError
from rankwise.report.criteria import CRITERIA
from rankwise.report.ranks import compare, shown, versus_best
from rankwise.report.run import Run
from rankwise.report.tables import Table
from rankwise.schema import Comparison, PairSummary
from rankwise.stats.verdict import LEVEL

UNREADABLE = "The log loss is not compared, because files in the run's folder logits cannot be read."


@dataclass(frozen=True)
class Contrast:
    """The comparison by log loss beside that by accuracy."""

    table: Table | None  # None if the log loss cannot be compared
    text: str  # what the log loss adds to the accuracy, in a few sentences

    def markdown(self) -> str:
        """Table and text as Markdown."""
        if self.table is None:
            return f"{self.text}\n"
        return f"{self.table.title}\n\n{self.table.markdown()}\n{self.table.note}\n\n{self.text}\n"


def contrast(run: Run, known: Comparison) -> Contrast | None:
    """Compare a run's ranks by accuracy and by log loss; None if there is a single rank.

    Args:
        run: a finished run.
        known: a comparison of this run, which is used if it is by one of the two metrics.
    """
    if len(known.ranks) == 1:
        return None
    try:
        accuracy, log_loss = (
            known if known.metric == metric else compare(run, metric=metric)
            for metric in ("accuracy", "log-loss")
        )
    except UsageError:
        return Contrast(None, UNREADABLE)
    return Contrast(_table(accuracy, log_loss), _text(accuracy, log_loss, known))


def _table(accuracy: Comparison, log_loss: Comparison) -> Table:
    """One row per rank: mean, difference to the best, and its interval, by both metrics."""
    cells = [_cells(accuracy), _cells(log_loss)]
    return Table(
        "Accuracy and log loss on the validation texts",
        ("rank", *(name for found in (accuracy, log_loss) for name in _columns(found))),
        [
            (str(each.rank), *(cell for by_rank in cells for cell in by_rank[each.rank]))
            for each in accuracy.ranks
        ],
        note="Accuracy in percent, its differences in points; log loss in nats, lower is better. "
        "95 %: the interval of the difference, adjusted for all pairs of ranks.",
    )


def _columns(found: Comparison) -> tuple[str, str, str]:
    return CRITERIA[found.metric].short, f"minus rank {found.best}", "95 %"


def _cells(found: Comparison) -> dict[int, tuple[str, str, str]]:
    """Rank -> its mean, its difference to the best rank, and the interval of this difference."""
    by = CRITERIA[found.metric]
    pairs = {
        pair.rank if pair.other == found.best else pair.other: versus_best(by, pair, found.best)
        for pair in found.pairs
        if found.best in (pair.rank, pair.other)
    }
    return {each.rank: (shown(by, each.mean), *pairs.get(each.rank, ("", ""))) for each in found.ranks}


def _text(accuracy: Comparison, log_loss: Comparison, known: Comparison) -> str:
    by_places = {(pair.rank, pair.other): pair for pair in accuracy.pairs}
    both = [(by_places[pair.rank, pair.other], pair) for pair in log_loss.pairs if pair.p < LEVEL]
    only = [pair for other, pair in both if other.p >= LEVEL]
    # A higher accuracy is better, a higher log loss is worse.
    contrary = [pair for other, pair in both if other.p < LEVEL and pair.difference * other.difference > 0]
    noun = "ranks" if len(accuracy.seeds) > 1 else "adapters"
    parts = [
        _verdict(accuracy, log_loss),
        _used(accuracy, log_loss, known),
        f"Log loss separates {noun} that accuracy cannot tell apart: {_lower(only)}." if only else "",
        f"Accuracy and log loss contradict each other: although less accurate, {_lower(contrary)}."
        if contrary
        else "",
        ""
        if both and (only or contrary)
        else f"Log loss separates no {noun} that accuracy cannot tell apart.",
    ]
    return " ".join(part for part in parts if part)


def _verdict(accuracy: Comparison, log_loss: Comparison) -> str:
    start = f"By log loss, with a margin of {CRITERIA['log-loss'].metric.amount(log_loss.margin)}"
    if log_loss.headline == accuracy.headline:
        return f"{start}, the verdict is the same as by accuracy."
    if log_loss.enough is None:
        return f"{start}, no rank is shown to be enough."
    return f"{start}: {log_loss.headline}."


def _used(accuracy: Comparison, log_loss: Comparison, known: Comparison) -> str:
    """Which of two different recommendations the report follows."""
    if accuracy.recommended == log_loss.recommended:
        return ""
    return f"The recommended rank, {known.recommended}, is chosen by {CRITERIA[known.metric].short}."


def _lower(pairs: list[PairSummary]) -> str:
    """Such as `rank 8 has a lower log loss than ranks 1 and 2`."""
    beaten: dict[int, list[str]] = {}
    for pair in pairs:
        better, worse = (pair.rank, pair.other) if pair.difference < 0 else (pair.other, pair.rank)
        beaten.setdefault(better, []).append(str(worse))
    return "; ".join(
        f"rank {better} has a lower log loss than {_ranks(worse)}" for better, worse in sorted(beaten.items())
    )


def _ranks(ranks: list[str]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(ranks[:-1])} and {ranks[-1]}"
