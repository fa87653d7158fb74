"""Limits that Linux's control groups set for this process: processor time and memory.

A container is a control group. A group's own limit and those of the groups around it all apply, so the
least counts. Both versions of the interface are read; a machine may have both::

    version 2   /sys/fs/cgroup/a/b/memory.max                     one tree for all controllers
    version 1   /sys/fs/cgroup/memory/a/b/memory.limit_in_bytes   a tree for each controller
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

_ROOT, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60
"""Bytes; version 1 has a number above this for no limit."""


def quota() -> float:
    """The processor time granted to this process, in cores; infinite without a limit."""
    return min((found for group in _groups("cpu") if (found := _quota_of(group))), default=math.inf)


def free_memory() -> int | None:
    """Bytes that this process can still allocate under its groups' limits, or None without a limit."""
    found = (free for group in _groups("memory") if (free := _free_of(group)) is not None)
    return min(found, default=None)


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the groups that may limit this process.

    In a container, the groups' names are often those outside of it; its own group is then the root.
    """
    try:
        lines = _OWN_GROUPS.read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    yield _ROOT
    yield _ROOT / controller
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _ROOT / controller if controllers else _ROOT
        group = root / name.lstrip("/")
        while group != root:
            yield group
            group = group.parent


def _quota_of(group: Path) -> float | None:
    """The quota of one group in cores, or None without a limit."""
    try:
        if (group / "cpu.max").is_file():  # version 2
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        found = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such group, or "max"
        return None
    return found if found > 0 else None  # version 1 has -1 for no limit


def _free_of(group: Path) -> int | None:
    """Bytes left under the limit of one group, or None without a limit.

    The used memory includes the page cache. The kernel drops the inactive part of it when memory runs
    short, so that part counts as free, as in Kubernetes' working set.
    """
    version_2 = (group / "memory.max").is_file()
    limit, used, reclaimable = (
        ("memory.max", "memory.current", "inactive_file")
        if version_2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    try:
        most, now = (int((group / name).read_text()) for name in (limit, used))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return None if most > _UNLIMITED else max(0, most - now + int(statistics.get(reclaimable, 0)))
