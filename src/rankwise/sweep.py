"""The main job: a recipe in, a run folder out. Plan, train, evaluate, write."""

from __future__ import annotations

import json
import math
import platform
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise import bases, data, hardware, plan
from rankwise.errors import ResourceError
from rankwise.evaluate import Metrics, metrics
from rankwise.listener import Listener
from rankwise.nn.lora import AdapterSpec, Bank
from rankwise.nn.packing import Ids
from rankwise.predict import bank_logits, check_ids, load_trunk, softmax
from rankwise.recipe import Recipe
from rankwise.report import build
from rankwise.store import adapter as adapters
from rankwise.store import files
from rankwise.store.run import AdapterResult, Results, RunFolder, Timing, slug
from rankwise.store.writers import csv_line
from rankwise.tokens import Tokenizer
from rankwise.train import Step, balanced_weights, train

STAGES = ("data", "base", "tokens", "load", "train", "evaluate", "write", "total")
MEMORY_SHARE = 0.6
"""Part of the free memory that a bank may take where the recipe names no limit."""


@dataclass
class _Split:
    """A split as the sweep uses it."""

    source: data.Split
    ids: list[Ids]
    targets: NDArray[np.int64]


@dataclass
class _Outcome:
    """What became of one adapter."""

    spec: AdapterSpec
    state: dict[str, Tensor]
    epoch: int  # that was kept
    logits: dict[str, NDArray[np.float32]]  # split -> (texts, classes)
    train_loss: float = math.nan  # mean over all steps
    train_seconds: float = 0.0


def sweep(recipe: Recipe, folder: Path | str | None = None, listener: Listener | None = None) -> Results:
    """Train every rank and seed of a recipe, evaluate them, and write a run folder.

    Args:
        recipe: what to train.
        folder: where to write; by default `runs/DATA-BASE-TIME`.
        listener: told of progress.

    Returns:
        What results.json holds.

    Raises:
        UsageError: the folder is in use, or the recipe does not fit the model.
        DataError: the data cannot be used.
        ModelError: the base model cannot be used.
        Unreachable: data or base must be fetched and the Hub does not answer.
        TrainingError: a loss is no longer a number.
        ResourceError: memory or disk is full.
    """
    job = _Job(recipe, RunFolder(folder or default_folder(recipe)), listener or Listener())
    try:
        return job.run()
    except torch.OutOfMemoryError:
        raise ResourceError(
            "out of device memory",
            hint="give --memory-gb to split the sweep into smaller banks, or a smaller --batch-size",
        ) from None


def default_folder(recipe: Recipe) -> Path:
    """`runs/DATA-BASE-TIME`, in UTC."""
    name = f"{slug(Path(recipe.data).stem)}-{slug(Path(recipe.base).name)}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    return Path("runs") / name


