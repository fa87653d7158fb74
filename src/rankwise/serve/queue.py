"""The queue of texts that wait for the model, counted in tokens.

A job is one request: texts, each for an adapter. It waits as *pieces*, one per text and adapter, because a
batch takes as many pieces as fit, of any jobs. Up to ten jobs share a batch, so that a request of one text
does not wait behind one of a thousand.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from rankwise.nn.backbone import Backbone
from rankwise.nn.batch import Ids
from rankwise.nn.ragged.batch import lexical_order
from rankwise.serve.lineup import Served

FAIR_JOBS = 10
"""Number of jobs that share a batch, if so many wait."""

Task = tuple[Served, Sequence[Ids]]
Logits = NDArray[np.float32]


class QueueFull(Exception):
    """The queue has no room for a job at the moment."""


class Piece:
    """One text of a job, for one adapter."""

    __slots__ = ("ids", "job", "row", "served", "task")

    def __init__(self, job: Job, task: int, row: int, served: Served, ids: Ids) -> None:
        self.job, self.task, self.row, self.served, self.ids = job, task, row, served, ids


class Job:
    """The texts of one request.

    Args:
        tasks: adapters, each with its texts as token ids. All adapters have the same backbone.

    Attributes:
        tokens: number of tokens of all texts.
        done: for each task (texts, classes) float32 logits, once every text is answered.
        seconds: time of the forward passes that computed its texts, so far.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.backbone: Backbone = tasks[0][0].backbone
        self.done: Future[list[Logits]] = Future()
        self._logits = [np.empty((len(texts), len(served.labels)), np.float32) for served, texts in tasks]
        # In lexical order, texts with a shared prefix are in the same batch, which computes it once.
        self.waiting = deque(
            Piece(self, task, row, served, texts[row])
            for task, (served, texts) in enumerate(tasks)
            for row in lexical_order(texts)
        )
        self._missing = len(self.waiting)
        self.tokens = sum(len(piece.ids) for piece in self.waiting)
        self.seconds = 0.0

    def take(self, room: int, at_least_one: bool) -> list[Piece]:
        """Remove pieces of at most `room` tokens in total, or a single larger one."""
        taken: list[Piece] = []
        while self.waiting and (len(self.waiting[0].ids) <= room or (at_least_one and not taken)):
            taken.append(self.waiting.popleft())
            room -= len(taken[-1].ids)
        return taken

    def answer(self, piece: Piece, logits: Logits) -> None:
        """Store the logits (classes,) of a piece. The last one completes the job."""
        self._logits[piece.task][piece.row] = logits
        self._missing -= 1
        if not self._missing and self.done.set_running_or_notify_cancel():
            self.done.set_result(self._logits)

    def fail(self, error: BaseException) -> None:
        """Complete the job with an error, unless it is complete."""
        if not self.done.done() and self.done.set_running_or_notify_cancel():
            self.done.set_exception(error)


class TokenQueue:
    """Jobs in the order of their arrival. Every method can be called from any thread.

    Args:
        capacity: maximum number of tokens that wait or are computed.

    Attributes:
        tokens: number of tokens that wait or are computed.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.tokens = capacity, 0
        self._jobs: dict[Job, None] = {}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> None:
        """Append a job.

        Raises:
            QueueFull: there is no room for it, or the queue is closed.
        """
        with self._changed:
            if self._closed:
                raise QueueFull("the server is shutting down")
            if self.tokens + job.tokens > self.capacity:
                raise QueueFull(f"{self.tokens} tokens wait already")
            self.tokens += job.tokens
            self._jobs[job] = None
            self._changed.notify()

    def take(self, budget: int) -> list[Piece]:
        """Wait for pieces, and remove a batch of one backbone.

        Args:
            budget: maximum number of tokens; a single longer text is a batch of its own.

        Returns:
            The pieces; empty once the queue is closed and empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            return self._batch(budget) if self._jobs else []

    def _batch(self, budget: int) -> list[Piece]:
        backbone = next(iter(self._jobs)).backbone
        batch: list[Piece] = []
        room, share = budget, budget // min(len(self._jobs), FAIR_JOBS)
        for limit in (share, budget):  # a share for each job; then whatever fits
            for job in list(islice(self._jobs, budget)):  # a piece has at least one token
                if job.backbone is backbone:
                    taken = job.take(min(limit, room), at_least_one=not batch)
                    batch += taken
                    room -= sum(len(piece.ids) for piece in taken)
                if not job.waiting:
                    del self._jobs[job]
                if room <= 0:
                    return batch
        return batch

    def finish(self, pieces: Sequence[Piece]) -> None:
        """Give back the room of pieces that are computed."""
        with self._changed:
            self.tokens -= sum(len(piece.ids) for piece in pieces)

    def cancel(self, job: Job) -> None:
        """Remove what still waits of a job, and cancel it."""
        with self._changed:
            self.tokens -= sum(len(piece.ids) for piece in job.waiting)
            job.waiting.clear()
            self._jobs.pop(job, None)
        job.done.cancel()

    def close(self) -> None:
        """Refuse new jobs. Those that wait can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
