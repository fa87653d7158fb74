"""Trains the banks of a sweep on a Ray cluster; all results return to the run folder of this process.

Every worker trains one bank at a time. Base and data travel through the object store, once to every machine.
A worker that dies is replaced, and its bank goes on from the last states that arrived::

    journal.banks      1 2 3 4 5 6
    worker A           1 ------ | 4 ---
    worker B           2 --- | 3 --------- | 5
    worker C           killed      restarted: 6

Results do not depend on the order in which banks finish: the journal and history.jsonl are sorted by bank at
the end of a stage. Banks of the same adapters give the same bytes with and without a cluster.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rankwise import cores, hardware
from rankwise.cluster.connection import LOCAL, connected, ray_module
from rankwise.cluster.pool import Pool, cause_of, room
from rankwise.cluster.shipping import ShippedBase, ShippedData, ShippedTexts
from rankwise.cluster.worker import Greeting, Machine, Report, Worker, own_versions
from rankwise.commands.bank import Order, Training, drop, relieve
from rankwise.commands.material import Material
from rankwise.errors import Unreachable, UsageError
from rankwise.nn.bank import AdapterSpec
from rankwise.nn.batch import Ids
from rankwise.store import files
from rankwise.training import signals
from rankwise.training.callbacks import Callback, Validation
from rankwise.training.checkpoint import BankPlan
from rankwise.training.journal import Journal
from rankwise.training.state import AdapterState, Kept
from rankwise.training.trainer import StepResult

SAVE_SECONDS = 5.0
"""Least time between two checkpoints, which hold the states of all banks in training."""
SAVE_SHARE = 0.05
"""Largest share of its time that the driver writes checkpoints, while workers wait for it."""
LAST_SECONDS = 10.0
"""Time for the last states of all banks when a run is interrupted."""
MOST_LOSSES = 5
"""Workers that a bank may lose in a row without sending states."""
STORE_BYTES = 256 << 20
"""Size of a local object store, besides base and data."""
SPARE_FACTOR = 1.2
"""Room in it for each byte of the base."""


class Cluster:
    """A Ray cluster that trains banks: a `TrainBanks`.

    Args:
        address: `local`, `auto`, HOST:PORT or ray://HOST:PORT.
        cpus: cores, and so threads, of a worker; by default, as many as this process uses.
        gpus: GPUs of a worker; by default 1 if the cluster has any, else 0.
        workers: most workers; by default, as many as the cluster has room for.

    >>> with Cluster("local", cpus=1) as cluster:  # doctest: +SKIP
    ...     sweep(recipe, train=cluster)
    """

    def __init__(
        self,
        address: str,
        *,
        cpus: int | None = None,
        gpus: float | None = None,
        workers: int | None = None,
    ) -> None:
        self.address, self.cpus = address, cpus or hardware.threads()
        ray_module()
        self._gpus, self._workers = gpus, workers
        self._stack, self._ray = ExitStack(), None
        self._pool: Pool | None = None
        self._base: Any = None

    def __enter__(self) -> Self:
        if self.address != LOCAL:
            self._connect(None)
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool, self._base = None, None
        self._stack.close()
        self._ray = None

    @property
    def workers(self) -> int:
        """Number of workers that the cluster has room for, at least 1."""
        if self._ray is None:
            return room({"CPU": cores.usable()}, self.cpus, 0, self._workers)
        return room(self._ray.cluster_resources(), self.cpus, self.gpus, self._workers)

    @property
    def workers_here(self) -> int:
        """How many of them share the memory of this machine."""
        return self.workers if self.address == LOCAL else 1

    @property
    def gpus(self) -> float:
        """GPUs of a worker."""
        if self._gpus is not None or self._ray is None:
            return self._gpus or 0
        return 1 if self._ray.cluster_resources().get("GPU") else 0

    def __call__(
        self,
        training: Training,
        done: Callable[[str], bool],
        material: Material,
        journal: Journal,
        callback: Callback,
    ) -> None:
        """Train every bank of a stage that the journal holds, as `train_banks` does.

        Raises:
            ResourceError: even one adapter with one text at a time does not fit into a worker's memory.
            TrainingError: an adapter has diverged, and the recipe says to stop.
            Unreachable: the cluster is gone, or a bank has lost one worker after another.
        """
        if not material.group.is_alone:
            raise UsageError("a bank is trained by several processes or on a cluster, not both")
        banks = [journal.names(bank) for bank in journal.banks_of(training.stage)]
        waiting = deque(names for names in banks if not all(map(done, names)))
        if waiting:
            self._prepare(material)
            _Stage(self, training, material, journal, callback).run(waiting)

    def _connect(self, store_bytes: int | None) -> None:
        cpus = self.cpus * (self._workers or max(1, cores.usable() // self.cpus))
        self._ray = self._stack.enter_context(
            connected(self.address, cpus=cpus if self.address == LOCAL else None, store_bytes=store_bytes)
        )

    def _prepare(self, material: Material) -> None:
        """Put the base model into the object store."""
        if self._base is not None:
            return
        base = ShippedBase.of(material.base)
        if self._ray is None:
            texts = sum(len(ids) + 1 for split in material.splits.values() for ids in split.ids)
            self._connect(STORE_BYTES + round(SPARE_FACTOR * base.size) + 4 * 8 * texts)
        self._base = self.ray.put(base)
        device = "cuda" if self.gpus else str(material.device)
        self._machine = Machine(device, material.precision, self.cpus)

    @property
    def ray(self) -> Any:
        """The package ray, connected."""
        return self._ray

    @property
    def pool(self) -> Pool:
        """The workers, which are kept from stage to stage."""
        if self._pool is None:
            self._pool = Pool(self.ray, self._start, lambda: self.workers, _check_versions)
        return self._pool

    def _start(self) -> Any:
        started = self.ray.remote(Worker).options(num_cpus=self.cpus, num_gpus=self.gpus)
        return started.remote(self._base, self._machine)


def _check_versions(greeting: Greeting) -> None:
    """Raise a UsageError if a worker has other versions than this process."""
    for package, number in own_versions().items():
        if greeting.versions[package] != number:
            found = greeting.versions[package]
            raise UsageError(
                f"the worker on {greeting.host} has {package} {found}, and this process {number}",
                hint="install the same versions on every machine",
            )


@dataclass
class _Running:
    """A bank in training."""

    names: list[str]
    worker: Any
    events: list[tuple[StepResult | Validation, float]] = field(default_factory=list)  # not yet recorded


class _Stage:
    """The training of the banks of a stage."""

    def __init__(
        self, cluster: Cluster, training: Training, material: Material, journal: Journal, callback: Callback
    ) -> None:
        self.cluster, self.training, self.material = cluster, training, material
        self.journal, self.callback = journal, callback
        self.running: dict[Any, _Running] = {}  # reference to a report -> bank
        self.steps: dict[str, int] = {}  # first adapter of a bank -> steps done
        self.losses: dict[str, int] = {}  # the same -> workers lost since its last states
        self.saved = time.monotonic()
        self.saving = 0.0  # seconds that the last checkpoint took
        self.has_changed = False  # whether states have arrived since
        self.total = 0
        put = cluster.ray.put
        self.data = put(ShippedData.of(training.data))
        test = material.splits.get("test") if training.stage == "train" else None
        self.test = put(ShippedTexts.of(test.ids)) if test else None

    def run(self, waiting: deque[list[str]]) -> None:
        """Train banks until none is left."""
        training, journal = self.training, self.journal
        self.callback.bank(
            training.stage, {name: training.specs[name].rank for names in waiting for name in names}
        )
        self._expect(waiting)
        self.callback.begin(self._title(waiting), self.total)
        self.callback.advance(sum(self.steps.values()))
        try:
            while waiting or self.running:
                with journal.clock.timed(training.stage):
                    self._assign(waiting)
                    self._listen(waiting)
                late = time.monotonic() - self.saved >= max(SAVE_SECONDS, self.saving / SAVE_SHARE)
                if late and self.has_changed:
                    self._save()
        except (KeyboardInterrupt, Unreachable):
            self._take_last_states()
            self._save()
            raise
        self.callback.end()
        in_bank_order(journal, training)
        journal.save()

    def _expect(self, waiting: Iterable[list[str]]) -> None:
        """Count the steps of banks, and those that they have done."""
        for names in waiting:
            self.total += self._length(names)
            saved = [self.journal.adapters[name] for name in names if name in self.journal.adapters]
            self.steps[names[0]] = max((state.steps for state in saved), default=0)

    def _title(self, waiting: Sequence[list[str]]) -> str:
        """Such as `train: 4 banks` or `tune: 10 trials in 2 banks`; a search counts its trials itself."""
        if self.training.stage == "search":
            return self.training.title(1)
        banks = f"{len(waiting)} bank{'s' * (len(waiting) > 1)}"
        trials = f"{sum(map(len, waiting))} trials in " if self.training.stage == "tune" else ""
        return f"{self.training.stage}: {trials}{banks}"

    def _assign(self, waiting: deque[list[str]]) -> None:
        while waiting:
            names = self.journal.names(self._bank(waiting[0]))  # without those that have diverged
            busy = len(self.running)
            worker = self.cluster.pool.take(busy, busy + len(waiting)) if names else None
            if names and worker is None:
                return
            first = waiting.popleft()[0]
            if worker is None:
                continue
            self.steps[names[0]] = self.steps.pop(first, 0)  # the first adapter may have diverged
            bank, specs = self._bank(names), [self.training.specs[name] for name in names]
            saved = {name: self.journal.adapters[name] for name in names if name in self.journal.adapters}
            order = Order(self.training.stage, specs, self.training.settings, saved, bank.micro_batches)
            worker.begin.remote(order, self.data, self.test, self.journal.every)
            self.running[worker.go.remote()] = _Running(names, worker)

    def _listen(self, waiting: deque[list[str]]) -> None:
        """Take in what workers report within a second."""
        for reference in self.cluster.pool.wait(self.running, self.callback.note):
            with signals.held():  # events and states must belong to the same step
                if (report := self._report(reference)) is None:
                    self._lost(self.running.pop(reference), waiting)
                else:
                    self._take(report, self.running.pop(reference), waiting)

    def _take_last_states(self) -> None:
        """Take in the present states of the banks in training, as far as their workers answer in time."""
        ray, end = self.cluster.ray, time.monotonic() + LAST_SECONDS
        asked = {reference: bank.worker.states.remote() for reference, bank in self.running.items()}
        for reference, bank in self.running.items():
            try:
                report = ray.get(reference, timeout=max(0.0, end - time.monotonic()))
                states = ray.get(asked[reference], timeout=max(0.0, end - time.monotonic()))
            except Exception:
                self.callback.note(
                    f"the bank of {bank.names[0]} goes on from an earlier step: no answer from its worker"
                )
                continue
            bank.events += report.events
            if states:
                self._record(bank, states)

    def _report(self, reference: Any) -> Report | None:
        """A worker's report; None if the worker is lost."""
        errors = self.cluster.ray.exceptions
        try:
            report: Report = self.cluster.ray.get(reference)
        except errors.RayTaskError as error:
            raise cause_of(error) from None
        except errors.OutOfMemoryError:  # the cluster has ended the worker
            return Report(is_out_of_memory=True, is_lost=True)
        except errors.RayError:
            return None
        return report

    def _lost(self, bank: _Running, waiting: deque[list[str]]) -> None:
        first = bank.names[0]
        self.losses[first] = self.losses.get(first, 0) + 1
        if self.losses[first] > MOST_LOSSES:
            raise Unreachable(
                f"the bank of {first} has lost {MOST_LOSSES + 1} workers in a row",
                hint="the logs of the cluster say why, such as that a machine has too little memory",
            )
        self.callback.note(f"a worker is lost; the bank of {first} goes on elsewhere")
        waiting.append(bank.names)

    def _take(self, report: Report, bank: _Running, waiting: deque[list[str]]) -> None:
        """Take in a report, and let the worker go on."""
        if report.is_out_of_memory:
            if not report.is_lost:
                self.cluster.pool.release(bank.worker)
            self._relieve(bank, waiting)
            return
        if not report.is_done:
            self.running[bank.worker.go.remote()] = bank
        self._show(report.events, bank)
        bank.events += report.events
        if report.states or report.is_done:
            self.losses.pop(bank.names[0], None)
            self._record(bank, report.states)
        if report.is_done:
            self.cluster.pool.release(bank.worker)
            self._save()  # a finished adapter is not trained again, so its history must not be lost
            self._finish(bank, report)

    def _show(self, events: Sequence[tuple[StepResult | Validation, float]], bank: _Running) -> None:
        for event, _ in events:
            if isinstance(event, Validation):
                self.callback.validation(event)
            else:
                self.steps[bank.names[0]] = event.number
                self.callback.step(event.adapters, sum(self.steps.values()), self.total, event.losses)

    def _record(self, bank: _Running, states: Mapping[str, AdapterState]) -> None:
        """Move a bank's events and states to the journal, so that they belong to the same step."""
        is_final = self.training.stage == "train"
        number = self.journal.bank_number("train", bank.names) if is_final else 0
        failures = []
        while bank.events:
            event, seconds = bank.events.pop(0)
            if isinstance(event, Validation):
                self.journal.record(number, event)
                continue
            self.journal.count(event, seconds)
            failures += event.failures
            if event.adapters:
                self.journal.record(number, event)
        self.journal.adapters |= {name: _owned(state) for name, state in states.items()}
        self.has_changed = True
        if failures:
            drop(failures, self.training, self.material, self.journal, self.callback)
            self._save()

    def _finish(self, bank: _Running, report: Report) -> None:
        names = [name for name in bank.names if name in report.states]
        specs = [self.training.specs[name] for name in names]
        states = {name: self.journal.adapters[name] for name in names}
        self.training.finish(TrainedElsewhere(specs, states, report.test_logits))
        for name in bank.names:
            if not self.training.keeps(name):
                self.journal.adapters.pop(name, None)

    def _relieve(self, bank: _Running, waiting: deque[list[str]]) -> None:
        """Split a bank, or its batches, and train it again from its last states."""
        stage, journal = self.training.stage, self.journal
        bank.events = []
        self._save()
        before = {tuple(journal.names(each)) for each in journal.banks_of(stage)}
        relieve(journal.bank_number(stage, bank.names), self.training, self.material, journal, self.callback)
        after = [journal.names(each) for each in journal.banks_of(stage)]
        new = [names for names in after if tuple(names) not in before] or [bank.names]
        self.total -= self._length(bank.names)
        self.steps.pop(bank.names[0], None)
        self._expect(new)
        waiting.extend(new)

    def _save(self) -> None:
        start = time.monotonic()
        self.journal.save()
        self.saved, self.has_changed = time.monotonic(), False
        self.saving = self.saved - start

    def _bank(self, names: Sequence[str]) -> BankPlan:
        stage = self.training.stage
        return self.journal.banks_of(stage)[self.journal.bank_number(stage, names) - 1]

    def _length(self, names: Sequence[str]) -> int:
        """Steps of a bank's longest schedule."""
        settings, texts = self.training.settings, len(self.training.data.targets)
        return max(settings.schedule_steps(self.training.specs[name].epochs, texts) for name in names)


