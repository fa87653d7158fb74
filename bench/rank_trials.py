"""The runs of `bench.rank_choice`: texts cut to size, training runs, and a file of their results.

Results are appended to a JSON Lines file, one line for each seed of a run. A run that is in the file is not
trained again, and an interrupted sweep of rankwise is resumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from scipy.special import softmax
from sklearn.metrics import log_loss

from bench.rank_methods import METHODS, Job, Logits, Outcome, steps
from rankwise.data import load as data
from rankwise.data.load import Split
from rankwise.data.writers import csv_line
from rankwise.errors import TrainingError
from rankwise.models import base as bases
from rankwise.models.tokenizer import Tokenizer
from rankwise.recipe import Recipe
from rankwise.training.data import EncodedSplit

TUNING_SHARE = 0.2
"""Share of the training texts on which tuning runs are scored."""
WARMUP_SHARE = 0.1
"""Largest share of the steps that is warmup; the preset's number of steps is for longer runs."""
SPLIT_SEED = 0
SWEEP = "sweep"
"""The method that tunes each rank by itself."""


@dataclass(frozen=True)
class Corpus:
    """The texts of one data set. Tuning runs train on `fit`: the training texts without `tuning`."""

    name: str
    labels: tuple[str, ...]
    train: Split
    fit: Split
    tuning: Split
    validation: Split


class Run(BaseModel, frozen=True):
    """What identifies a run of a method, apart from its seed."""

    data: str
    base: str
    method: str
    phase: str  # tuning, scored on the tuning texts; or final, scored on the validation texts
    train_texts: int
    texts: int  # that it is scored on
    epochs: int
    rate: float | None  # None: a sweep that tunes each rank


class Trial(BaseModel):
    """One seed of a run: a line of the results file."""

    run: Run
    seed: int
    seconds: float  # of training
    parameters: dict[int, int]  # rank -> trainable parameters at the end
    log_loss: dict[int, float]  # rank -> nats per text; without ranks that diverged
    answers: dict[int, str]  # rank -> 1 for each text that is labeled correctly, else 0
    rates: dict[int, float] = {}  # rank -> learning rate, of a sweep that tunes each rank
    tuning_seconds: float = 0.0  # of the trials of such a sweep, for all seeds together


