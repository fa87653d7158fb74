"""The main job: a recipe in, a run folder out. Plan, train, evaluate, write."""

from __future__ import annotations

import csv
import io
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from rankwise.nn.lora import Bank
from rankwise.nn.packing import Ids
from rankwise.predict import bank_logits, load_trunk, softmax
from rankwise.recipe import Recipe
from rankwise.report import tables
from rankwise.store import adapter as adapters
from rankwise.store import files
from rankwise.store.run import AdapterResult, Results, RunFolder, slug
from rankwise.tokens import Tokenizer
from rankwise.train import Step, balanced_weights, train

MEMORY_SHARE = 0.6
"""Part of the free memory that a bank may take where the recipe names no limit."""


class Listener:
    """Told what a sweep is doing. This one keeps silent."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def begin(self, stage: str, total: int) -> None:
        """A stage of so many units begins."""

    def advance(self, units: int, detail: str = "") -> None:
        """So many units of the stage are done."""

    def end(self) -> None:
        """The stage is over."""


@dataclass
class _Split:
    """A split as the sweep uses it."""

    source: data.Split
    ids: list[Ids]
    targets: NDArray[np.int64]


@dataclass
class _Outcome:
    """What became of one adapter."""

    state: dict[str, Tensor]
    validation: NDArray[np.float32]  # (texts, classes) logits
    epoch: int
    accuracy: float
    losses: list[float] = field(default_factory=list)
    test: NDArray[np.float32] | None = None
    seconds: float = 0.0


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
            "out of device memory", hint="give --memory-gb to split the sweep into smaller banks, or a smaller --batch-size"
        ) from None


def default_folder(recipe: Recipe) -> Path:
    """`runs/DATA-BASE-TIME`, in UTC."""
    name = f"{slug(Path(recipe.data).stem)}-{slug(Path(recipe.base).name)}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    return Path("runs") / name


class _Job:
    """One sweep, stage by stage."""

    def __init__(self, recipe: Recipe, run: RunFolder, listener: Listener) -> None:
        self.recipe, self.run_folder, self.listener = recipe, run, listener
        self.seconds: dict[str, float] = {}
        self.trained_tokens = 0

    def run(self) -> Results:
        recipe = self.recipe
        files.claim_folder(self.run_folder.path)
        started = time.perf_counter()
        self.dataset = self._timed("data", lambda: data.load(recipe))
        for note in self.dataset.notes:
            self.listener.note(note)
        self.base = self._timed("base", lambda: bases.find(recipe.base))
        self.config = json.loads((self.base.folder / "config.json").read_text("utf-8"))
        self.tokenizer = Tokenizer.load(self.base.folder)
        self.splits = self._timed("tokens", self._encode)
        self.device = hardware.device(recipe.device)
        self.plan = self._plan()
        trunk = self._timed("load", lambda: load_trunk(self.base, hardware.dtype(recipe.precision, self.device), self.device))
        files.write_text(self.run_folder.recipe, recipe.to_toml())
        outcomes: dict[str, _Outcome] = {}
        for number, specs in enumerate(self.plan.banks, 1):
            outcomes |= self._bank(number, trunk, Bank(
                specs, trunk.sites(), trunk.d_model, len(self.dataset.labels), trunk.head_std, self.device
            ))
        return self._write(outcomes, started)

    def _timed(self, stage: str, work: Any) -> Any:
        start = time.perf_counter()
        result = work()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
        return result

    def _encode(self) -> dict[str, _Split]:
        every = (self.dataset.train, self.dataset.validation, self.dataset.test)
        splits = [split for split in every if split is not None]
        self.listener.begin("tokens", sum(len(split) for split in splits))
        out = {}
        for split in splits:
            ids = self.tokenizer(split.texts, self.recipe.max_length)
            out[split.name] = _Split(split, ids, np.array(split.labels, dtype=np.int64))
            self.listener.advance(len(split))
        self.listener.end()
        return out

    def _plan(self) -> plan.Plan:
        train_split = self.splits["train"]
        limit = self.recipe.memory_gb
        return plan.make(
            self.recipe,
            self.config,
            has_pad_token=self.tokenizer.has_pad_token,
            classes=len(self.dataset.labels),
            texts=len(train_split.ids),
            tokens_per_text=float(np.mean([len(ids) for ids in train_split.ids])),
            memory_bytes=int(limit * 1e9) if limit else int(MEMORY_SHARE * hardware.free_memory(self.device)),
        )

    def _bank(self, number: int, trunk: Any, bank: Bank) -> dict[str, _Outcome]:
        """Train one bank, evaluating after every epoch; the outcome of each of its adapters."""
        names = [spec.name for spec in bank.specs]
        outcomes: dict[str, _Outcome] = {}
        losses: list[list[float]] = []
        clock = _Clock()

        def on_step(step: Step) -> None:
            losses.append(step.losses)
            self.trained_tokens += step.tokens
            self._log({"kind": "step", "bank": number, "adapters": names, "step": step.number, "epoch": step.epoch,
                       "learning_rate": step.learning_rate, "losses": step.losses, "grad_norms": step.grad_norms,
                       "seconds": round(clock.read(), 3)})
            self.listener.advance(1, " ".join(f"{loss:.2f}" for loss in np.mean(losses[-20:], axis=0)))

        def on_epoch(epoch: int) -> None:
            clock.stop()
            logits = self._predict(trunk, bank, "validation")
            found = [self._metrics("validation", each) for each in logits]
            self._log({"kind": "validation", "bank": number, "adapters": names, "epoch": epoch,
                       "accuracy": [m.accuracy for m in found], "macro_f1": [m.macro_f1 for m in found],
                       "loss": [m.log_loss for m in found]})
            for k, name in enumerate(names):
                better = name not in outcomes or found[k].accuracy > outcomes[name].accuracy
                if better or self.recipe.keep == "last":
                    outcomes[name] = _Outcome(bank.state(k), logits[k], epoch, found[k].accuracy)
            if epoch < self.recipe.epochs:
                self.listener.begin(title, self.plan.steps or 0)
                self.listener.advance(len(losses))
            clock.start()

        weights = None
        train_split = self.splits["train"]
        if self.recipe.class_weights == "balanced":
            weights = balanced_weights(train_split.targets, len(self.dataset.labels)).to(self.device)
        title = f"train {number}/{len(self.plan.banks)}" if len(self.plan.banks) > 1 else "train"
        self.listener.begin(title, self.plan.steps or 0)
        train(trunk, bank, train_split.ids, train_split.targets, self.recipe, class_weights=weights,
              on_step=on_step, on_epoch=on_epoch)
        self.seconds["train"] = self.seconds.get("train", 0.0) + clock.read()
        for k, name in enumerate(names):
            outcomes[name].losses = [step[k] for step in losses]
            outcomes[name].seconds = clock.read() / len(names)
            bank.load(k, outcomes[name].state)
        if "test" in self.splits:
            for name, logits in zip(names, self._predict(trunk, bank, "test"), strict=True):
                outcomes[name].test = logits
        return outcomes

    def _predict(self, trunk: Any, bank: Bank, split: str) -> NDArray[np.float32]:
        start = time.perf_counter()
        self.listener.begin(split, len(self.splits[split].ids))
        logits = bank_logits(trunk, bank, self.splits[split].ids, self.listener.advance)
        self.listener.end()
        self.seconds["evaluate"] = self.seconds.get("evaluate", 0.0) + time.perf_counter() - start
        return logits

    def _metrics(self, split: str, logits: NDArray[np.float32]) -> Metrics:
        return metrics(split, self.splits[split].targets, logits, self.dataset.labels)

    def _log(self, line: dict[str, Any]) -> None:
        files.append_line(self.run_folder.history, json.dumps(line))

    def _write(self, outcomes: dict[str, _Outcome], started: float) -> Results:
        start = time.perf_counter()
        specs = {spec.name: spec for bank in self.plan.banks for spec in bank}
        for name, outcome in outcomes.items():
            saved = adapters.SavedAdapter(
                specs[name], outcome.state, self.dataset.labels, self.base.name, self.recipe.max_length
            )
            adapters.save(self.run_folder.adapters / name, saved, self.config, self.tokenizer.files())
        files.write_text(self.run_folder.predictions, self._predictions_csv(outcomes))
        self.seconds["write"] = time.perf_counter() - start
        self.seconds["total"] = time.perf_counter() - started
        results = self._results(outcomes)
        files.write_text(self.run_folder.results, results.model_dump_json(indent=1) + "\n")
        tables.write(self.run_folder)
        return results

    def _results(self, outcomes: dict[str, _Outcome]) -> Results:
        rows = []
        specs = {spec.name: spec for bank in self.plan.banks for spec in bank}
        for row in self.plan.rows:
            spec = next(s for s in specs.values() if (s.rank, s.seed) == (row.rank, row.seed))
            outcome = outcomes[spec.name]
            rows.append(AdapterResult(
                name=spec.name, rank=row.rank, seed=row.seed, alpha=spec.alpha, scale=spec.scale,
                trainable_params=row.trainable_params, total_params=row.total_params,
                trainable_percent=row.trainable_percent, merged_params=row.merged_params, bank=row.bank,
                train_seconds=outcome.seconds, train_loss=float(np.mean(outcome.losses)), kept_epoch=outcome.epoch,
                validation=self._metrics("validation", outcome.validation).model_dump(),
                test=None if outcome.test is None else self._metrics("test", outcome.test).model_dump(),
            ))
        return Results(
            rankwise=version("rankwise"),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            base=self.base.name,
            labels=list(self.dataset.labels),
            texts={name: len(split.ids) for name, split in self.splits.items()},
            notes=list(self.dataset.notes),
            device=str(self.device),
            precision=str(hardware.dtype(self.recipe.precision, self.device)).removeprefix("torch."),
            threads=hardware.threads(),
            versions={"python": platform.python_version(), "torch": torch.__version__},
            seconds={stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
            tokens_per_second=self.trained_tokens / max(self.seconds["train"], 1e-9),
            adapters=rows,
        )

    def _predictions_csv(self, outcomes: dict[str, _Outcome]) -> str:
        """Every evaluated text, every adapter: predicted label and its probability."""
        out = io.StringIO(newline="")
        writer = csv.writer(out, lineterminator="\n")
        names = list(outcomes)
        writer.writerow(["split", "text", "label", *(c for name in names for c in (name, f"{name} probability"))])
        for split in ("validation", "test"):
            if split in self.splits:
                logits = [getattr(outcomes[name], split) for name in names]
                writer.writerows(self._prediction_rows(split, [softmax(each) for each in logits]))
        return out.getvalue()

    def _prediction_rows(self, split: str, probabilities: Sequence[NDArray[np.float64]]) -> list[list[str]]:
        source, labels = self.splits[split].source, self.dataset.labels
        rows = []
        for i, (text, label) in enumerate(zip(source.texts, source.labels, strict=True)):
            cells = [(labels[int(p[i].argmax())], f"{p[i].max():.4f}") for p in probabilities]
            rows.append([split, text, labels[label], *(c for cell in cells for c in cell)])
        return rows


class _Clock:
    """Counts seconds while it runs."""

    def __init__(self) -> None:
        self._total, self._since = 0.0, time.perf_counter()
        self._running = True

    def read(self) -> float:
        return self._total + (time.perf_counter() - self._since if self._running else 0.0)

    def stop(self) -> None:
        self._total, self._running = self.read(), False

    def start(self) -> None:
        self._since, self._running = time.perf_counter(), True
