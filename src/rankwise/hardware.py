"""What this machine can do: device, precision, free memory."""

from __future__ import annotations

import math
import os
import re

import torch

from rankwise.errors import UsageError

_GROUP = "/sys/fs/cgroup"
_NO_LIMIT = 1 << 62


def device(name: str) -> torch.device:
    """The device of a recipe's name; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        UsageError: there is no such device, or not on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if not re.fullmatch("(cpu|cuda|mps)(:[0-9]+)?", name):
        raise UsageError(f"no device {name!r}", hint="give auto, cpu, cuda, cuda:N or mps")
    if (kind == "cuda" and int(index or 0) >= torch.cuda.device_count()) or (
        kind == "mps" and not torch.backends.mps.is_available()
    ):
        raise UsageError(f"this machine has no device {name}", hint="--device cpu runs everywhere")
    return torch.device(name)


def dtype(precision: str, on: torch.device) -> torch.dtype:
    """The precision of matrix products; `auto` is bfloat16 where the device multiplies it natively.

    Raises:
        UsageError: the name is none of auto, bfloat16 and float32.
    """
    match precision:
        case "auto":
            return torch.bfloat16 if bfloat16_by(on) else torch.float32
        case "bfloat16":
            return torch.bfloat16
        case "float32":
            return torch.float32
    raise UsageError(f"no precision {precision!r}", hint="give auto, bfloat16 or float32")


def bfloat16_by(on: torch.device) -> str:
    """What multiplies bfloat16 natively there, such as avx512_bf16; empty where nothing does."""
    if on.type == "cuda":
        return "cuda" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    if on.type == "cpu":
        able = torch.cpu.get_capabilities()
        return next((name for name in ("amx_bf16", "avx512_bf16", "arm_bf16") if able.get(name)), "")
    return ""


def number_bytes(precision: str, name: str) -> int:
    """Bytes of a number in matrix products of a recipe's precision and device, in planning.

    A device that this machine does not have is planned for as well; `auto` is bfloat16 on it.

    Raises:
        UsageError: the precision is none of auto, bfloat16 and float32.
    """
    try:
        return dtype(precision, device(name)).itemsize
    except UsageError:
        return dtype("bfloat16" if precision == "auto" else precision, torch.device("cpu")).itemsize


def limits_kernels() -> bool:
    """Whether the environment limits how many compiled products oneDNN keeps, as the command line has it."""
    capacity = os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "")
    return capacity.isdecimal() and int(capacity) <= 256


def free_memory(on: torch.device) -> int:
    """Bytes that this process may still take on the device."""
    if on.type == "cuda":
        return torch.cuda.mem_get_info(on)[0]
    if on.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    import psutil

    return min(int(psutil.virtual_memory().available), _container_limit())


def _container_limit() -> int:
    """Bytes left under a Linux control group's limit, which the machine's own figures do not show."""
    try:
        with open(f"{_GROUP}/memory.max") as limit, open(f"{_GROUP}/memory.current") as used:
            return int(limit.read()) - int(used.read())
    except (OSError, ValueError):  # no such group, or "max"
        return _NO_LIMIT


def is_limited() -> bool:
    """Whether a container's limit, not the machine, says how much memory there is."""
    return _container_limit() < _NO_LIMIT


def cores() -> int:
    """Logical cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota() -> float:
    """Cores' worth of time that a Linux control group leaves this process; infinite without a limit."""
    try:
        with open(f"{_GROUP}/cpu.max") as file:
            quota, period = file.read().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such group, or "max"
        return math.inf


def threads() -> int:
    """Threads that torch computes with; as many as this process may run on."""
    return min(torch.get_num_threads(), cores())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no more memory, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(each in str(error) for each in words)
