"""A worker of a cluster: an actor that trains one bank after another.

The driver asks it again and again to go on for a second, and gets a report of each second. So progress is
reported at most once a second, and a worker that dies loses what it did since its last states::

    driver    begin(bank)   go()          go()                go()
    worker                  steps 1..40   steps 41..80,       steps 81..90, done:
                                          an epoch's end      states, logits on test
              <----------   events        events, states      events, states, logits
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray

from rankwise import hardware
from rankwise.cluster.shipping import ShippedBase, ShippedData, ShippedTexts
from rankwise.commands.bank import Order
from rankwise.nn.batch import Ids
from rankwise.training.callbacks import Validation
from rankwise.training.journal import SaveEvery
from rankwise.training.state import AdapterState
from rankwise.training.trainer import StepResult, Trainer

REPORT_SECONDS = 1.0
"""Time between two reports."""


@dataclass(frozen=True)
class Machine:
    """How a worker computes."""

    device: str
    precision: torch.dtype
    threads: int


@dataclass(frozen=True)
class Greeting:
    """What a worker is."""

    host: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Report:
    """What a worker has done since its last report."""

    events: Sequence[tuple[StepResult | Validation, float]] = ()  # with the seconds that each took
    states: Mapping[str, AdapterState] = field(default_factory=dict)  # of all adapters, if there are any
    is_done: bool = False
    test_logits: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  # when done
    is_out_of_memory: bool = False
    is_lost: bool = False  # the worker was ended for it


class Worker:
    """An actor with a backbone.

    Args:
        base: the base model.
        machine: how to compute.
    """

    def __init__(self, base: ShippedBase, machine: Machine) -> None:
        torch.set_num_threads(machine.threads)
        self.backbone = base.backbone(machine.precision, torch.device(machine.device))
        self.trainer: Trainer | None = None

    def greet(self) -> Greeting:
        """Who this is; answered when the worker has started."""
        return Greeting(socket.gethostname(), own_versions())

    def begin(
        self, order: Order, data: ShippedData, test: ShippedTexts | None, every: SaveEvery | None = None
    ) -> None:
        """Take a bank.

        Args:
            order: the bank.
            data: its training data.
            test: texts to evaluate the kept snapshots on, when the bank is trained.
            every: how often to send states within an epoch.
        """
        self.order, self.data, self.every = order, data, every
        self.test: list[Ids] = test.texts() if test else []
        self.trainer, self.sent, self.due = None, time.monotonic(), False

    def go(self) -> Report:
        """Train for a second, or until the bank is trained."""
        try:
            with hardware.own_torch():
                return self._go()
        except (RuntimeError, MemoryError) as error:
            if not hardware.is_out_of_memory(error):
                raise
            self.trainer = None
            return Report(is_out_of_memory=True)

    def _go(self) -> Report:
        trainer = self.trainer = self.trainer or self._trainer()
        events: list[tuple[StepResult | Validation, float]] = []
        end = time.monotonic() + REPORT_SECONDS
        while not trainer.done and (not events or time.monotonic() < end):
            start = time.perf_counter()
            event = trainer.validate() if trainer.validation_due else trainer.step()
            events.append((event, time.perf_counter() - start))
            self.due |= self._is_due(event, trainer)
        if not trainer.done:
            return Report(events, self._states(trainer) if self.due else {})
        logits = trainer.kept_logits(self.test) if self.test and trainer.specs else {}
        return Report(events, self._states(trainer), is_done=True, test_logits=logits)

    def states(self) -> dict[str, AdapterState]:
        """Name -> state of each adapter of the bank in training after its last step; empty without a bank."""
        return self._states(self.trainer) if self.trainer else {}

    def _trainer(self) -> Trainer:
        order = self.order
        return Trainer(
            self.backbone,
            order.specs,
            self.data.data(),
            order.settings,
            saved=order.saved,
            micro_batches=order.micro_batches,
        )

    def _is_due(self, event: StepResult | Validation, trainer: Trainer) -> bool:
        """Whether states must be sent with the next report, as a sweep saves a checkpoint."""
        if isinstance(event, Validation) or event.failures or self.every is None:
            return True
        late = time.monotonic() - self.sent >= self.every.seconds
        return late or bool(self.every.steps and trainer.step_number % self.every.steps == 0)

    def _states(self, trainer: Trainer) -> dict[str, AdapterState]:
        self.sent, self.due = time.monotonic(), False
        return trainer.state()


def own_versions() -> dict[str, str]:
    """Versions that must be the same in all processes."""
    return {"rankwise": version("rankwise"), "torch": torch.__version__}
