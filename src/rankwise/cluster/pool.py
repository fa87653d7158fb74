"""Workers that are started as there is work and room, and get work once they have answered.

An actor for which the cluster has no room does not fail: it waits for room, and its calls wait with it. So
only workers that have answered a greeting get work. Of these two, only A fits on a machine::

    driver    take: A and B start    wait       take       wait
    A                                answers    at work    result
    B                                                      (still waits)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from rankwise.errors import RankwiseError, Unreachable
from rankwise.training import signals

WAIT_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
"""Time after which a cluster without a single worker is reported."""
MOST_FAILURES = 5
"""Starts that may fail in a row, for each worker that the cluster has room for."""


class Pool:
    """Workers of one kind.

    Args:
        ray: the package ray, connected.
        start: starts a worker, which has a method `greet`.
        room: returns the number of workers that the cluster has room for.
        check: called with what a worker answers to the greeting.
    """

    def __init__(
        self,
        ray: Any,
        start: Callable[[], Any],
        room: Callable[[], int],
        check: Callable[[Any], None] = lambda greeting: None,
    ) -> None:
        self.ray = ray
        self._start, self._room, self._check = start, room, check
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}  # reference to a greeting -> worker
        self._failures = 0  # starts that have failed since a worker has answered
        self._heard = time.monotonic()

    def take(self, busy: int, wanted: int) -> Any:
        """An idle worker; None if there is none. Starts more, up to the room in the cluster.

        Args:
            busy: number of workers at work.
            wanted: number of workers that there is work for, with those at work.
        """
        missing = min(wanted, self._room()) - busy - len(self._idle) - len(self._starting)
        for _ in range(missing):
            worker = self._start()
            self._starting[worker.greet.remote()] = worker
            self._heard = time.monotonic()
        return self._idle.pop() if self._idle else None

    def release(self, worker: Any) -> None:
        """Take back a worker that has done its work."""
        self._idle.append(worker)

    def wait(self, running: Collection[Any], on_note: Callable[[str], None]) -> list[Any]:
        """Wait up to a second for work, and take in workers that have started meanwhile.

        Args:
            running: references to the work of all workers.
            on_note: called if no worker starts for long.

        Returns:
            The references to work that has ended.

        Raises:
            Unreachable: one worker after another could not start.
            RankwiseError: what `check` has raised.
        """
        signals.check()  # in case its exception was lost in a destructor of Ray
        ready, _ = self.ray.wait([*running, *self._starting], timeout=WAIT_SECONDS)
        if ready:
            self._heard = time.monotonic()
        elif not running and time.monotonic() - self._heard > PATIENCE_SECONDS:
            on_note("no worker has started yet; ray status shows what the cluster lacks")
            self._heard = time.monotonic()
        for reference in ready:
            if reference in self._starting:
                self._greeted(reference, self._starting.pop(reference))
        return [reference for reference in ready if reference in running]

    def _greeted(self, reference: Any, worker: Any) -> None:
        """Take in a worker that has started. In place of one that could not, `take` starts another one."""
        try:
            self._check(self.ray.get(reference))
        except self.ray.exceptions.RayTaskError as error:
            raise cause_of(error) from None
        except self.ray.exceptions.RayError as error:
            self._failures += 1
            if self._failures > MOST_FAILURES * self._room():
                raise Unreachable(
                    f"{self._failures} workers in a row could not start: {reason_of(error)}",
                    hint="the logs of the cluster say why, such as that a machine lacks rankwise",
                ) from None
            return
        self._failures = 0
        self._idle.append(worker)


def room(resources: Mapping[str, float], cpus: int, gpus: float, most: int | None = None) -> int:
    """Number of workers that a cluster has room for, at least 1.

    Args:
        resources: those of all machines together.
        cpus: cores of a worker.
        gpus: GPUs of a worker.
        most: most workers.

    >>> room({"CPU": 16}, 4, 0), room({"CPU": 16, "GPU": 1}, 4, 1), room({"CPU": 16}, 4, 0, most=3)
    (4, 1, 3)
    """
    found = int(resources.get("CPU", 0)) // cpus
    if gpus:
        found = min(found, int(resources.get("GPU", 0) / gpus))
    return max(1, min(found, most or found))


def cause_of(error: Any) -> Exception:
    """The error in a worker's code, as if it had been raised here."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, RankwiseError) else error


def reason_of(error: Exception) -> str:
    """Why a worker is lost, in a line: the first, or the last one of a traceback.

    >>> reason_of(ValueError("error raised in its creation task, A()\\n...\\nKeyError: 1"))
    'KeyError: 1'
    """
    lines = str(error).strip().splitlines()
    return lines[-1] if "creation task" in lines[0] else lines[0]
