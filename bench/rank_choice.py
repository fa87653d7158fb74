"""Ways of choosing LoRA's rank, compared on real texts with a real model at the same budget.

The methods are those of `bench.rank_methods`. Each has the same texts, the same number of steps, and the same
number of tuning runs: one for each learning rate of a grid, with the first seed. A tuning run trains on four
fifths of the training texts. The rate with the lowest log loss on the other fifth, the tuning texts, is
chosen. The nested and the cut adapter choose their rank in the same way, together with the rate. A sweep
tunes each of its ranks by itself, on the same grid and as many texts, and its verdict recommends the rank. It
may add rates to bracket the best one. Each method then trains on all training texts with every seed, and is
scored on the validation texts.

The verdict is the only choice that uses the validation texts. A second row therefore gives the accuracy of
ranks that are chosen on one half of these texts and scored on the other half.

Results are kept in a JSON Lines file in the work folder: an interrupted benchmark continues where it was.

    python -m bench.rank_choice --data FOLDER_OR_FILE [--data ...] [--texts N] [--validation-texts N]
        [--epochs N] [--seeds LIST] [--rates LIST] [--methods LIST] [--device NAME] [--work FOLDER]
        [--out FILE]
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import fmean, stdev
from typing import TypeVar

import numpy as np

from bench import common
from bench.rank_methods import LARGEST, METHODS, RANK, RANKS, TITLES, AdaLora, Eva
from bench.rank_trials import TUNING_SHARE, Corpus, Trial, Trials, read
from rankwise import hardware
from rankwise.models.base import SMOLLM2
from rankwise.recipe import Recipe
from rankwise.report.criteria import CRITERIA
from rankwise.stats.intervals import Answers
from rankwise.stats.paired import pair_up
from rankwise.stats.verdict import LEVEL, Verdict, judge
from rankwise.stats.wording import headline

N = TypeVar("N", int, float)
MARGIN = CRITERIA["accuracy"].margin
REFERENCE = "fixed"
"""The method that the others are compared with."""
HEADER = (
    "method",
    "rank",
    "learning rate",
    "accuracy",
    "sd",
    "log loss",
    f"minus fixed rank {RANK}",
    "95 % of it",
    "trainable parameters",
    "tuning, s",
    "final, s",
)


@dataclass(frozen=True)
class Choice:
    """What the tuning runs of a method chose."""

    rate: float | None  # None: each rank has its own
    rank: int | None  # None: left to the verdict


@dataclass(frozen=True)
class Entry:
    """All runs of a method on one data set."""

    method: str
    tuning: list[Trial]
    choice: Choice
    final: list[Trial]

    @property
    def ranks(self) -> list[int]:
        """The ranks that did not diverge with any seed."""
        return sorted(set.intersection(*(set(trial.answers) for trial in self.final)))

    @property
    def verdict(self) -> Verdict | None:
        """The verdict on a sweep's ranks; None for the other methods."""
        return judge({rank: self.answers(rank) for rank in self.ranks}, MARGIN) if self.is_sweep else None

    @property
    def is_sweep(self) -> bool:
        """Whether a verdict chooses the rank."""
        return self.choice.rank is None

    @property
    def rank(self) -> int:
        """The rank that is scored."""
        return self.choice.rank or (self.verdict.chosen if self.verdict else 0)

    def answers(self, rank: int) -> Answers:
        """(seeds, texts): whether each seed's classifier of this rank labels each text correctly."""
        return np.array([[answer == "1" for answer in trial.answers[rank]] for trial in self.final])


def choose(trials: Sequence[Trial]) -> Choice:
    """The learning rate and rank with the lowest log loss on the tuning texts.

    Args:
        trials: the tuning runs of one method; none for a sweep, which leaves its rank to the verdict.
    """
    if not trials:
        return Choice(None, None)
    losses = [(loss, trial.run.rate, rank) for trial in trials for rank, loss in trial.log_loss.items()]
    _, rate, rank = min(losses)
    return Choice(rate, rank)


def cross_fitted(answers: dict[int, Answers], margin: float = MARGIN) -> tuple[Answers, list[int]]:
    """Answers of the rank that the verdict on one half of the texts chooses, on the other half.

    Args:
        answers: rank -> (seeds, texts).
        margin: accepted loss of accuracy.

    Returns:
        (seeds, texts) answers, none of which was used in the choice of its rank, and the rank of each half.
    """
    found = np.empty_like(next(iter(answers.values())))
    ranks = []
    for half in (0, 1):
        rank = judge({rank: table[:, 1 - half :: 2] for rank, table in answers.items()}, margin).chosen
        found[:, half::2] = answers[rank][:, half::2]
        ranks.append(rank)
    return found, ranks


