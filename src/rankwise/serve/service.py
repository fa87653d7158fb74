"""What the endpoints share: the adapters in service, the engine, and the way from texts to logits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

from rankwise.data.pairs import pair_of
from rankwise.errors import DataError, RankwiseError, UsageError
from rankwise.nn.batch import Ids
from rankwise.serve import limits
from rankwise.serve.engine import Engine
from rankwise.serve.lineup import Group, Lineup, Served
from rankwise.serve.loading import Changes, Loader
from rankwise.serve.metrics import Metrics
from rankwise.serve.problems import Problem, of_rankwise
from rankwise.serve.queue import Job, Logits, QueueFull, Task

Made = TypeVar("Made")
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
INLINE_CHARACTERS = 4000
"""Shorter requests are tokenized in the event loop: it takes less time than a thread's start."""


class Computed(NamedTuple):
    """What the model computed for a request."""

    logits: list[list[Logits]]  # for each group and member (texts, classes) float32
    tokens: int
    seconds: float  # of the forward passes


class Service:
    """The adapters in service and the engine that runs them.

    Args:
        loader: reads the adapters.
        abstain_below: threshold of requests that name none; None for no threshold.
        engine_options: `batch_tokens`, `queue_tokens` and `max_wait` of `Engine`.

    Attributes:
        lineup: the adapters in service; a reload replaces it.
        draining: whether the server is about to stop.

    Raises the errors of `Loader.load`.
    """

    def __init__(self, loader: Loader, *, abstain_below: float | None = None, **engine_options: Any) -> None:
        self._loader, self.abstain_below = loader, abstain_below
        self.lineup: Lineup = _apart(loader.load)
        self.metrics = Metrics(lambda: self.engine.tokens, lambda: len(self.lineup.adapters))
        self.engine = Engine(on_batch=self.metrics.on_batch, **engine_options)
        self.engine.make_room(self.lineup)
        self.draining = False
        self._reloading = asyncio.Lock()

    def select(self, names: Sequence[str] = (), ranks: Sequence[int] = ()) -> list[Group]:
        """The adapters and ranks that a request names.

        Raises:
            Problem: there is no such adapter or rank.
        """
        try:
            return self.lineup.select(names, ranks)
        except UsageError as error:
            raise Problem("unknown_adapter", error.message, error.hint) from None

    async def logits(self, groups: Sequence[Group], texts: Sequence[str], receive: Receive) -> Computed:
        """Each group's logits on the same texts.

        Args:
            groups: adapters, or ranks.
            texts: the texts.
            receive: of the request; a client that goes away cancels its job.

        Raises:
            Problem: a limit is exceeded, a text cannot be tokenized, the queue is full, or the client went
                away.
        """
        _check_size(groups, len(texts))
        if self.engine.is_overloaded:  # tokenizing would be in vain
            raise self.overload()
        tasks = await _off_loop(texts, lambda: _tasks(groups, texts))
        tokens = sum(len(ids) for _, of_task in tasks for ids in of_task)
        if tokens > self.engine.capacity:
            what = f"the request has {tokens} tokens for its adapters, more than {self.engine.capacity}"
            raise Problem("too_many_texts", what, "send fewer texts at once")
        try:
            job = self.engine.submit(tasks)
        except QueueFull:
            raise self.overload() from None
        found = iter(await self._done(job, receive))
        for served, of_task in tasks:
            self.metrics.texts.labels(served.name).inc(len(of_task))
        logits = [[next(found) for _ in group.members] for group in groups]
        return Computed(logits, tokens, job.seconds)

    async def _done(self, job: Job, receive: Receive) -> list[Logits]:
        """The job's logits; the job is cancelled if the client goes away first."""
        answer = asyncio.wrap_future(job.done)
        gone = asyncio.ensure_future(_disconnected(receive))
        gone.add_done_callback(lambda _: answer.cancel())
        try:
            return await answer
        except asyncio.CancelledError:
            if gone.done() and not gone.cancelled():
                raise Problem("client_closed", "the client went away") from None
            raise
        finally:
            gone.cancel()
            if answer.cancelled() or not answer.done():
                self.engine.cancel(job)

    def overload(self) -> Problem:
        """The error for a request that finds the queue full."""
        wait = self.engine.wait
        hint = "try again after the seconds in Retry-After, or send fewer texts at once"
        return Problem("overloaded", "the queue is full", hint, retry_after=min(wait, 60.0))

    async def reload(self) -> Changes:
        """Replace the adapters by those on disk. Answers in progress keep the adapters they started with.

        Raises:
            Problem: no adapter would be left.
        """
        async with self._reloading:
            try:
                lineup, changes = await asyncio.to_thread(_apart, partial(self._loader.reload, self.lineup))
            except RankwiseError as error:
                raise Problem("invalid_request", error.message, error.hint) from None
            self.engine.make_room(lineup)
            self.lineup = lineup
        return changes


def _apart(read: Callable[[], Made]) -> Made:
    """The result of a function that runs in a thread of its own.

    Whichever thread has used torch keeps OpenMP threads until it ends. Beside those of the model's thread,
    they are more than the cores. OpenMP then stops spinning between two products and lets threads sleep,
    which makes the answer to a single text half as slow again.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(read).result()


def _check_size(groups: Sequence[Group], texts: int) -> None:
    pairs = texts * sum(len(group.members) for group in groups)
    if pairs > limits.PAIRS:
        what = f"{pairs} texts times adapters, more than {limits.PAIRS}"
        raise Problem("too_many_texts", what, "send fewer texts, or name fewer adapters")
    numbers = texts * sum(len(group.labels) for group in groups)
    if numbers > limits.NUMBERS:
        what = f"{numbers} probabilities in the answer, more than {limits.NUMBERS}"
        raise Problem("too_large", what, "send fewer texts, or name fewer adapters")


def _tasks(groups: Sequence[Group], texts: Sequence[str]) -> list[Task]:
    """For each member of each group, its token ids; equal tokenizers run once."""
    if empty := [i for i, text in enumerate(texts) if not text.strip()]:
        raise Problem("invalid_text", f"text {empty[0] + 1} is empty", "remove it, or give it some text")
    known: dict[tuple[int, int], list[Ids]] = {}
    try:
        for served in (served for group in groups for served in group.members if served.text_columns):
            for number, text in enumerate(texts, 1):
                pair_of(number, text, served.text_columns)
        return [(served, _ids(served, texts, known)) for group in groups for served in group.members]
    except RankwiseError as error:
        raise of_rankwise(error) from None


def _ids(served: Served, texts: Sequence[str], known: dict[tuple[int, int], list[Ids]]) -> list[Ids]:
    key = id(served.tokenizer), served.max_length
    if key not in known:
        known[key] = served.encode(texts)
    return known[key]


async def _off_loop(texts: Sequence[str], work: Callable[[], list[Task]]) -> list[Task]:
    """Tokenize in another thread, unless the texts are short."""
    if sum(map(len, texts)) < INLINE_CHARACTERS:
        return work()
    return await asyncio.to_thread(work)


async def _disconnected(receive: Receive) -> None:
    """Wait until the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def refuse_long(groups: Sequence[Group], texts: Sequence[str]) -> None:
    """Check that no text would be truncated.

    Raises:
        Problem: a text has more tokens than an adapter reads.
    """
    for group in groups:
        for served in group.members:
            try:
                longest = int(served.tokenizer.lengths(texts).max())
            except DataError as error:
                raise of_rankwise(error) from None
            if longest > served.max_length:
                what = f"a text has {longest} tokens, more than {served.max_length}"
                raise Problem("text_too_long", what, 'shorten it, or send "truncate": true')
