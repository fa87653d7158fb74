"""Processor time of this process: cores, the quota of a container, and how threads wait for each other.

OpenMP's threads meet at a barrier after every matrix product. By default, a thread that arrives early spins
for milliseconds. On a busy machine it thus uses up processor time while it waits for a thread that the
scheduler has taken off. `share_fairly` lets it spin only for as long as the others usually take.
"""

from __future__ import annotations

import math
import os
from collections.abc import MutableMapping

from rankwise import cgroups

SPINS = 3000
"""Rounds that a thread of GNU's OpenMP spins at a barrier before it sleeps; the default is 300,000."""
BLOCKTIME_MS = 1
"""The same for Intel's and LLVM's OpenMP, in milliseconds; the default is 200."""
GNU_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
INTEL_WAITING = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")
THREADS = "OMP_NUM_THREADS"


def share_fairly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set how many threads OpenMP starts and how they wait, unless the environment already says so.

    OpenMP reads its variables when torch is loaded, so this must be called before. The command line does
    it. A program that imports rankwise is left alone.
    """
    if not any(name in environment for name in GNU_WAITING):
        environment["GOMP_SPINCOUNT"] = str(SPINS)
    if not any(name in environment for name in INTEL_WAITING):
        environment["KMP_BLOCKTIME"] = str(BLOCKTIME_MS)
    if usable() < cores():
        environment.setdefault(THREADS, str(usable()))


def cores() -> int:
    """Logical cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable() -> int:
    """Threads that can run at the same time, at least 1: the cores, or the quota rounded up if it is less."""
    return max(1, min(cores(), math.ceil(min(cgroups.quota(), cores()))))
