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
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.models import windows
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import AdapterSpec, Bank
from rankwise.nn.batch import Ids
from rankwise.nn.features import Features, ProbeStep, probe_logits
from rankwise.nn.inference import bank_logits
from rankwise.nn.loss import Loss
from rankwise.nn.ragged.step import RaggedStep
from rankwise.nn.static.graphs import CudaRecorder
from rankwise.nn.static.step import StaticStep
from rankwise.nn.step import WHOLE, Share, TrainingStep
from rankwise.recipe import TrainSettings
from rankwise.tasks.single import SINGLE
from rankwise.tasks.task import Targets, Task
from rankwise.training import signals
from rankwise.training.callbacks import Validation
from rankwise.training.optimizer import AdamW
from rankwise.training.parallel import ALONE, Group
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

    number: int  # from 1; of the adapter with the most steps to go
    steps: int  # its total number of steps
    adapters: list[str]  # names
    epochs: list[float]  # of each adapter, passes over the training texts so far
    learning_rates: list[float]
    losses: list[float]
    grad_norms: list[float]  # before clipping
    tokens: int  # total over these adapters
    failures: list[Failure]  # adapters dropped from the bank after this step


@dataclass(frozen=True)
class TrainingData:
    """Training texts, and validation texts to evaluate after each epoch."""

    ids: Sequence[Ids]  # token ids of each training text, or of each of its windows, (length,) int64
    targets: Targets  # of the training texts
    labels: Sequence[str]  # class names in the model's order
    class_weights: NDArray[np.float32] | None = None  # (classes,) weights of the loss
    validation_ids: Sequence[Ids] = ()
    validation_targets: Targets = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    task: Task = SINGLE
    adjustment: NDArray[np.float32] | None = None  # (classes,) added to the logits in the loss
    windows: NDArray[np.int64] | None = None  # (texts,) windows of each training text; None if each has one
    validation_windows: NDArray[np.int64] | None = None  # the same for the validation texts

    def largest_batch(self, texts: int) -> int:
        """The most windows in a batch of so many texts; without windows, its texts."""
        counts = np.ones(len(self.targets), dtype=np.int64) if self.windows is None else self.windows
        return int(np.sort(counts)[-texts:].sum())


@dataclass(frozen=True)
class _Workbench:
    """The bank in training and the objects built for it; rebuilt when adapters leave or enter."""

    bank: Bank
    optimizer: AdamW
    states: dict[str, AdapterState]  # adapter -> views of bank and optimizer
    backward: TrainingStep


