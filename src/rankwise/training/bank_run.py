"""One bank, from its start or from where it was left, to its adapters' outcomes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.data import load as data
from rankwise.metrics import metrics
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import AdapterSpec, Bank
from rankwise.nn.batch import Ids
from rankwise.nn.inference import bank_logits
from rankwise.recipe import Recipe
from rankwise.schema import Diverged, Metrics
from rankwise.store import files
from rankwise.training import signals
from rankwise.training.callbacks import Callback, Validation
from rankwise.training.checkpoint import AdapterProgress
from rankwise.training.optimizer import AdamW
from rankwise.training.train import Failure, StepResult, balanced_weights, steps_per_epoch, train

_KEPT_TENSOR, _KEPT_LOGITS = "kept tensor ", "kept logits"


@dataclass(frozen=True)
class EncodedSplit:
    """A split as the sweep uses it."""

    source: data.Split
    ids: list[Ids]
    targets: NDArray[np.int64]


@dataclass(frozen=True)
class Setting:
    """What all banks of a sweep share."""

    recipe: Recipe
    backbone: Backbone
    splits: Mapping[str, EncodedSplit]
    labels: Sequence[str]
    callback: Callback
    history: Path
    device: torch.device

    def predict(self, bank: Bank, split: str) -> NDArray[np.float32]:
        """(adapters, texts, classes) logits of a bank on a split."""
        self.callback.begin(split, len(self.splits[split].ids))
        logits = bank_logits(self.backbone, bank, self.splits[split].ids, self.callback.advance)
        self.callback.end()
        return logits

    def metrics(self, split: str, logits: NDArray[np.float32], probabilistic: bool = True) -> Metrics:
        """One adapter's, or reference's, metrics on a split."""
        targets = self.splits[split].targets
        return metrics(split, targets, logits, self.labels, probabilistic=probabilistic)

    def evaluated(self) -> list[str]:
        """The splits that finished adapters are evaluated on."""
        return [split for split in ("validation", "test") if split in self.splits]

    def class_weights(self) -> Tensor | None:
        """(classes,) float32 weights of the loss, where it is weighted."""
        if self.recipe.train.class_weights == "none":
            return None
        return balanced_weights(self.splits["train"].targets, len(self.labels)).to(self.device)

    def steps_per_epoch(self) -> int:
        """Steps of one pass over the training texts."""
        return steps_per_epoch(len(self.splits["train"].ids), self.recipe)


@dataclass(frozen=True)
class Kept:
    """An adapter as it was after an epoch."""

    epoch: int
    accuracy: float  # on validation
    state: dict[str, Tensor]
    logits: NDArray[np.float32]  # (validation texts, classes)


@dataclass
class AdapterState:
    """One adapter in training, apart from its bank. Tensors are on the CPU."""

    parameters: Tensor  # (parameters,) float32, as are the next two
    exp_avg: Tensor
    exp_avg_sq: Tensor
    losses: list[float] = field(default_factory=list)  # of each step so far
    epochs: int = 0  # validated
    kept: Kept | None = None

    def progress(self) -> AdapterProgress:
        """What a checkpoint's JSON says of it."""
        kept = self.kept
        return AdapterProgress(
            parameters=len(self.parameters),
            steps=len(self.losses),
            epochs=self.epochs,
            kept_epoch=kept.epoch if kept else 0,
            kept_accuracy=kept.accuracy if kept else 0.0,
        )

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint's tensors hold of it."""
        found = {
            "parameters": self.parameters,
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
        }
        if self.kept:
            found |= {_KEPT_TENSOR + name: tensor for name, tensor in self.kept.state.items()}
            found[_KEPT_LOGITS] = torch.from_numpy(np.ascontiguousarray(self.kept.logits))
        return found

    @classmethod
    def read(cls, progress: AdapterProgress, tensors: Mapping[str, Tensor]) -> AdapterState:
        """The state that `progress` and `tensors` gave.

        Raises:
            KeyError: a tensor is missing.
        """
        kept = None
        if progress.kept_epoch:
            state = {
                name.removeprefix(_KEPT_TENSOR): tensor
                for name, tensor in tensors.items()
                if name.startswith(_KEPT_TENSOR)
            }
            kept = Kept(progress.kept_epoch, progress.kept_accuracy, state, tensors[_KEPT_LOGITS].numpy())
        parameters, exp_avg, exp_avg_sq = (tensors[name] for name in ("parameters", "exp_avg", "exp_avg_sq"))
        return cls(parameters, exp_avg, exp_avg_sq, tensors["losses"].tolist(), progress.epochs, kept)