def read(source: str, texts: int, validation_texts: int) -> Corpus:
    """Read a folder or a file, and cut it to size. The shares of the classes are kept.

    The validation texts come from the folder's validation split. A file has none, and is cut in two.

    Raises:
        DataError: the data cannot be used.
    """
    found = data.load(Recipe(data=source))
    train, validation = found.train, found.validation
    if Path(source).is_file():
        whole = Split("train", train.texts + validation.texts, train.labels + validation.labels)
        validation, train = parted(whole, min(validation_texts, len(whole) // 2))
    train, _ = parted(train, texts)
    validation, _ = parted(validation, validation_texts)
    tuning, fit = parted(train, round(TUNING_SHARE * len(train)))
    return Corpus(name_of(Path(source)), found.labels, train, fit, tuning, validation)


def name_of(path: Path) -> str:
    """A data set's name: that of the file or folder, but of the folder if the file is only called train.

    >>> name_of(Path("questions/train.csv")), name_of(Path("reviews.csv"))
    ('questions', 'reviews')
    """
    return path.resolve().parent.name if path.stem == "train" else path.stem


def parted(split: Split, number: int) -> tuple[Split, Split]:
    """A stratified sample of a split, and its other texts; both in the order of the split."""
    chosen = stratified(split.labels, number, SPLIT_SEED)
    return _pick(split, chosen), _pick(split, np.setdiff1d(np.arange(len(split)), chosen))


def stratified(labels: Sequence[int], number: int, seed: int) -> NDArray[np.int64]:
    """Positions of a sample in which every class has its share, to within a text or so.

    The i-th of the n texts of a class, in random order, has the place (i + 1/2) / n. The sample consists of
    the lowest places. Unlike scikit-learn's splitters, it accepts classes with a single text.

    Args:
        labels: (texts,) label of each text.
        number: texts to sample; all of them if there are fewer.
        seed: seed of the order.

    Returns:
        (number,) int64, ascending.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled, places = np.asarray(labels)[order], np.empty(len(labels))
    for label in np.unique(shuffled):
        members = np.flatnonzero(shuffled == label)
        places[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(places, kind="stable")[:number]])


def _pick(split: Split, positions: NDArray[np.int64]) -> Split:
    return Split(split.name, [split.texts[i] for i in positions], [split.labels[i] for i in positions])


@dataclass(frozen=True)
class Trials:
    """Trains what is asked for, unless it is in the results file."""

    folder: Path
    recipe: Recipe  # settings that all runs share
    rates: tuple[float, ...]

    @property
    def path(self) -> Path:
        """The results file."""
        return self.folder / "results.jsonl"

    def tune(self, corpus: Corpus, method: str) -> list[Trial]:
        """A run of the first seed for each learning rate, scored on the tuning texts; a sweep needs none."""
        if method == SWEEP:
            return []
        first = self.recipe.train.seeds[:1]
        return [t for rate in self.rates for t in self._trials(corpus, method, "tuning", rate, first)]

    def finish(self, corpus: Corpus, method: str, rate: float | None) -> list[Trial]:
        """A run of every seed on all training texts, scored on the validation texts."""
        return self._trials(corpus, method, "final", rate, self.recipe.train.seeds)

    def _trials(
        self, corpus: Corpus, method: str, phase: str, rate: float | None, seeds: Sequence[int]
    ) -> list[Trial]:
        tuning = phase == "tuning"
        train, held_out = (corpus.fit, corpus.tuning) if tuning else (corpus.train, corpus.validation)
        run = Run(
            data=corpus.name,
            base=self.recipe.base,
            method=method,
            phase=phase,
            train_texts=len(train),
            texts=len(held_out),
            epochs=self.recipe.train.epochs,
            rate=rate,
        )
        missing = [seed for seed in seeds if (run, seed) not in self._stored()]
        if missing:
            for trial in _train(run, self._job(run, corpus.labels, train, held_out, missing)):
                self._append(trial)
        stored = self._stored()
        return [stored[run, seed] for seed in seeds]

    def _stored(self) -> dict[tuple[Run, int], Trial]:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return {(trial.run, trial.seed): trial for trial in map(Trial.model_validate_json, lines)}

    def _append(self, trial: Trial) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(trial.model_dump_json() + "\n")

    def _job(
        self, run: Run, labels: tuple[str, ...], train: Split, held_out: Split, seeds: Sequence[int]
    ) -> Job:
        rate = "tuned" if run.rate is None else f"{run.rate:g}"
        folder = self.folder / f"{run.data}-{run.method}-{run.phase}-{rate}"
        folder = folder.with_name(f"{folder.name}-{run.train_texts}-{run.texts}-{run.epochs}")
        most = int(WARMUP_SHARE * steps(len(train), self.recipe))
        recipe = self.recipe.replace(
            data=str(_write(folder / "train.csv", train, labels)),
            validation=str(_write(folder / "held-out.csv", held_out, labels)),
            labels=labels,
            seeds=tuple(seeds),
            warmup_steps=min(self.recipe.train.warmup_steps, most),
        )
        if run.rate is None:  # the same grid, on as many texts; each trial has the full schedule
            held = round(TUNING_SHARE * len(train))
            recipe = recipe.replace(
                tune=True, learning_rates=self.rates, tuning_texts=held, tuning_share=1.0, finalists=1
            )
        else:
            recipe = recipe.replace(learning_rate=run.rate)
        tokenizer, length = Tokenizer.load(bases.find(run.base).folder), recipe.train.max_length
        return Job(
            recipe,
            EncodedSplit.encode(train, tokenizer, length),
            EncodedSplit.encode(held_out, tokenizer, length),
            folder,
        )


def _write(path: Path, split: Split, labels: Sequence[str]) -> Path:
    """Write a split as CSV, for rankwise's sweeps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(split.texts, (labels[i] for i in split.labels), strict=True)
    path.write_text("".join(map(csv_line, [("text", "label"), *rows])), encoding="utf-8")
    return path


def _train(run: Run, job: Job) -> Iterator[Trial]:
    """Train, and score each seed as soon as it is finished."""
    try:
        for outcome in METHODS[run.method](job):
            yield score(run, outcome, job.held_out.targets)
    except TrainingError:  # every adapter of a sweep diverged
        for seed in job.recipe.train.seeds:
            yield Trial(run=run, seed=seed, seconds=0.0, parameters={}, log_loss={}, answers={})


def score(run: Run, outcome: Outcome, targets: NDArray[np.int64]) -> Trial:
    """Score an outcome's logits. Ranks whose logits are not finite are left out.

    Args:
        run: what was trained.
        outcome: its logits on the texts that it is scored on.
        targets: (texts,) label IDs.
    """
    finite = {rank: logits for rank, logits in outcome.logits.items() if np.isfinite(logits).all()}
    right = {rank: logits.argmax(axis=1) == targets for rank, logits in finite.items()}
    return Trial(
        run=run,
        seed=outcome.seed,
        seconds=outcome.seconds,
        parameters=dict(outcome.parameters),
        log_loss={rank: _log_loss(targets, logits) for rank, logits in finite.items()},
        answers={rank: "".join("01"[int(answer)] for answer in row) for rank, row in right.items()},
        rates=dict(outcome.rates),
        tuning_seconds=outcome.tuning_seconds,
    )


def _log_loss(targets: NDArray[np.int64], logits: Logits) -> float:
    probabilities = softmax(logits.astype(np.float64), axis=1)
    return float(log_loss(targets, probabilities, labels=range(logits.shape[1])))
