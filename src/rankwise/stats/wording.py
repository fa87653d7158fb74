"""The verdict in words: a headline, and a paragraph with the evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from rankwise.stats.verdict import Comparison, Verdict

FEW = 1000
"""Texts below which every verdict by log loss comes with a warning, not only "enough"; docs/concepts.md has
error rates."""
FEW_TEXTS = 400
"""Texts below which the headline calls them few: the 95 % interval of an accuracy of 80 % then extends about
4 points to each side, or more."""


@dataclass(frozen=True)
class Lost:
    """A rank of which not all adapters are compared."""

    rank: int
    diverged: tuple[int, ...]  # seeds of its adapters that diverged
    apart: tuple[int, ...]  # seeds of its adapters that are not compared, because other ranks lack them
    is_compared: bool  # whether any of its adapters is


def headline(found: Verdict, lost: Sequence[Lost] = ()) -> str:
    """The verdict in one line, without a period.

    Args:
        found: the verdict.
        lost: ranks of which adapters were tried, but are not compared.
    """
    main, against = _main(found, lost), _against_baselines(found)
    if len(found.candidates) > 1 and found.recommended is None:
        return f"{main}{_taken(found, against)}"
    if not against:
        return main.removesuffix(",")
    return f"{main} {'and' if against.startswith('beats') else 'but'} {against}"


def _taken(found: Verdict, against: str) -> str:
    """The rank to use if the verdict is open, compared with the baselines; empty if `main` has said it."""
    if not _told_apart(found):
        rank = _the(found, found.chosen, capital=False)
        return f"; {rank}, the smallest, {against}" if against else f"; {rank} is the smallest"
    return f"; it {against}" if against else ""


def explain(found: Verdict, lost: Sequence[Lost] = ()) -> str:
    """The verdict with its evidence, what remains undecided, what would settle it, and what was lost."""
    sentences = [
        headline(found, lost),
        *_evidence(found),
        *_baseline_evidence(found),
        *_passed_over(found),
        *_left_open(found),
        *_few_texts(found),
        *_advice(found),
        *_losses(lost),
        _covers(found, lost),
    ]
    return ". ".join(sentence for sentence in sentences if sentence) + "."


def explain_rates(rates: Mapping[int, float], tuning_texts: int | None, at_edge: Sequence[int] = ()) -> str:
    """The learning rates at which a verdict was reached, and whether they were tuned.

    Args:
        rates: rank -> learning rate; at least two ranks.
        tuning_texts: number of texts on which the rates were chosen; None if they were not tuned.
        at_edge: ranks whose best rate is the lowest or highest that was tried.
    """
    if tuning_texts is None:
        return _untuned(rates)
    where = f"chosen on {tuning_texts:,} texts of train"
    chosen = f"Each rank was trained at its own learning rate, {where}: {_by_rate(rates)}."
    if len(set(rates.values())) == 1:
        shared = next(iter(rates.values()))
        chosen = f"The learning rate of each rank was {where}, and is {shared:g} for all of them."
    return f"{chosen} {_edge(at_edge)}" if at_edge else chosen


def _untuned(rates: Mapping[int, float]) -> str:
    start = f"The ranks were trained at learning rates that were not tuned, {_by_rate(rates)}"
    if len(set(rates.values())) == 1:
        shared = next(iter(rates.values()))
        start = f"All ranks were trained at the learning rate {shared:g}, which was not tuned for each rank"
    return f"{start}: at other rates their order may differ. By default, a sweep tunes the rates."


def _edge(ranks: Sequence[int]) -> str:
    which, verb, better = (
        ("rates", "are", "better ones") if len(ranks) > 1 else ("rate", "is", "a better one")
    )
    return (
        f"The best {which} of {_ranks(ranks, 'and')} {verb} at the edge of those tried: "
        f"{better} may lie beyond."
    )


def _by_rate(rates: Mapping[int, float]) -> str:
    """Such as `rank 1 at 0.01, ranks 4 to 16 at 0.003`; neighbors with the same rate are joined."""
    groups = [(rate, list(ranks)) for rate, ranks in groupby(sorted(rates), key=lambda rank: rates[rank])]
    return ", ".join(f"{_span(ranks)} at {rate:g}" for rate, ranks in groups)


def _span(ranks: Sequence[int]) -> str:
    return _ranks(ranks, "and") if len(ranks) < 3 else f"ranks {ranks[0]} to {ranks[-1]}"


def _main(found: Verdict, lost: Sequence[Lost]) -> str:
    few = f"on only {found.texts:,} validation text{'s' * (found.texts > 1)}" * (found.texts < FEW_TEXTS)
    incomplete = not all(each.is_compared for each in lost)
    if len(found.candidates) == 1:
        what = "is left to judge" if incomplete else "was tried"
        return f"Only rank {found.leader} {what}" + (f", {few}," if few else "")
    if found.recommended is not None or not _told_apart(found):
        main = _decided(found, incomplete) or f"The {_noun(found)}s cannot be told apart"
        return f"{few.capitalize()}, {main[0].lower()}{main[1:]}" if few else main
    return f"Undecided{f' {few}' if few else ''}: {_undecided_rank(found)}"


def _decided(found: Verdict, incomplete: bool) -> str:
    """The rank that the verdict recommends; empty if it is open."""
    if found.recommended is None:
        return ""
    best = f"the best of those {'compared' if incomplete else 'tried'}"
    what = best if found.recommended == found.claims.best else "enough"
    return f"{_the(found, found.recommended)} is {what}"


def _undecided_rank(found: Verdict) -> str:
    """The rank to use if the verdict is open although some ranks are told apart."""
    chosen = _the(found, found.chosen, capital=False)
    if found.chosen == found.leader:
        return f"{chosen} has the best mean"
    return f"{chosen} is the smallest not shown to be worse than rank {found.leader}, which has the best mean"


def _against_baselines(found: Verdict) -> str:
    """Such as `beats A and B, but is not shown to beat C and is worse than D`."""
    beaten = [each for each in found.baselines if each.apart and each.difference > 0]
    better = [each for each in found.baselines if each.apart and each.difference < 0]
    equal = [each for each in found.baselines if not each.apart]
    failed = [
        f"is not shown to beat {_names(equal, 'or')}" if equal else "",
        f"is worse than {_names(better)}" if better else "",
    ]
    parts = [f"beats {_names(beaten)}" if beaten else "", " and ".join(part for part in failed if part)]
    return ", but ".join(part for part in parts if part)


def _evidence(found: Verdict) -> list[str]:
    if len(found.candidates) == 1:
        return ["There is no other rank to compare it with"]
    if found.recommended is None:
        return [_undecided(found)]
    if found.recommended == found.claims.best:
        more = " A larger rank may be better still" if found.recommended == max(found.candidates) else ""
        return [
            f"{_score(found, found.recommended)}, and it is shown to be better than each of the others",
            more[1:],
        ]
    margin = found.metric.amount(found.margin)
    # Rare large losses make log loss err more often than in 5 % of sweeps.
    how = "It is shown to lose" if found.metric.negated else "With 95 % confidence it loses"
    return [
        f"{how} less than {margin} to each of the others",
        f"{_score(found, found.recommended)}, {_gap(found, found.recommended)}",
    ]


def _undecided(found: Verdict) -> str:
    means = {each.rank: each.mean for each in found.ranks if each.rank in found.candidates}
    if len({round(mean, 12) for mean in means.values()}) == 1:
        return f"All have the same {found.metric.name}, {found.metric.level(means[found.leader])}"
    margin = found.metric.amount(found.margin)
    best = "" if _told_apart(found) else f"Rank {found.leader} has the best mean {found.metric.name}, "
    start = best + found.metric.level(means[found.leader]) if best else _score(found, found.leader)
    return f"{start}, but no rank is shown to lose less than {margin} to each of the others"


def _baseline_evidence(found: Verdict) -> list[str]:
    named = [
        f"{each.other}: {_signed(found, each.difference)} ({_ends(found, each)})" for each in found.baselines
    ]
    if not named:
        return []
    return [f"Rank {found.chosen} minus each baseline, with adjusted 95 % interval: {'; '.join(named)}"]


def _passed_over(found: Verdict) -> list[str]:
    ranks = found.claims.passed_over
    if not ranks:
        return []
    verb = "loses" if len(ranks) == 1 else "lose"
    return [f"{_ranks(sorted(ranks), 'and', capital=True)} {verb} more than the margin"]


def _left_open(found: Verdict) -> list[str]:
    if found.recommended is None:
        return []
    smaller = [
        rank for rank in found.candidates if rank < found.recommended and rank not in found.claims.passed_over
    ]
    return [f"Whether {_ranks(smaller, 'or')} is enough too is undecided"] if smaller else []


def _few_texts(found: Verdict) -> list[str]:
    claimed = found.recommended is not None and found.recommended != found.claims.best
    if found.metric.negated and len(found.candidates) > 1 and (found.texts < FEW or claimed):
        texts = f"{found.texts:,} text{'s' * (found.texts > 1)}"
        return [f"With {texts}, rare large losses may be missing from the comparison"]
    if found.advice is None or not found.binary or 1 / found.texts <= found.margin:
        return []
    one, margin = found.metric.amount(1 / found.texts), found.metric.amount(found.margin)
    return [f"One text of {found.texts} counts {one}, more than the margin of {margin}"]


def _advice(found: Verdict) -> list[str]:
    advice = found.advice
    if advice is None:
        return []
    if advice.seeds is None or advice.texts is None:
        margin = found.metric.amount(found.margin)
        return [f"No realistic number of texts and seeds would settle it at a margin of {margin}"]
    wanted = []
    if advice.seeds > found.seeds:
        wanted.append(f"{advice.seeds} seeds")
    if advice.texts > found.texts:
        wanted.append(f"{_round(advice.texts):,} validation texts instead of {found.texts:,}")
    sizes = " and ".join(wanted)
    return [f"If the {_noun(found)}s are equally good, a new sweep with about {sizes} would settle it"]


def _losses(lost: Sequence[Lost]) -> list[str]:
    """What was tried and is not compared, and why."""
    gone = [each.rank for each in lost if each.diverged and not each.is_compared and not each.apart]
    alone = [each.rank for each in lost if each.apart and not each.is_compared]
    partly = [each for each in lost if each.diverged and each.rank not in gone]
    unshared = any(each.apart for each in lost if each.is_compared)
    return [
        f"{_ranks(gone, 'and', capital=True)} {_was(gone)} tried too, but diverged" if gone else "",
        *(
            f"Rank {each.rank} lost {_seeds(each.diverged, 'the adapter', 'the adapters')}, which diverged"
            for each in partly
        ),
        f"{_ranks(alone, 'and', capital=True)} {_was(alone)} trained too, but not with the seeds that the "
        "others share, and cannot be compared"
        if alone
        else "",
        "The comparison is by the seeds that all of its ranks have" if unshared else "",
    ]


def _was(ranks: Sequence[int]) -> str:
    return "was" if len(ranks) == 1 else "were"


def _seeds(seeds: Sequence[int], one: str, several: str) -> str:
    """Such as `the adapter of seed 7` or `the adapters of seeds 7 and 8`."""
    listed = joined(seeds)
    return f"{one} of seed {listed}" if len(seeds) == 1 else f"{several} of seeds {listed}"


def _covers(found: Verdict, lost: Sequence[Lost]) -> str:
    if found.seeds > 1:
        sampled = "Texts and seeds were treated as random samples; other training sets were not tried"
        if any(each.diverged and each.is_compared for each in lost):
            return f"{sampled}, and seeds that diverge are left out, which favors their rank"
        return sampled
    once = "One seed is compared" if any(each.apart for each in lost) else "One seed was trained"
    if len(found.candidates) == 1:
        return f"{once}, so this speaks of this adapter and not of its rank"
    return (
        f"{once}, so this speaks of these adapters and not of their ranks; "
        "train several seeds to compare ranks"
    )


def _told_apart(found: Verdict) -> bool:
    return any(pair.apart and {pair.rank, pair.other} <= set(found.candidates) for pair in found.pairs)


def _noun(found: Verdict) -> str:
    return "rank" if found.seeds > 1 else "adapter"


def _the(found: Verdict, rank: int, capital: bool = True) -> str:
    name = f"rank {rank}" if found.seeds > 1 else f"the rank {rank} adapter"
    return name[0].upper() + name[1:] if capital else name


def _score(found: Verdict, rank: int) -> str:
    mean = next(each.mean for each in found.ranks if each.rank == rank)
    return f"Its {found.metric.name} is {found.metric.level(mean)}"


def _gap(found: Verdict, rank: int) -> str:
    means = {each.rank: each.mean for each in found.ranks}
    if rank == found.leader:
        return "the best mean"
    gap = _signed(found, means[rank] - means[found.leader])
    return f"{gap} from rank {found.leader}, which has the best mean"


def _signed(found: Verdict, value: float) -> str:
    return f"{found.metric.change(value)} {found.metric.unit}"


def _ends(found: Verdict, each: Comparison) -> str:
    """The ends of an interval in the metric's own direction, such as `-0.20 to +0.10`."""
    low, high = (each.high, each.low) if found.metric.negated else (each.low, each.high)
    return f"{found.metric.change(low)} to {found.metric.change(high)}"


def _ranks(ranks: Sequence[int], word: str, capital: bool = False) -> str:
    several = "s" * (len(ranks) > 1 and word == "and")
    return f"{'R' if capital else 'r'}ank{several} {joined(ranks, word)}"


def _names(baselines: Sequence[Comparison], word: str = "and") -> str:
    return joined([each.other for each in baselines], word)


def joined(items: Sequence[object], word: str = "and") -> str:
    """The items as an enumeration.

    >>> joined([1, 2, 4]), joined(["a", "b"], "or"), joined(["a"])
    ('1, 2 and 4', 'a or b', 'a')
    """
    words = [str(item) for item in items]
    return f" {word} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _round(texts: int) -> int:
    """Round up to two significant digits."""
    step: int = 10 ** max(0, len(str(texts)) - 2)
    return -(-texts // step) * step