def main() -> None:
    """Train what is missing, and write the record."""
    warnings.simplefilter("ignore")  # those of PEFT and transformers, on their own internals
    options = _options()
    recipe = Recipe.preset("emotion-smollm2").replace(
        base=options.base,
        device=options.device,
        data_config=None,
        text_column="text",
        label_column="label",
        epochs=options.epochs,
        seeds=_numbers(options.seeds, int),
        tune=False,  # every method is tuned here, in the same way
        baselines=False,
        cuts=False,
    )
    trials = Trials(options.work, recipe, _numbers(options.rates, float))
    found = []
    for source in options.data:
        corpus = read(source, options.texts, options.validation_texts)
        found.append((corpus, [enter(trials, corpus, name) for name in options.methods.split(",")]))
    body = "\n\n".join(section(corpus, entries, trials.rates) for corpus, entries in found)
    title = "Ways of choosing the rank, at the same budget"
    notes = _notes(recipe, found[0][0])
    common.write_record(
        title, _command(options, [corpus.name for corpus, _ in found]), notes, body, options.out
    )


def enter(trials: Trials, corpus: Corpus, method: str) -> Entry:
    """Tune a method, and train it with the chosen learning rate."""
    tuning = trials.tune(corpus, method)
    choice = choose(tuning)
    rate = "of each rank" if choice.rate is None else f"{choice.rate:g}"
    print(f"{corpus.name}: {method}: learning rate {rate}", file=sys.stderr, flush=True)
    return Entry(method, tuning, choice, trials.finish(corpus, method, choice.rate))


def section(corpus: Corpus, entries: Sequence[Entry], rates: Sequence[float]) -> str:
    """The tables of one data set."""
    sizes = f"{len(corpus.train.texts):,} training texts, {len(corpus.validation.texts):,} validation texts"
    parts = [
        f"## {corpus.name}",
        f"{sizes}, {len(corpus.labels)} classes. Accuracies and differences in percent and points.",
        common.table(HEADER, summary_rows(entries, rates)),
        *(f"The verdict: {headline(entry.verdict)}." for entry in entries if entry.verdict),
        "Accuracy at each rank, mean (sd) over seeds:",
        common.table(("method", *map(str, RANKS)), [_by_rank(entry) for entry in entries]),
        "Log loss on the tuning texts, of the best rank; a sweep's are in its own report:",
        common.table(
            ("method", *(f"{rate:g}" for rate in rates)), [_tuning_row(e) for e in entries if e.tuning]
        ),
    ]
    return "\n\n".join(parts)


def summary_rows(entries: Sequence[Entry], rates: Sequence[float]) -> list[list[str]]:
    """One row for each method, and a second one for a sweep."""
    reference = next((e.answers(e.rank) for e in entries if e.method == REFERENCE), None)
    others = sum(2 if entry.is_sweep else 1 for entry in entries if entry.method != REFERENCE)
    confidence = 1 - LEVEL / max(1, others)
    rows = []
    for entry in entries:
        compared = None if entry.method == REFERENCE else reference
        rows.append(_summary_row(entry, rates, compared, confidence))
        if entry.is_sweep:
            rows.append(_cross_fitted_row(entry, compared, confidence))
    return rows


def _summary_row(
    entry: Entry, rates: Sequence[float], reference: Answers | None, confidence: float
) -> list[str]:
    rank, answers = entry.rank, entry.answers(entry.rank)
    rate = entry.choice.rate or entry.final[0].rates[rank]
    edge = " (edge)" if entry.choice.rate in (min(rates), max(rates)) else ""
    tuning = sum(trial.seconds for trial in entry.tuning) or entry.final[0].tuning_seconds
    parameters = fmean(trial.parameters[rank] for trial in entry.final)
    return [
        TITLES[entry.method],
        _rank_cell(entry),
        f"{rate:g}{edge}",
        *_accuracy(answers),
        f"{fmean(trial.log_loss[rank] for trial in entry.final):.3f}",
        *_difference(answers, reference, confidence),
        f"{parameters:,.0f}",
        f"{tuning:.0f}",
        f"{sum(trial.seconds for trial in entry.final):.0f}",
    ]


def _cross_fitted_row(entry: Entry, reference: Answers | None, confidence: float) -> list[str]:
    answers, ranks = cross_fitted({rank: entry.answers(rank) for rank in entry.ranks})
    return [
        "- chosen on one half, scored on the other",
        " and ".join(map(str, ranks)),
        "",
        *_accuracy(answers),
        "",
        *_difference(answers, reference, confidence),
        *[""] * 3,
    ]