@dataclass(frozen=True)
class TrainedElsewhere:
    """A bank that a worker has trained: what `Training.finish` needs of a trainer."""

    specs: Sequence[AdapterSpec]
    states: Mapping[str, AdapterState]
    test_logits: Mapping[str, NDArray[np.float32]]

    def state(self) -> dict[str, AdapterState]:
        """Name -> state of each adapter."""
        return dict(self.states)

    def kept(self) -> dict[str, Kept]:
        """Name -> kept snapshot."""
        return {name: state.kept for name, state in self.states.items() if state.kept}

    def kept_logits(
        self, texts: Sequence[Ids], on_texts: Callable[[int], None] = lambda texts: None
    ) -> dict[str, NDArray[np.float32]]:
        """The logits on the test texts, which the worker has computed."""
        on_texts(len(texts))
        return dict(self.test_logits)


def _owned(state: AdapterState) -> AdapterState:
    """A state whose arrays are not in the object store, where they would be read-only and take room."""
    kept = state.kept and replace(state.kept, logits=state.kept.logits.copy())
    return replace(state, kept=kept)


def in_bank_order(journal: Journal, training: Training) -> None:
    """Sort what the banks of a stage have left, as if one bank had been trained after another."""
    banks = [bank.adapters for bank in journal.banks_of(training.stage)]
    place = {name: number for number, names in enumerate(banks, 1) for name in names}
    journal.trials[:] = _sorted(journal.trials, [[trial.name] for trial in journal.trials], place)
    journal.diverged[:] = _sorted(journal.diverged, [[each.name] for each in journal.diverged], place)
    history = journal.run.history
    if history.exists():
        lines = history.read_text("utf-8").splitlines(keepends=True)
        adapters = [json.loads(line)["adapters"] for line in lines]
        ordered = _sorted(lines, adapters, place)
        if training.stage == "train":  # a split renumbers the banks after it
            ordered = [_numbered(line, place) for line in ordered]
        files.write_text(history, "".join(ordered))


def _sorted(items: Sequence[Any], adapters: Sequence[Sequence[str]], place: Mapping[str, int]) -> list[Any]:
    """Items of the banks in their order, after those of no bank.

    >>> _sorted(["z", "b", "a"], [["z"], ["b"], ["a"]], {"a": 1, "b": 2})
    ['z', 'a', 'b']
    """
    numbers = [min((place[name] for name in names if name in place), default=0) for names in adapters]
    return [items[i] for i in sorted(range(len(items)), key=numbers.__getitem__)]


def _numbered(line: str, place: Mapping[str, int]) -> str:
    """A line of history.jsonl with the number of the bank that has its adapters now."""
    value = json.loads(line)
    numbers = [place[name] for name in value["adapters"] if name in place]
    if value["bank"] == 0 or not numbers or value["bank"] in numbers:
        return line
    return json.dumps(value | {"bank": min(numbers)}, allow_nan=False) + "\n"