class _Job:
    """One sweep, stage by stage."""

    def __init__(self, recipe: Recipe, run: RunFolder, listener: Listener) -> None:
        self.recipe, self.folder, self.listener = recipe, run, listener
        self.seconds: defaultdict[str, float] = defaultdict(float)  # stage -> wall seconds
        self.trained_tokens = 0

    def run(self) -> Results:
        """Every stage in turn."""
        with self.timed("total"):
            files.require_free(self.folder.path)
            self._read()
            self._prepare()
            files.write_text(self.folder.recipe, self.recipe.to_toml())
            outcomes: dict[str, _Outcome] = {}
            for number, specs in enumerate(self.plan.banks, 1):
                outcomes |= self._train_bank(number, specs)
            with self.timed("write"):
                self._write_adapters(outcomes)
                files.write_text(self.folder.predictions, self._predictions_csv(outcomes))
        results = self._results(outcomes)
        files.write_text(self.folder.timing, self._timing(outcomes).model_dump_json(indent=1) + "\n")
        files.write_text(self.folder.results, results.model_dump_json(indent=1) + "\n")
        build.write(self.folder)
        return results

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the block's seconds for a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A timed stage that the listener hears of, of no known length."""
        self.listener.begin(name, None)
        with self.timed(name):
            yield
        self.listener.end()

    def _read(self) -> None:
        """Data and base, checked; texts as token ids."""
        with self.stage("data"):
            self.dataset = data.load(self.recipe)
        for note in self.dataset.notes:
            self.listener.note(note)
        with self.stage("base"):
            self.base = bases.find(self.recipe.base)
            self.config = files.read_object(self.base.folder / "config.json")
            self.tokenizer = Tokenizer.load(self.base.folder)
        with self.stage("tokens"):
            every = (self.dataset.train, self.dataset.validation, self.dataset.test)
            self.splits = {split.name: self._tokenize(split) for split in every if split is not None}

    def _tokenize(self, split: data.Split) -> _Split:
        ids = self.tokenizer(split.texts, self.recipe.max_length)
        return _Split(split, ids, np.array(split.labels, dtype=np.int64))

    def _prepare(self) -> None:
        """Plan, and the frozen trunk that every bank shares."""
        texts = self.splits["train"].ids
        self.device = hardware.device(self.recipe.device)
        self.precision = hardware.dtype(self.recipe.precision, self.device)
        limit = self.recipe.memory_gb
        self.plan = plan.make(
            self.recipe,
            self.config,
            has_pad_token=self.tokenizer.has_pad_token,
            classes=len(self.dataset.labels),
            texts=len(texts),
            tokens_per_text=float(np.mean([len(ids) for ids in texts])),
            memory_bytes=int(limit * 1e9 if limit else MEMORY_SHARE * hardware.free_memory(self.device)),
            number_bytes=self.precision.itemsize,
        )
        with self.stage("load"):
            self.trunk = load_trunk(self.base, self.precision, self.device)
        for split in self.splits.values():
            check_ids(split.ids, self.trunk)

    def _train_bank(self, number: int, specs: Sequence[AdapterSpec]) -> dict[str, _Outcome]:
        """Train one bank, evaluating after every epoch; adapter name -> outcome."""
        trunk, classes, split = self.trunk, len(self.dataset.labels), self.splits["train"]
        bank = Bank(specs, trunk.sites(), trunk.d_model, classes, trunk.head_std, self.device)
        weights = None
        if self.recipe.class_weights == "balanced":
            weights = balanced_weights(split.targets, classes).to(self.device)
        watch = _BankWatch(self, number, bank)
        with self.timed("train"):
            train(
                trunk,
                bank,
                split.ids,
                split.targets,
                self.recipe,
                class_weights=weights,
                on_step=watch.on_step,
                on_epoch=watch.on_epoch,
            )
        return watch.finish()

    def predict(self, bank: Bank, split: str) -> NDArray[np.float32]:
        """(adapters, texts, classes) logits of a bank on a split."""
        self.listener.begin(split, len(self.splits[split].ids))
        with self.timed("evaluate"):
            logits = bank_logits(self.trunk, bank, self.splits[split].ids, self.listener.advance)
        self.listener.end()
        return logits

    def metrics(self, split: str, logits: NDArray[np.float32]) -> Metrics:
        """One adapter's metrics on a split."""
        return metrics(split, self.splits[split].targets, logits, self.dataset.labels)

    def log(self, **line: Any) -> None:
        """A line of history.jsonl."""
        files.append_line(self.folder.history, json.dumps(line))

    def _write_adapters(self, outcomes: Mapping[str, _Outcome]) -> None:
        for name, outcome in outcomes.items():
            saved = adapters.SavedAdapter(
                outcome.spec, outcome.state, self.dataset.labels, self.base.name, self.recipe.max_length
            )
            adapters.save(self.folder.adapters / name, saved, self.config, self.tokenizer.files())

    def _predictions_csv(self, outcomes: Mapping[str, _Outcome]) -> str:
        """Every evaluated text, every adapter: predicted label and its probability."""
        columns = [column for name in outcomes for column in (name, f"{name} probability")]
        lines = [csv_line(["split", "text", "label", *columns])]
        for split in self._evaluated():
            source = self.splits[split].source
            probabilities = [softmax(outcome.logits[split]) for outcome in outcomes.values()]
            for i, (text, label) in enumerate(zip(source.texts, source.labels, strict=True)):
                cells = [cell for p in probabilities for cell in self._best(p[i])]
                lines.append(csv_line([split, text, self.dataset.labels[label], *cells]))
        return "".join(lines)

    def _best(self, probabilities: NDArray[np.float64]) -> tuple[str, str]:
        best = int(probabilities.argmax())
        return self.dataset.labels[best], f"{probabilities[best]:.4f}"

    def _evaluated(self) -> list[str]:
        return [split for split in ("validation", "test") if split in self.splits]

    def _results(self, outcomes: Mapping[str, _Outcome]) -> Results:
        return Results(
            rankwise=version("rankwise"),
            base=self.base.name,
            labels=list(self.dataset.labels),
            texts={name: len(split.ids) for name, split in self.splits.items()},
            notes=list(self.dataset.notes),
            device=str(self.device),
            precision=str(self.precision).removeprefix("torch."),
            threads=hardware.threads(),
            versions={"python": platform.python_version(), "torch": torch.__version__},
            adapters=[self._row(row, outcomes[f"r{row.rank}-s{row.seed}"]) for row in self.plan.rows],
        )

    def _timing(self, outcomes: Mapping[str, _Outcome]) -> Timing:
        training = self.seconds["train"] - self.seconds["evaluate while training"]
        seconds = {stage: seconds for stage, seconds in self.seconds.items() if stage in STAGES}
        return Timing(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds={stage: round(each, 3) for stage, each in (seconds | {"train": training}).items()},
            train_seconds={name: round(outcome.train_seconds, 3) for name, outcome in outcomes.items()},
            tokens_per_second=self.trained_tokens / training,
        )

    def _row(self, row: plan.Row, outcome: _Outcome) -> AdapterResult:
        found = {
            split: self.metrics(split, outcome.logits[split]).model_dump() for split in self._evaluated()
        }
        return AdapterResult(
            name=outcome.spec.name,
            alpha=outcome.spec.alpha,
            scale=outcome.spec.scale,
            adapter_bytes=(self.folder.adapters / outcome.spec.name / adapters.WEIGHTS).stat().st_size,
            train_loss=outcome.train_loss,
            kept_epoch=outcome.epoch,
            validation=found["validation"],
            test=found.get("test"),
            **asdict(row),
        )


