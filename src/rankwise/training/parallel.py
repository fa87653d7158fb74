"""Several processes that train one bank: each computes a share of every batch.

Every process holds the whole bank. In a step, each puts the gradients and losses of its share into one flat
tensor, which a single all-reduce sums over the processes; then all of them update the bank in the same way.
Only the adapters' gradients are exchanged, because the base is frozen::

    process 0    texts 0 1 4 5    grad | losses | out of memory ---+
                                                                   +-- all-reduce --> the same update
    process 1    texts 2 3 6      grad | losses | out of memory ---+

torch.distributed is used as it is. accelerate wraps models and optimizers, and a bank is neither; a process
that `accelerate launch` has started is the same as one started by torchrun.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise import hardware, processes
from rankwise.errors import RankwiseError, Unreachable, UsageError
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import Bank
from rankwise.nn.batch import Ids
from rankwise.nn.inference import bank_logits
from rankwise.nn.ragged.batch import lexical_order
from rankwise.nn.step import WHOLE, Batches, Share, Targets, TrainingStep, Windows
from rankwise.training import signals

STEP_SECONDS = 300.0
"""A process that is silent for so long within a step is given up. One that has died is noticed at once."""
ORDER_SECONDS = 7 * 86_400.0
"""The same while process 0 works alone: on the data, the baselines or the report."""
SPEECH_SECONDS = 10.0
"""Time in which process 0 says that it has noticed a loss; after it, process 1 speaks."""
_OVER = "over"
"""Key of the launcher's store: process 0 ends for a reason that it tells."""


class PeerLost(Exception):
    """Another process has died or does not answer."""


class SharedOutOfMemory(MemoryError):
    """Memory ran out in some process; raised in all of them, at the same step."""


