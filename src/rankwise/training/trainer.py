"""The trainer: trains all adapters of one bank, step by step.

    trainer = Trainer(backbone, specs, data, recipe)
    while not trainer.done:
        if trainer.validation_due:
            trainer.validate()
        else:
            trainer.step()

A trainer does no file I/O. Its results are determined by the specs, the data and the settings. Signals can
interrupt it between steps or during a forward pass, but never during an update.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import AdapterSpec, Bank
from rankwise.nn.batch import Ids
from rankwise.nn.inference import bank_logits
from rankwise.nn.ragged.step import RaggedStep
from rankwise.nn.static.graphs import CudaRecorder
from rankwise.nn.static.step import StaticStep
from rankwise.nn.step import TrainingStep
from rankwise.recipe import TrainSettings
from rankwise.stats.metrics import metrics
from rankwise.training import signals
from rankwise.training.callbacks import Validation
from rankwise.training.optimizer import AdamW
from rankwise.training.schedule import schedule
from rankwise.training.state import AdapterState, Kept


@dataclass(frozen=True)
class Failure:
    """An adapter whose loss, gradient or weights are not finite after a step."""

    spec: AdapterSpec
    step: int  # from 1
    reason: str  # includes the numbers of the step's training texts, from 1


@dataclass(frozen=True)
class StepResult:
    """The result of one step, for each adapter that is still finite, in the bank's order."""

    number: int  # from 1
    steps: int  # total number of steps
    epoch: float  # fractional epochs so far
    learning_rate: float
    adapters: list[str]  # names
    losses: list[float]
    grad_norms: list[float]  # before clipping
    tokens: int  # total over these adapters
    failures: list[Failure]  # adapters dropped from the bank after this step


@dataclass(frozen=True)
class TrainingData:
    """Training texts, and validation texts to evaluate after each epoch."""

    ids: Sequence[Ids]  # token ids of each training text, (length,) int64
    targets: NDArray[np.int64]  # (training texts,) label ids
    labels: Sequence[str]  # class names in the model's order
    class_weights: NDArray[np.float32] | None = None  # (classes,) weights of the loss
    validation_ids: Sequence[Ids] = ()
    validation_targets: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@dataclass(frozen=True)
class _Workbench:
    """The bank in training and the objects built for it; rebuilt when adapters are dropped."""

    bank: Bank
    optimizer: AdamW
    states: dict[str, AdapterState]  # adapter -> views of bank and optimizer
    backward: TrainingStep