@dataclass
class Trained:
    """What became of one adapter."""

    spec: AdapterSpec
    state: dict[str, Tensor]
    epoch: int  # that was kept
    train_loss: float  # mean over all steps
    logits: dict[str, NDArray[np.float32]]  # split -> (texts, classes)


class BankRun:
    """Follows one bank through its training: log, progress, validation, what to keep, what to drop.

    Args:
        setting: what all banks share.
        title: what the callback is told.
        number: of the bank, from 1.
        specs: its adapters.
        states: where they were left, if they were begun.
        parts: that a batch is split into.
        diverged: where adapters that are dropped are added.
        on_saveable: told after every step, and with True after an epoch or the loss of an adapter,
            that the bank's state can be saved.
    """

    def __init__(
        self,
        setting: Setting,
        title: str,
        number: int,
        specs: Sequence[AdapterSpec],
        states: Mapping[str, AdapterState],
        *,
        micro_batches: int,
        diverged: list[Diverged],
        on_saveable: Callable[[BankRun, bool], None],
    ) -> None:
        self.setting, self.title, self.number, self.micro_batches = setting, title, number, micro_batches
        self.diverged, self.on_saveable = diverged, on_saveable
        self.tokens = 0
        self.evaluating = 0.0  # seconds
        self._settled = True
        self._place(specs, states)

    @property
    def steps(self) -> int:
        """Steps that were made."""
        return self.optimizer.steps

    @property
    def names(self) -> list[str]:
        """The adapters' names."""
        return [spec.name for spec in self.bank.specs]

    @property
    def settled(self) -> bool:
        """Whether parameters, optimizer and record belong to the same step, so that they can be saved."""
        return self._settled and all(len(each) == self.steps for each in self.losses.values())

    def _place(self, specs: Sequence[AdapterSpec], states: Mapping[str, AdapterState]) -> None:
        """Make the bank of these adapters, each from its state or fresh."""
        setting = self.setting
        backbone, recipe = setting.backbone, setting.recipe
        self.bank = Bank(
            specs,
            backbone.modules(),
            backbone.d_model,
            len(setting.labels),
            backbone.head_std,
            setting.device,
        )
        self.optimizer = AdamW(self.bank, recipe.train.weight_decay, recipe.train.max_grad_norm)
        self.losses: dict[str, list[float]] = {spec.name: [] for spec in specs}
        self.kept: dict[str, Kept] = {}
        self.epochs = 0
        for spec, segment in zip(specs, self.bank.segments, strict=True):
            if state := states.get(spec.name):
                self._restore(segment, spec.name, state)

    @torch.no_grad()
    def _restore(self, segment: slice, name: str, state: AdapterState) -> None:
        self.bank.flat[segment].copy_(state.parameters)
        self.optimizer.exp_avg[segment].copy_(state.exp_avg)
        self.optimizer.exp_avg_sq[segment].copy_(state.exp_avg_sq)
        self.losses[name] = list(state.losses)
        self.optimizer.steps, self.epochs = len(state.losses), state.epochs
        if state.kept:
            self.kept[name] = state.kept

    def states(self) -> dict[str, AdapterState]:
        """Copies of every adapter's state as it is now."""
        flat = (self.bank.flat.detach(), self.optimizer.exp_avg, self.optimizer.exp_avg_sq)
        parameters, exp_avg, exp_avg_sq = (part.to("cpu", copy=True) for part in flat)
        return {
            name: AdapterState(
                parameters[segment],
                exp_avg[segment],
                exp_avg_sq[segment],
                list(self.losses[name]),
                self.epochs,
                self.kept.get(name),
            )
            for name, segment in zip(self.names, self.bank.segments, strict=True)
        }

    def run(self) -> dict[str, Trained]:
        """Train to the end; adapter name -> what became of it, without those that were dropped."""
        setting, split = self.setting, self.setting.splits["train"]
        steps = setting.recipe.train.epochs * setting.steps_per_epoch()
        if self.steps < steps:
            self._begin()
        while True:
            self._catch_up()
            if self.steps == steps or not self.bank.specs:
                return self._finish()
            train(
                setting.backbone,
                self.bank,
                split.ids,
                split.targets,
                setting.recipe,
                class_weights=setting.class_weights(),
                optimizer=self.optimizer,
                micro_batches=self.micro_batches,
                on_step=self._on_step,
                on_epoch=self._on_epoch,
                on_failure=None if setting.recipe.train.on_nan == "stop" else self._on_failure,
            )

    def _catch_up(self) -> None:
        """Validate where training was left between an epoch's last step and its validation."""
        done, begun = divmod(self.steps, self.setting.steps_per_epoch())
        if self.bank.specs and not begun and done > self.epochs:
            self._on_epoch(done)

    def _on_step(self, step: StepResult) -> None:
        self._settled = False
        self._record(step, range(len(self.names)))
        self._settled = True
        self.on_saveable(self, False)

    def _record(self, step: StepResult, adapters: Iterable[int]) -> None:
        """Log a step of some of the bank's adapters, and say it."""
        chosen = list(adapters)
        names = [self.names[k] for k in chosen]
        if not names:
            return
        figures = {key: [getattr(step, key)[k] for k in chosen] for key in ("losses", "grad_norms")}
        for name, loss in zip(names, figures["losses"], strict=True):
            self.losses[name].append(loss)
        self.tokens += step.tokens * len(chosen) // len(self.names)
        self._log(kind="step", bank=self.number, adapters=names, **asdict(step) | figures)
        self.setting.callback.step(names, step.number, step.steps, figures["losses"])
        recent = np.mean([self.losses[name][-20:] for name in names], axis=1)
        self.setting.callback.advance(1, "loss " + " ".join(f"{loss:.2f}" for loss in recent))

    def _on_epoch(self, epoch: int) -> None:
        """Validate, and keep the adapters that the recipe wants kept."""
        signals.check()
        start = time.perf_counter()
        logits = self.setting.predict(self.bank, "validation")
        found = [self.setting.metrics("validation", each) for each in logits]
        figures = {key: [getattr(m, key) for m in found] for key in ("accuracy", "macro_f1", "log_loss")}
        with signals.held():
            self._settled = False
            self._log(kind="validation", bank=self.number, adapters=self.names, epoch=epoch, **figures)
            for k, (name, accuracy) in enumerate(zip(self.names, figures["accuracy"], strict=True)):
                kept = self.kept.get(name)
                if self.setting.recipe.train.keep == "last" or kept is None or accuracy > kept.accuracy:
                    self.kept[name] = Kept(epoch, accuracy, self.bank.state(k), logits[k])
            self.epochs = epoch
            self._settled = True
            self.setting.callback.validation(
                Validation(self.names, epoch, self.setting.recipe.train.epochs, self.steps, **figures)
            )
            self.evaluating += time.perf_counter() - start
        self.on_saveable(self, True)
        if epoch < self.setting.recipe.train.epochs:
            self._begin()

    def _on_failure(self, step: StepResult, failures: list[Failure]) -> None:
        """Go on without the adapters that are no longer numbers."""
        self._settled = False
        reasons = {failure.adapter: failure.reason for failure in failures}
        self._record(step, [k for k, name in enumerate(self.names) if name not in reasons])
        for spec in self.bank.specs:
            if spec.name in reasons:
                where = {"name": spec.name, "rank": spec.rank, "seed": spec.seed, "step": step.number}
                self.diverged.append(Diverged(**where, reason=reasons[spec.name]))
                self.setting.callback.note(
                    f"step {step.number}: adapter {spec.name} is dropped: {reasons[spec.name]}"
                )
        staying = [spec for spec in self.bank.specs if spec.name not in reasons]
        self._place(staying, self.states())
        self._settled = True
        self.on_saveable(self, True)

    def _finish(self) -> dict[str, Trained]:
        """Adapter name -> outcome, with test predictions where there is a test split."""
        self._settled = False  # the bank is about to hold what was kept, not where training ended
        for k, name in enumerate(self.names):
            self.bank.load(k, self.kept[name].state)
        logits = {name: {"validation": self.kept[name].logits} for name in self.names}
        if "test" in self.setting.splits and self.names:
            start = time.perf_counter()
            for name, found in zip(self.names, self.setting.predict(self.bank, "test"), strict=True):
                logits[name]["test"] = found
            self.evaluating += time.perf_counter() - start
        return {
            spec.name: Trained(
                spec,
                self.kept[spec.name].state,
                self.kept[spec.name].epoch,
                float(np.mean(self.losses[spec.name])),
                logits[spec.name],
            )
            for spec in self.bank.specs
        }

    def _log(self, **line: Any) -> None:
        """A line of history.jsonl."""
        files.append_line(self.setting.history, json.dumps(line, allow_nan=False))

    def _begin(self) -> None:
        steps = self.setting.recipe.train.epochs * self.setting.steps_per_epoch()
        self.setting.callback.begin(self.title, steps)
        self.setting.callback.advance(self.steps)