class Trainer:
    """Trains the adapters of one bank on the same texts, each in its own order and with its own schedule.

    Adapters may differ in everything that their specs hold. One with a shorter schedule leaves the bank when
    it has finished; `add` puts new ones in. An adapter's results do not depend on the others, up to rounding.

    Args:
        backbone: the frozen model.
        specs: the adapters.
        data: training and validation data.
        settings: what all adapters share: batch size, kind of schedule, gradient clipping and so on.
        saved: adapter name -> saved state to resume from.
        micro_batches: micro-batches per batch, for gradient accumulation.
        record: called after each step and validation while signals are deferred, so that its records
            and the trainer's state always belong to the same step.
        group: the processes that train the bank together; each needs a trainer with the same arguments.
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
        group: Group = ALONE,
    ) -> None:
        self.backbone, self.data, self.settings = backbone, data, settings
        self.micro_batches, self.record, self.group = micro_batches, record, group
        if len({spec.name for spec in specs}) < len(specs):
            raise ValueError("two adapters of a bank have the same name")
        self.specs = list(specs)
        """The adapters that have not failed, including those that have finished."""
        self.settled = True
        """Whether the states and the records belong to the same step, so that they can be saved."""
        saved = saved or {}
        self._finished = {
            spec.name: saved[spec.name]
            for spec in specs
            if spec.name in saved and self._is_finished(spec, saved[spec.name])
        }
        self._bench = self._place([spec for spec in specs if spec.name not in self._finished], saved)

    @property
    def bank(self) -> Bank:
        """The adapters in training."""
        return self._bench.bank

    @property
    def names(self) -> list[str]:
        """The names of the adapters in training."""
        return [spec.name for spec in self.bank.specs]

    @property
    def steps(self) -> int:
        """Number of steps of the longest schedule."""
        return max(map(self.steps_of, self.specs), default=0)

    @property
    def step_number(self) -> int:
        """Number of completed steps: `steps` less those that are left to the slowest adapter."""
        left = [
            self.steps_of(spec) - state.steps
            for spec, state in zip(self.bank.specs, self._bench.states.values(), strict=True)
        ]
        return self.steps - max(left, default=0)

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps per epoch."""
        return self.settings.steps_per_epoch(len(self.data.targets))

    @property
    def is_frozen(self) -> bool:
        """Whether training needs the backbone once for each text: linear probes alone, without dropout."""
        return self._is_frozen(self.bank)

    @property
    def validation_due(self) -> bool:
        """Whether an adapter has ended an epoch or its schedule, and has not been validated since."""
        return bool(self._due())

    @property
    def done(self) -> bool:
        """Whether training and validation are complete, or no adapter is left."""
        states = self._bench.states
        return all(self._is_finished(spec, states[spec.name]) for spec in self.bank.specs)

    @property
    def finished(self) -> list[str]:
        """The names of the adapters that have completed their schedule and have been validated."""
        states = self._finished | self._bench.states
        return [spec.name for spec in self.specs if self._is_finished(spec, states[spec.name])]

    def steps_of(self, spec: AdapterSpec) -> int:
        """Number of steps of an adapter's schedule."""
        return self.settings.schedule_steps(spec.epochs, len(self.data.targets))

    def state(self) -> dict[str, AdapterState]:
        """Copies of every adapter's current state."""
        states = self._finished | self._bench.states
        return {spec.name: states[spec.name].copy() for spec in self.specs}

    def kept(self) -> dict[str, Kept]:
        """The kept snapshot of each adapter: the last or the best epoch on validation, as set by `keep`."""
        states = self._finished | self._bench.states
        kept = {spec.name: states[spec.name].kept for spec in self.specs}
        return {name: snapshot for name, snapshot in kept.items() if snapshot}

    def add(self, specs: Sequence[AdapterSpec]) -> None:
        """Put new adapters into the bank."""
        with signals.held():
            self._release(set())
            before = self.state_in_training()
            staying = [spec for spec in self.bank.specs if not self._is_finished(spec, before[spec.name])]
            self._finished |= {
                spec.name: before[spec.name] for spec in self.bank.specs if spec not in staying
            }
            self.specs += specs
            self._bench = self._place([*staying, *specs], before)

    def drop(self, names: Set[str]) -> None:
        """Forget adapters. Those that are still in training leave the bank."""
        with signals.held():
            self.specs = [spec for spec in self.specs if spec.name not in names]
            self._finished = {name: state for name, state in self._finished.items() if name not in names}
            if names & set(self.names):
                staying = [spec for spec in self.bank.specs if spec.name not in names]
                self._bench = self._place(staying, self.state_in_training())

    def state_in_training(self) -> dict[str, AdapterState]:
        """Copies of the current states of the adapters that have not finished."""
        return {name: state.copy() for name, state in self._bench.states.items()}

    def step(self) -> StepResult:
        """Run one optimizer step of every adapter. Adapters that are no longer finite are dropped."""
        signals.check()
        bench, specs = self._bench, self.bank.specs
        numbers = list(bench.optimizer.steps)
        batches = self._batches(numbers)
        texts, targets, counts = self._examples(batches)
        of_adapters = bench.backward(texts, targets, numbers, counts)
        rates = [self._learning_rate(spec, number) for spec, number in zip(specs, numbers, strict=True)]
        with signals.held():
            self.settled = False
            gradients = bench.optimizer.step(rates)
            if isinstance(bench.backward, StaticStep):  # the device is still at work
                self._prepare(bench.backward, [number + 1 for number in numbers])
            losses, norms, weights = torch.stack([of_adapters, gradients, self._weight_norms()]).tolist()
            failures = self._failures(losses, norms, weights, batches)
            failed = {failure.spec.name for failure in failures}
            staying = [k for k, name in enumerate(self.names) if name not in failed]
            for k in staying:
                bench.states[self.names[k]].losses.append(losses[k])
            result = StepResult(
                number=self.step_number,
                steps=self.steps,
                adapters=[self.names[k] for k in staying],
                epochs=[(numbers[k] + 1) / self.steps_per_epoch for k in staying],
                learning_rates=[rates[k] for k in staying],
                losses=[losses[k] for k in staying],
                grad_norms=[norms[k] for k in staying],
                tokens=sum(len(ids) for k in staying for ids in texts[k]),
                failures=failures,
            )
            if result.adapters:
                self.record(result)
            self.specs = [spec for spec in self.specs if spec.name not in failed]
            self._release(failed)
            self.settled = True
        return result

    def validate(self, on_texts: Callable[[int], None] = lambda texts: None) -> Validation:
        """Evaluate adapters that are due on the validation texts, and update their kept snapshots.

        Adapters at the same step are evaluated together; `validation_due` says whether others are due.

        Args:
            on_texts: called with the number of texts after each forward pass.
        """
        signals.check()
        due = self._due()
        specs = [self.bank.specs[k] for k in due]
        states = [self._bench.states[spec.name] for spec in specs]
        targets = self.data.validation_targets
        bank = self.bank if len(due) == len(self.bank.specs) else self.bank.subset(due)
        logits = windows.mean(self._validation_logits(bank, on_texts), self.data.validation_windows)
        labels, task = self.data.labels, self.data.task
        measured = [task.metrics("validation", targets, of_adapter, labels) for of_adapter in logits]
        scores = [of_adapter.score(self.settings.metric or task.metric) for of_adapter in measured]
        found = Validation(
            adapters=[spec.name for spec in specs],
            epoch=states[0].steps / self.steps_per_epoch,
            epochs=specs[0].epochs,
            step=states[0].steps,
            accuracy=[of_adapter.accuracy for of_adapter in measured],
            macro_f1=[of_adapter.macro_f1 for of_adapter in measured],
            log_loss=[of_adapter.log_loss or 0.0 for of_adapter in measured],
        )
        with signals.held():
            self.settled = False
            for k, state in enumerate(states):
                best = state.kept.score if state.kept else -math.inf
                if self.settings.keep == "last" or scores[k] > best:
                    state.kept = Kept(math.ceil(found.epoch), scores[k], bank.state(k), logits[k])
                state.validated = state.steps
            self.record(found)
            self._release(set())
            self.settled = True
        return found

    def kept_logits(
        self, texts: Sequence[Ids], on_texts: Callable[[int], None] = lambda texts: None
    ) -> dict[str, NDArray[np.float32]]:
        """Adapter name -> (texts, classes) logits of the kept snapshots on texts, or on windows of texts."""
        bank, kept = self._bank(self.specs), self.kept()
        for k, spec in enumerate(self.specs):
            bank.load(k, kept[spec.name].tensors)
        logits = bank_logits(self.backbone, bank, texts, on_texts)
        return {spec.name: of_adapter for spec, of_adapter in zip(self.specs, logits, strict=True)}

    def _validation_logits(self, bank: Bank, on_texts: Callable[[int], None]) -> NDArray[np.float32]:
        """(adapters, windows, classes) logits on the validation texts, or on their windows."""
        texts = self.data.validation_ids
        if bank.first_layer is None and self._keeps_features(texts):
            return probe_logits(self._validation_features, bank, on_texts)
        return self.group.logits(self.backbone, bank, texts, on_texts)

    def _keeps_features(self, texts: Sequence[Ids]) -> bool:
        """Whether the features of these texts may be kept. Several processes share the work instead."""
        return self.group.is_alone and Features.fit(self.backbone, texts)

    @cached_property
    def _features(self) -> Features:
        return Features(self.backbone, self.data.ids)

    @cached_property
    def _validation_features(self) -> Features:
        return Features(self.backbone, self.data.validation_ids)

    def _bank(self, specs: Sequence[AdapterSpec]) -> Bank:
        """A newly initialized bank of these adapters."""
        model, device = self.backbone, self.backbone.tokens.device
        return Bank(specs, model.modules(), model.d_model, len(self.data.labels), model.head_std, device)

    def _place(self, specs: Sequence[AdapterSpec], saved: Mapping[str, AdapterState]) -> _Workbench:
        """A bank of these adapters, each restored from its saved state or newly initialized."""
        bank = self._bank(specs)
        optimizer = AdamW(bank, self.settings.max_grad_norm)
        states = {
            spec.name: AdapterState(bank.flat[part], optimizer.exp_avg[part], optimizer.exp_avg_sq[part])
            for spec, part in zip(specs, bank.segments, strict=True)
        }
        for name in states.keys() & saved.keys():
            states[name].restore(saved[name])
        optimizer.steps = [state.steps for state in states.values()]
        return _Workbench(bank, optimizer, states, self._backward(bank))

    def _backward(self, bank: Bank) -> TrainingStep:
        """The training step of a bank."""
        data, dropout = self.data, self.settings.base_dropout
        loss = data.task.loss(len(data.labels), data.class_weights, data.adjustment, bank.flat.device)
        if self._is_frozen(bank):
            return ProbeStep(self._features, bank, loss)
        step = step_of(self.backbone, bank, loss, dropout, self.micro_batches, _warn, self.group.share)
        return self.group.divided(step, bank)

    def _is_frozen(self, bank: Bank) -> bool:
        """Whether the training texts have the same hidden states in every epoch, and they can be kept."""
        dropout = self.settings.base_dropout and self.backbone.has_dropout
        return bank.first_layer is None and not dropout and self._keeps_features(self.data.ids)

    def _release(self, failed: Set[str]) -> None:
        """Take failed and finished adapters out of the bank, unless all have finished."""
        states = self._bench.states
        left = [spec for spec in self.bank.specs if spec.name not in failed]
        staying = [spec for spec in left if not self._is_finished(spec, states[spec.name])]
        if not failed and (not staying or len(staying) == len(self.bank.specs)):
            return
        before = self.state_in_training()
        self._finished |= {spec.name: before[spec.name] for spec in left if spec not in staying}
        self._bench = self._place(staying, before)

    def _is_finished(self, spec: AdapterSpec, state: AdapterState) -> bool:
        """Whether an adapter has completed its schedule, and has been validated if there are texts for it."""
        validated = not len(self.data.validation_ids) or state.validated == state.steps
        return state.steps >= self.steps_of(spec) and validated

    def _due(self) -> list[int]:
        """The adapters to validate next: those that are due and have done as many steps as the first one."""
        if not len(self.data.validation_ids):
            return []
        states = [self._bench.states[spec.name] for spec in self.bank.specs]
        due = [
            k
            for k, (spec, state) in enumerate(zip(self.bank.specs, states, strict=True))
            if state.steps > state.validated
            and (not state.steps % self.steps_per_epoch or state.steps >= self.steps_of(spec))
        ]
        first = [(states[k].steps, self.bank.specs[k].epochs) for k in due[:1]]
        return [k for k in due if [(states[k].steps, self.bank.specs[k].epochs)] == first]

    def _prepare(self, step: StaticStep, numbers: Sequence[int]) -> None:
        """Let a step pack the batches of a later call."""
        texts, targets, counts = self._examples(self._batches(numbers))
        step.prepare(texts, targets, numbers, counts)

    def _batches(self, numbers: Sequence[int]) -> list[NDArray[np.int64]]:
        """Indices of the training texts in every adapter's batch at these steps."""
        return [self._batch(spec.seed, step) for spec, step in zip(self.bank.specs, numbers, strict=True)]

    def _batch(self, seed: int, step: int) -> NDArray[np.int64]:
        """(texts,) indices of the training texts in an adapter's batch at a step, from 0."""
        epoch, i = divmod(step, self.steps_per_epoch)
        size = self.settings.batch_size
        return order(seed, epoch, len(self.data.targets))[i * size : (i + 1) * size]

    def _examples(
        self, batches: Sequence[NDArray[np.int64]]
    ) -> tuple[list[list[Ids]], list[Targets], list[NDArray[np.int64]] | None]:
        """The batches as a step takes them. All windows of a text are in its batch."""
        data, counts = self.data, self.data.windows
        if counts is None:
            return [[data.ids[n] for n in b] for b in batches], [data.targets[b] for b in batches], None
        ids = [[data.ids[n] for n in windows.members(batch, counts)] for batch in batches]
        texts = [np.repeat(batch, counts[batch]) for batch in batches]
        weighted = any(len(each) > len(batch) for each, batch in zip(texts, batches, strict=True))
        return (
            ids,
            [data.targets[each] for each in texts],
            [counts[each] for each in texts] if weighted else None,
        )

    def _learning_rate(self, spec: AdapterSpec, step: int) -> float:
        kind, warmup = self.settings.schedule, round(spec.share * self.settings.warmup_steps)
        return spec.learning_rate * schedule(kind, step, self.steps_of(spec), warmup)

    def _weight_norms(self) -> Tensor:
        """(adapters,) float32 norms of the weights, each finite only if every weight is."""
        flat = self.bank.flat.detach()
        return torch.stack([torch.linalg.vector_norm(flat[part]) for part in self.bank.segments])

    def _failures(
        self,
        losses: Sequence[float],
        norms: Sequence[float],
        weights: Sequence[float],
        batches: Sequence[NDArray[np.int64]],
    ) -> list[Failure]:
        """The adapters that are not finite: losses, and norms of gradients and weights of each adapter."""
        failures = []
        for k, (loss, norm, weight) in enumerate(zip(losses, norms, weights, strict=True)):
            if not math.isfinite(loss + norm + weight):
                texts = ", ".join(str(n + 1) for n in batches[k].tolist())
                reason = (
                    f"loss {loss:.4g}, gradient norm {norm:.4g} and weight norm {weight:.4g} "
                    f"on training texts {texts}"
                )
                failures.append(Failure(self.bank.specs[k], self._bench.optimizer.steps[k], reason))
        return failures