class Trainer:
    """Trains the adapters of one bank on the same texts, each in its own order.

    Args:
        backbone: the frozen model.
        specs: the adapters.
        data: training and validation data.
        settings: epochs, batch size, learning rate and so on.
        saved: adapter name -> saved state to resume from.
        micro_batches: micro-batches per batch, for gradient accumulation; requires a bank of one adapter.
        record: called after each step and validation while signals are deferred, so that its records
            and the trainer's state always belong to the same step.
    """

    def __init__(
        self,
        backbone: Backbone,
        specs: Sequence[AdapterSpec],
        data: TrainingData,
        settings: TrainSettings,
        *,
        saved: Mapping[str, AdapterState] | None = None,
        micro_batches: int = 1,
        record: Callable[[StepResult | Validation], None] = lambda event: None,
    ) -> None:
        self.backbone, self.data, self.settings = backbone, data, settings
        self.micro_batches, self.record = micro_batches, record
        self.steps = settings.epochs * self.steps_per_epoch
        self.settled = True
        """Whether the states and the records belong to the same step, so that they can be saved."""
        self._bench = self._place(specs, saved or {})

    @property
    def bank(self) -> Bank:
        """The adapters."""
        return self._bench.bank

    @property
    def names(self) -> list[str]:
        """The adapters' names."""
        return [spec.name for spec in self.bank.specs]

    @property
    def step_number(self) -> int:
        """Number of completed steps."""
        return self._bench.optimizer.steps

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps per epoch."""
        return math.ceil(len(self.data.ids) / self.settings.batch_size)

    @property
    def validation_due(self) -> bool:
        """Whether an epoch has ended and has not been validated yet."""
        epochs, rest = divmod(self.step_number, self.steps_per_epoch)
        validated = min((state.epochs for state in self._bench.states.values()), default=epochs)
        return bool(len(self.data.validation_ids)) and not rest and epochs > validated

    @property
    def done(self) -> bool:
        """Whether training and validation are complete, or no adapter is left."""
        return not self.bank.specs or (self.step_number >= self.steps and not self.validation_due)

    def state(self) -> dict[str, AdapterState]:
        """Copies of every adapter's current state."""
        return {name: state.copy() for name, state in self._bench.states.items()}

    def kept(self) -> dict[str, Kept]:
        """The kept snapshot of each adapter: the last or the best epoch on validation, as set by `keep`."""
        return {name: state.kept for name, state in self._bench.states.items() if state.kept}

    def step(self) -> StepResult:
        """Run one optimizer step of every adapter. Adapters that are no longer finite are dropped."""
        signals.check()
        number, bench = self.step_number, self._bench
        batches = [self._batch(spec.seed, number) for spec in self.bank.specs]
        texts = [[self.data.ids[n] for n in batch] for batch in batches]
        losses = bench.backward(texts, [self.data.targets[batch] for batch in batches], number)
        rate = self._learning_rate(number)
        with signals.held():
            self.settled = False
            norms = bench.optimizer.step(rate).tolist()
            failures = self._failures(losses.tolist(), norms, batches)
            failed = {failure.spec.name for failure in failures}
            staying = [k for k, name in enumerate(self.names) if name not in failed]
            tokens = [sum(len(ids) for ids in batch) for batch in texts]
            result = StepResult(
                number=number + 1,
                steps=self.steps,
                epoch=(number + 1) / self.steps_per_epoch,
                learning_rate=rate,
                adapters=[self.names[k] for k in staying],
                losses=[losses.tolist()[k] for k in staying],
                grad_norms=[norms[k] for k in staying],
                tokens=sum(tokens[k] for k in staying),
                failures=failures,
            )
            self._take(result)
            self.settled = True
        return result

    def validate(self, on_texts: Callable[[int], None] = lambda texts: None) -> Validation:
        """Evaluate every adapter on the validation texts, and update the kept snapshots.

        Args:
            on_texts: called with the number of texts after each forward pass.
        """
        signals.check()
        targets = self.data.validation_targets
        logits = bank_logits(self.backbone, self.bank, self.data.validation_ids, on_texts)
        measured = [metrics("validation", targets, of_adapter, self.data.labels) for of_adapter in logits]
        epoch = self.step_number // self.steps_per_epoch
        found = Validation(
            adapters=self.names,
            epoch=epoch,
            epochs=self.settings.epochs,
            step=self.step_number,
            accuracy=[of_adapter.accuracy for of_adapter in measured],
            macro_f1=[of_adapter.macro_f1 for of_adapter in measured],
            log_loss=[of_adapter.log_loss or 0.0 for of_adapter in measured],
        )
        with signals.held():
            self.settled = False
            for k, state in enumerate(self._bench.states.values()):
                best = state.kept.accuracy if state.kept else -1.0
                if self.settings.keep == "last" or found.accuracy[k] > best:
                    state.kept = Kept(epoch, found.accuracy[k], self.bank.state(k), logits[k])
                state.epochs = epoch
            self.record(found)
            self.settled = True
        return found

    def kept_logits(
        self, texts: Sequence[Ids], on_texts: Callable[[int], None] = lambda texts: None
    ) -> dict[str, NDArray[np.float32]]:
        """Adapter name -> (texts, classes) logits of the kept snapshots. Ends training."""
        self.settled = False  # the bank holds the kept snapshots, not the last step
        kept = self.kept()
        for k, name in enumerate(self.names):
            self.bank.load(k, kept[name].tensors)
        logits = bank_logits(self.backbone, self.bank, texts, on_texts)
        return dict(zip(self.names, logits, strict=True))

    def _place(self, specs: Sequence[AdapterSpec], saved: Mapping[str, AdapterState]) -> _Workbench:
        """A bank of these adapters, each restored from its saved state or newly initialized."""
        model, settings, device = self.backbone, self.settings, self.backbone.tokens.device
        classes = len(self.data.labels)
        bank = Bank(specs, model.modules(), model.d_model, classes, model.head_std, device)
        optimizer = AdamW(bank, settings.weight_decay, settings.max_grad_norm)
        states = {
            spec.name: AdapterState(bank.flat[part], optimizer.exp_avg[part], optimizer.exp_avg_sq[part])
            for spec, part in zip(specs, bank.segments, strict=True)
        }
        for name in states.keys() & saved.keys():
            states[name].restore(saved[name])
            optimizer.steps = saved[name].steps
        weights = self.data.class_weights
        backward = step_of(
            model,
            bank,
            None if weights is None else torch.from_numpy(weights).to(device),
            settings.base_dropout,
            self.micro_batches,
            _warn,
        )
        return _Workbench(bank, optimizer, states, backward)

    def _batch(self, seed: int, step: int) -> NDArray[np.int64]:
        """(texts,) indices of the training texts in an adapter's batch at a step, from 0."""
        epoch, i = divmod(step, self.steps_per_epoch)
        size = self.settings.batch_size
        return order(seed, epoch, len(self.data.ids))[i * size : (i + 1) * size]

    def _learning_rate(self, step: int) -> float:
        settings = self.settings
        return settings.learning_rate * schedule(settings.schedule, step, self.steps, settings.warmup_steps)

    def _failures(
        self, losses: Sequence[float], norms: Sequence[float], batches: Sequence[NDArray[np.int64]]
    ) -> list[Failure]:
        """The adapters that are not finite. The norm of the weights is finite only if every weight is."""
        weights = [torch.linalg.vector_norm(self.bank.flat[part].detach()) for part in self.bank.segments]
        failures = []
        for k, (loss, norm, weight) in enumerate(
            zip(losses, norms, torch.stack(weights).tolist(), strict=True)
        ):
            if not math.isfinite(loss + norm + weight):
                texts = ", ".join(str(n + 1) for n in batches[k].tolist())
                reason = (
                    f"loss {loss}, gradient norm {norm} and weight norm {weight} on training texts {texts}"
                )
                failures.append(Failure(self.bank.specs[k], self.step_number, reason))
        return failures

    def _take(self, result: StepResult) -> None:
        """Record a step's losses, and continue with the adapters that are still finite."""
        for name, loss in zip(result.adapters, result.losses, strict=True):
            self._bench.states[name].losses.append(loss)
        if result.adapters:
            self.record(result)
        if result.failures:
            staying = [spec for spec in self.bank.specs if spec.name in result.adapters]
            self._bench = self._place(staying, self.state())


