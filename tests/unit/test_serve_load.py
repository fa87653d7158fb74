"""The benchmark of serving: its rate does not depend on where a batch of answers is cut."""

from __future__ import annotations

from bench.serve_load import steady_rate

BATCHES = [0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 9.0]
"""When the load began, and then two answers each second; the last one comes after the end."""


def test_batches_count_whole() -> None:
    assert all(steady_rate(BATCHES, begin, 3.5) == 2.0 for begin in (1.1, 1.5, 1.9))


def test_no_answer_in_time() -> None:
    assert steady_rate([0.0, 9.0], 1.0, 3.0) == 0.0