def step_of(
    backbone: Backbone,
    bank: Bank,
    loss: Loss,
    base_dropout: bool,
    micro_batches: int = 1,
    on_failure: Callable[[str], None] = lambda reason: None,
    share: Share = WHOLE,
) -> TrainingStep:
    """The training step for the bank's device.

    Args:
        backbone: the frozen model.
        bank: the adapters.
        loss: the loss, with its tensors on the bank's device.
        base_dropout: whether the backbone's own dropout is active.
        micro_batches: micro-batches per batch, for gradient accumulation.
            The dropout masks are those of the whole batch.
        on_failure: called with the reason if the device has graphs but none can be recorded.
        share: the share of every batch that this process computes.
    """
    device = bank.flat.device
    if device.type == "cuda":
        record = CudaRecorder(device)
        return StaticStep(backbone, bank, loss, base_dropout, record, on_failure, micro_batches, share)
    return RaggedStep(backbone, bank, loss, base_dropout, micro_batches, share)


@lru_cache(maxsize=64)
def order(seed: int, epoch: int, texts: int) -> NDArray[np.int64]:
    """(texts,) the data order of adapters with this seed in an epoch, from 0."""
    return np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(texts)


def _warn(reason: str) -> None:
    warnings.warn(f"no CUDA graph could be recorded, so training is slower: {reason}", stacklevel=2)