class Group:
    """The processes that train together.

    Args:
        share: the share of every batch that this process computes.
        store: key-value store of the launcher; None for a single process.
        orders: process group of the messages between steps.
    """

    def __init__(self, share: Share = WHOLE, store: Any = None, orders: Any = None) -> None:
        self.share, self._store, self._orders = share, store, orders

    @property
    def is_alone(self) -> bool:
        """Whether this is the only process."""
        return self.share.processes == 1

    def add(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes, which is the same in all of them.

        Raises:
            PeerLost: another process has died or does not answer.
        """
        if not self.is_alone:
            with self._communicating():
                torch.distributed.all_reduce(tensor)

    def tell(self, message: Any) -> None:
        """Send a message from process 0 to the others. Raises what `add` does."""
        if not self.is_alone:
            self._broadcast(message)

    def hear(self) -> Any:
        """The next message of process 0. Raises what `add` does."""
        return self._broadcast(None)

    def collect(self, message: Any) -> list[Any]:
        """In process 0, the messages of all processes in order; elsewhere, none. Raises what `add` does."""
        if self.is_alone:
            return [message]
        found = [None] * self.share.processes if self.share.process == 0 else None
        with self._communicating():
            torch.distributed.gather_object(message, found, dst=0, group=self._orders)
        return list(found or ())

    def divided(self, step: TrainingStep, bank: Bank) -> TrainingStep:
        """A training step whose gradients and losses are summed over all processes."""
        return step if self.is_alone else _DividedStep(step, bank, self)

    def logits(
        self, backbone: Backbone, bank: Bank, texts: Sequence[Ids], on_texts: Callable[[int], None]
    ) -> NDArray[np.float32]:
        """`nn.inference.bank_logits`, with the texts divided among the processes."""
        if self.is_alone:
            return bank_logits(backbone, bank, texts, on_texts)
        order = np.array_split(np.array(lexical_order(texts)), self.share.processes)  # keeps shared prefixes
        mine = order[self.share.process]
        found = torch.zeros(len(bank.specs), len(texts), bank.classes)
        if len(mine):
            found[:, mine] = torch.from_numpy(bank_logits(backbone, bank, [texts[i] for i in mine], on_texts))
        self.add(found)
        on_texts(len(texts) - len(mine))
        return found.numpy()

    def end(self) -> None:
        """Tell the other processes that process 0 ends for a reason that it tells itself."""
        if self._store is not None and self.share.process == 0:
            try:
                self._store.set(_OVER, b"1")
            except RuntimeError:  # the store has ended with the launcher
                return

    def is_told(self) -> bool:
        """Whether process 0 has said that it ends; waits for a moment."""
        try:
            self._store.wait([_OVER], timedelta(seconds=SPEECH_SECONDS))
        except RuntimeError:
            return False
        return True

    def _broadcast(self, message: Any) -> Any:
        held = [message]
        with self._communicating():
            torch.distributed.broadcast_object_list(held, src=0, group=self._orders)
        return held[0]

    @contextmanager
    def _communicating(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            signals.check()  # the others may have been stopped by the same signal
            signals.ignore()  # a launcher stops the others when one has ended
            self.end()
            raise PeerLost(
                f"another of the {self.share.processes} processes has ended or does not answer"
            ) from error


ALONE = Group()
"""The group of a single process."""


class _DividedStep:
    """A training step of which every process computes its share. Memory that runs out does so for all."""

    def __init__(self, step: TrainingStep, bank: Bank, group: Group) -> None:
        self.step, self.bank, self.group = step, bank, group
        size = len(bank.grad) + len(bank.specs) + 1
        self.buffer = torch.zeros(size, dtype=torch.float32, device=bank.grad.device)
        """(parameters + adapters + 1,) gradients, losses, and the number of processes without memory."""

    def __call__(
        self, batches: Batches, targets: Targets, numbers: Sequence[int], windows: Windows | None = None
    ) -> Tensor:
        """See `TrainingStep`."""
        parameters = len(self.bank.grad)
        try:
            losses = self.step(batches, targets, numbers, windows)
        except (RuntimeError, MemoryError) as error:
            if not hardware.is_out_of_memory(error):
                raise
            self.buffer.fill_(1)
        else:
            self.buffer[:parameters] = self.bank.grad
            self.buffer[parameters:-1] = losses
            self.buffer[-1] = 0
        self.group.add(self.buffer)
        if self.buffer[-1] > 0:
            raise SharedOutOfMemory("out of memory")
        self.bank.grad.copy_(self.buffer[:parameters])
        return self.buffer[parameters:-1].clone()


@contextmanager
def joined() -> Iterator[Group]:
    """Join the processes that a launcher has started together; without a launcher, `ALONE`.

    Raises:
        Unreachable: not all processes have started.
    """
    if processes.count() == 1:
        yield ALONE
        return
    group = _connected(Share(processes.index(), processes.count()))
    try:
        yield group
    except BaseException:
        group.end()
        raise
    finally:
        torch.distributed.destroy_process_group()


def _connected(share: Share) -> Group:
    dist: Any = torch.distributed  # it does not declare that it exports all that it documents
    if processes.local_index() < torch.cuda.device_count():
        torch.cuda.set_device(processes.local_index())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=timedelta(seconds=STEP_SECONDS))))
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("rankwise", store),
            rank=share.process,
            world_size=share.processes,
            timeout=timedelta(seconds=STEP_SECONDS),
        )
        orders = dist.new_group(backend="gloo", timeout=timedelta(seconds=ORDER_SECONDS))
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Unreachable(
            f"the {share.processes} processes cannot connect: {reason}",
            hint="start them with torchrun or accelerate launch, once on every machine",
        ) from None
    return Group(share, store, orders)


def require_one(verb: str) -> None:
    """Check that this is the only process.

    Raises:
        UsageError: a launcher has started several.
    """
    if processes.count() > 1:
        raise UsageError(
            f"{verb} runs in one process, and {processes.count()} were started",
            hint="start it without torchrun or accelerate launch; a sweep runs in several",
        )


def error_of(index: int, error: RankwiseError) -> RankwiseError:
    """An error of another process, as process 0 raises it."""
    message, hint = error.written
    return type(error)(f"process {index}: {message}", hint=hint)
