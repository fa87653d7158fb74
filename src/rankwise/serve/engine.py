"""The model thread: takes batches from the queue, computes their logits, and completes the jobs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from rankwise.nn.mixed import mixed_logits
from rankwise.serve.lineup import Lineup, Served
from rankwise.serve.queue import Job, Logits, Piece, QueueFull, Task, TokenQueue

BATCH_TOKENS = 1024
"""Tokens per forward pass on a CPU: enough for efficient matrix products, few enough for a short wait."""
DEVICE_TOKENS = 8192
"""The same on other devices."""
QUEUE_TOKENS = 65_536
MAX_WAIT = 1.5
"""Seconds. A request that would wait longer for its first batch is refused."""
_SMOOTHING = 0.2


@dataclass(frozen=True)
class Batch:
    """What one forward pass did, for metrics."""

    texts: int
    tokens: int
    adapters: int
    seconds: float


class Engine:
    """One thread that runs the model, fed by a bounded queue.

    Args:
        batch_tokens: token budget of a batch.
        queue_tokens: maximum number of tokens that wait or are computed; at least those of a batch.
        max_wait: seconds; a job that would wait longer is refused.
        on_batch: called in the model's thread after each batch.

    Use it as a context manager. On exit, jobs that wait are completed first.
    """

    def __init__(
        self,
        *,
        batch_tokens: int = BATCH_TOKENS,
        queue_tokens: int = QUEUE_TOKENS,
        max_wait: float = MAX_WAIT,
        on_batch: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        self.batch_tokens, self.max_wait = batch_tokens, max_wait
        self._queue = TokenQueue(max(queue_tokens, batch_tokens))
        self._on_batch = on_batch
        self._rate = float("inf")  # tokens per second; unknown before the first large batch
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._queue.close()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the model's thread runs."""
        return self._thread.is_alive()

    @property
    def capacity(self) -> int:
        """Maximum number of tokens of a job."""
        return self._queue.capacity

    @property
    def tokens(self) -> int:
        """Number of tokens that wait or are computed."""
        return self._queue.tokens

    @property
    def wait(self) -> float:
        """Estimated seconds that a new job would wait for its first batch."""
        return self._queue.tokens / self._rate

    @property
    def is_overloaded(self) -> bool:
        """Whether a new job would wait too long."""
        return self.wait > self.max_wait

    def make_room(self, lineup: Lineup) -> None:
        """Let the queue hold the longest text that an adapter reads, however small it was meant to be."""
        longest = max(served.max_length for served in lineup.adapters.values())
        self._queue.capacity = max(self._queue.capacity, longest)

    def submit(self, tasks: Sequence[Task]) -> Job:
        """Queue the texts of a request. `Job.done` has their logits.

        Args:
            tasks: adapters of one backbone, each with its texts as token ids; not empty.

        Raises:
            QueueFull: the job has no room, or would wait too long.
        """
        if self.is_overloaded:
            raise QueueFull(f"the wait is {self.wait:.1f} seconds")
        job = Job(tasks)
        self._queue.put(job)
        return job

    def cancel(self, job: Job) -> None:
        """Drop a job; texts that are not being computed give back their room at once."""
        self._queue.cancel(job)

    def warm_up(self, lineup: Lineup) -> None:
        """Run a full batch twice: the first packs the weights, the second measures the speed.

        Not for an engine in use.
        """
        served = lineup.adapters[lineup.default]
        text = served.encode(["a"])[0][-1:].repeat(min(32, served.max_length))
        # Different first tokens; otherwise the texts would be one shared prefix.
        texts = [text.copy() for _ in range(max(1, self.batch_tokens // len(text)))]
        for number, each in enumerate(texts):
            each[0] = number % len(served.backbone.tokens)
        for _ in range(2):
            self._rate = float("inf")
            self.submit([(served, texts)]).done.result()

    def _work(self) -> None:
        while pieces := self._queue.take(self.batch_tokens):
            start = time.perf_counter()
            try:
                answers, failure = self._compute(pieces), None
            except Exception as error:  # such as out of memory: it ends these jobs, and not the server
                answers, failure = [], error
            seconds = time.perf_counter() - start
            self._queue.finish(pieces)  # before the answers, so that whoever has one finds room
            if answers:  # otherwise every job was cancelled, or the batch failed, perhaps at once
                self._measure([piece for piece, _ in answers], seconds)
            for job in {piece.job for piece in pieces}:
                job.seconds += seconds
            for piece, logits in answers:
                piece.job.answer(piece, logits)
            if failure:
                self._fail({piece.job for piece in pieces}, failure)

    def _fail(self, jobs: Iterable[Job], error: Exception) -> None:
        for job in jobs:
            job.fail(error)
            self._queue.cancel(job)  # what still waits of it

    def _compute(self, pieces: Sequence[Piece]) -> list[tuple[Piece, Logits]]:
        """The logits of one forward pass; pieces of cancelled jobs are left out."""
        groups: dict[Served, list[Piece]] = {}
        for piece in pieces:
            if not piece.job.done.cancelled():
                groups.setdefault(piece.served, []).append(piece)
        if not groups:
            return []
        batches = [[piece.ids for piece in of_adapter] for of_adapter in groups.values()]
        backbone = next(iter(groups)).backbone
        found = mixed_logits(backbone, [served.adapter for served in groups], batches)
        answers = zip(groups.values(), found, strict=True)
        return [each for pair in answers for each in zip(*pair, strict=True)]

    def _measure(self, pieces: Sequence[Piece], seconds: float) -> None:
        """Count the pieces that were computed; batches large enough to be limited by the rate update it."""
        tokens = sum(len(piece.ids) for piece in pieces)
        if tokens >= self.batch_tokens // 4:
            rate = tokens / seconds
            known = self._rate if np.isfinite(self._rate) else rate
            self._rate = (1 - _SMOOTHING) * known + _SMOOTHING * rate
        adapters = len({piece.served for piece in pieces})
        self._on_batch(Batch(len(pieces), tokens, adapters, seconds))
