"""How long a stage still takes."""

from __future__ import annotations

import time
from collections.abc import Callable

Now = Callable[[], float]
"""A clock, in seconds."""


class Pace:
    """The time a stage has taken so far, from which the rest is estimated. Stages may be interleaved."""

    def __init__(self, now: Now = time.monotonic) -> None:
        self._now = now
        self._first: dict[str, tuple[float, int]] = {}  # stage -> when it was first seen, and at which unit

    def left(self, stage: str, done: int, total: int) -> float | None:
        """Expected seconds until a stage is done; None if nothing was done since the first call.

        When a stage starts over, as for a second rung of trials, so does its time.
        """
        began, first = self._first.get(stage, (0.0, done))
        if done <= first:
            self._first[stage] = (self._now(), done)
            return None
        return (self._now() - began) / (done - first) * (total - done)


def clock(seconds: float) -> str:
    """Seconds as a person would say them.

    >>> clock(42.3), clock(860), clock(7500)
    ('42 s', '14 min', '2 h 5 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{minutes} min" if not hours else f"{hours} h {rest} min" if rest else f"{hours} h"