def step_of(
    backbone: Backbone,
    bank: Bank,
    class_weights: Tensor | None,
    base_dropout: bool,
    micro_batches: int = 1,
    on_failure: Callable[[str], None] = lambda reason: None,
) -> TrainingStep:
    """The training step for the bank's device.

    Args:
        backbone: the frozen model.
        bank: the adapters.
        class_weights: (classes,) float32 on the bank's device; None for an unweighted loss.
        base_dropout: whether the backbone's own dropout is active.
        micro_batches: micro-batches per batch, for gradient accumulation; requires a bank of one adapter.
            The dropout masks are those of the whole batch.
        on_failure: called with the reason if the device has graphs but none can be recorded.
    """
    device = bank.flat.device
    if device.type == "cuda":
        record = CudaRecorder(device)
        return StaticStep(backbone, bank, class_weights, base_dropout, record, on_failure, micro_batches)
    return RaggedStep(backbone, bank, class_weights, base_dropout, micro_batches)


@lru_cache(maxsize=64)
def order(seed: int, epoch: int, texts: int) -> NDArray[np.int64]:
    """(texts,) the data order of adapters with this seed in an epoch, from 0."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(texts)


def _warn(reason: str) -> None:
    warnings.warn(f"no CUDA graph could be recorded, so training is slower: {reason}", stacklevel=2)