def _rank_cell(entry: Entry) -> str:
    if entry.verdict:
        return f"{entry.rank}" if entry.verdict.recommended else f"{entry.rank} (verdict open)"
    return f"{entry.rank} in the mean" if entry.method in ("adalora", "eva") else f"{entry.rank}"


def _accuracy(answers: Answers) -> tuple[str, str]:
    """Mean and standard deviation over seeds, in percent and points."""
    by_seed = [float(100 * row.mean()) for row in answers]
    return f"{fmean(by_seed):.2f}", f"{stdev(by_seed):.2f}" if len(by_seed) > 1 else ""


def _difference(answers: Answers, reference: Answers | None, confidence: float) -> tuple[str, str]:
    """Difference to the reference and its interval, in points; over texts and seeds."""
    if reference is None:
        return "", ""
    paired = pair_up([answers.astype(np.float64), reference.astype(np.float64)])
    (low,), (high,) = paired.interval(confidence)
    return f"{100 * paired.mean[0]:+.2f}", f"{100 * low:+.2f} to {100 * high:+.2f}"


def _by_rank(entry: Entry) -> list[str]:
    both = {rank: _accuracy(entry.answers(rank)) for rank in entry.ranks}
    cells = {rank: f"{mean} ({spread})" if spread else mean for rank, (mean, spread) in both.items()}
    return [TITLES[entry.method], *(cells.get(rank, "") for rank in RANKS)]


def _tuning_row(entry: Entry) -> list[str]:
    losses = [min(trial.log_loss.values(), default=inf) for trial in entry.tuning]
    return [TITLES[entry.method], *(f"{loss:.3f}" for loss in losses)]


def _notes(recipe: Recipe, corpus: Corpus) -> dict[str, str]:
    """What a reader needs to know of the setup."""
    lora, train = recipe.lora, recipe.train
    precision = str(
        hardware.dtype(recipe.machine.precision, hardware.device(recipe.machine.device))
    ).removeprefix("torch.")
    return {
        "work": f"{recipe.base}, {', '.join(lora.targets or ())} of the last {lora.last_layers} layers, "
        f"scale {lora.scale(RANK):g} at rank {RANK}, epochs {train.epochs}, batch {train.batch_size}, AdamW, "
        f"{train.schedule} schedule, {precision} (PEFT: autocast, padded to the longest text of a batch)",
        "tuning": f"each rate once, with seed {train.seeds[0]}, on {len(corpus.fit.texts):,} of the training "
        f"texts, by log loss on the other {len(corpus.tuning.texts):,} ({100 * TUNING_SHARE:g} %); "
        "edge: the lowest or highest rate tried",
        "ranks": f"AdaLoRA starts with rank {AdaLora.START}; EVA has rho {Eva.RHO:g}; the nested adapter "
        f"draws a rank from 1 to {LARGEST} at each step, and is scaled by alpha / rank",
        "intervals": "of the difference, over texts and seeds, simultaneous over the rows of a table",
        "seconds": "of training, all seeds together, without loading and evaluation; EVA's include its "
        "initialization, the sweep's and the cut's are those of one pass over all seeds",
    }


def _command(options: argparse.Namespace, names: Sequence[str]) -> str:
    """The command, with the names of the data sets in place of paths."""
    given = {
        "texts": options.texts,
        "validation-texts": options.validation_texts,
        "epochs": options.epochs,
        "seeds": options.seeds,
        "rates": options.rates,
        "methods": options.methods,
        "device": options.device,
    }
    words = [f"--data {name}" for name in names] + [f"--{name} {value}" for name, value in given.items()]
    return f"python -m bench.rank_choice {' '.join(words)}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="folder or file; may be repeated")
    parser.add_argument("--texts", type=int, default=1_000, help="training texts of each data set")
    parser.add_argument("--validation-texts", type=int, default=1_000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--rates", default="3e-4,1e-3,3e-3,1e-2", help="learning rates that each method tries"
    )
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--base", default=SMOLLM2)
    parser.add_argument("--device", default="cpu", help="where all methods train")
    parser.add_argument("--work", type=Path, default=Path("runs/rank-choice"), help="results and run folders")
    parser.add_argument("--out", type=Path, help="Markdown file to write the record to")
    options = parser.parse_args()
    if unknown := set(options.methods.split(",")) - METHODS.keys():
        parser.error(f"no such method: {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    options.work.mkdir(parents=True, exist_ok=True)
    return options


def _numbers(text: str, kind: Callable[[str], N]) -> tuple[N, ...]:
    return tuple(kind(part) for part in text.split(","))


if __name__ == "__main__":
    main()
