"""The processes that a launcher such as torchrun or accelerate has started together.

A launcher tells each process its place in environment variables. Process 0 leads: it writes files and prints.
The others follow it without a word.
"""

from __future__ import annotations

import os

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Set by every launcher for torch.distributed."""


def count() -> int:
    """Number of processes; 1 without a launcher."""
    return _number("WORLD_SIZE", 1) if all(name in os.environ for name in VARIABLES) else 1


def index() -> int:
    """The number of this process, from 0."""
    return _number("RANK", 0) if count() > 1 else 0


def local_count() -> int:
    """Number of processes on this machine."""
    return _number("LOCAL_WORLD_SIZE", count()) if count() > 1 else 1


def local_index() -> int:
    """The number of this process among those on its machine, from 0."""
    return _number("LOCAL_RANK", index()) if count() > 1 else 0


def is_follower() -> bool:
    """Whether another process leads."""
    return index() > 0


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


if count() > 1:
    # A process that has died is reported once, in words. torch reads this when it is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