class _BankWatch:
    """Follows one bank through its training: log, progress, validation, what to keep."""

    def __init__(self, job: _Job, number: int, bank: Bank) -> None:
        self.job, self.number, self.bank = job, number, bank
        self.names = [spec.name for spec in bank.specs]
        self.losses: list[list[float]] = []
        self.outcomes: dict[str, _Outcome] = {}
        self.best: dict[str, float] = {}
        self.started, self.paused = time.perf_counter(), 0.0
        self._begin()

    def on_step(self, step: Step) -> None:
        """Log a step."""
        self.losses.append(step.losses)
        self.job.trained_tokens += step.tokens
        self.job.log(kind="step", bank=self.number, adapters=self.names, **asdict(step))
        recent = np.mean(self.losses[-20:], axis=0)
        self.job.listener.advance(1, "loss " + " ".join(f"{loss:.2f}" for loss in recent))

    def on_epoch(self, epoch: int) -> None:
        """Validate, and keep the adapters that the recipe wants kept."""
        start = time.perf_counter()
        logits = self.job.predict(self.bank, "validation")
        found = [self.job.metrics("validation", each) for each in logits]
        figures = {key: [getattr(m, key) for m in found] for key in ("accuracy", "macro_f1", "log_loss")}
        self.job.log(kind="validation", bank=self.number, adapters=self.names, epoch=epoch, **figures)
        for k, (spec, accuracy) in enumerate(zip(self.bank.specs, figures["accuracy"], strict=True)):
            if self.job.recipe.keep == "last" or accuracy > self.best.get(spec.name, -1.0):
                self.best[spec.name] = accuracy
                self.outcomes[spec.name] = _Outcome(
                    spec, self.bank.state(k), epoch, {"validation": logits[k]}
                )
        self.paused += time.perf_counter() - start
        if epoch < self.job.recipe.epochs:
            self._begin()

    def finish(self) -> dict[str, _Outcome]:
        """Adapter name -> outcome, with test predictions where there is a test split."""
        seconds = time.perf_counter() - self.started - self.paused
        self.job.seconds["evaluate while training"] += self.paused
        for k, name in enumerate(self.names):
            outcome = self.outcomes[name]
            outcome.train_loss = float(np.mean([step[k] for step in self.losses]))
            outcome.train_seconds = seconds / len(self.names)
            self.bank.load(k, outcome.state)
        if "test" in self.job.splits:
            for name, logits in zip(self.names, self.job.predict(self.bank, "test"), strict=True):
                self.outcomes[name].logits["test"] = logits
        return self.outcomes

    def _begin(self) -> None:
        banks = len(self.job.plan.banks)
        self.job.listener.begin(
            f"train {self.number}/{banks}" if banks > 1 else "train", self.job.plan.steps or 0
        )
        self.job.listener.advance(len(self.losses))
