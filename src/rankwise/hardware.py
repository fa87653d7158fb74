"""Hardware detection: device, precision, free memory, threads; and the state of torch in this process.

Importing this module limits the caches of compiled matrix products (`limit_kernels`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident

import torch

from rankwise import cgroups, cores, processes
from rankwise.errors import UsageError, option
from rankwise.nn import int8

INT8 = "int8"
"""The precision in which linear layers are multiplied in 8 bits."""
_process = os.getpid()
"""The process that torch's threads belong to."""
_computing: set[int] = set()
"""Identifiers of the threads that are inside `own_torch`."""


def device(name: str) -> torch.device:
    """The torch device for a recipe's device name; `auto` prefers CUDA, then MPS, then the CPU.

    Of several processes on a machine, each has the CUDA device with its own number.

    Raises:
        UsageError: the name is invalid, or this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and processes.count() > 1:
        name = f"cuda:{processes.local_index()}"
    kind, _, index = name.partition(":")
    if not re.fullmatch("(cpu|cuda|mps)(:[0-9]+)?", name):
        raise UsageError(f"unknown device {name!r}", hint="use auto, cpu, cuda, cuda:N or mps")
    if (kind == "cuda" and int(index or 0) >= torch.cuda.device_count()) or (
        kind == "mps" and not torch.backends.mps.is_available()
    ):
        raise UsageError(
            f"this machine has no device {name}", hint=f"{option('device', 'cpu')} runs everywhere"
        )
    return torch.device(name)


def dtype(precision: str, on: torch.device) -> torch.dtype:
    """The dtype of matrix products; `auto` is bfloat16 if the device supports it natively.

    Raises:
        UsageError: the name is not auto, bfloat16 or float32.
    """
    match precision:
        case "auto":
            return torch.bfloat16 if bfloat16_by(on) else torch.float32
        case "bfloat16":
            return torch.bfloat16
        case "float32":
            return torch.float32
    hint = "use auto, bfloat16 or float32; int8 is for prediction"
    raise UsageError(f"unknown precision {precision!r}", hint=hint)


def prediction_dtype(precision: str, on: torch.device) -> torch.dtype:
    """As `dtype`; with `int8`, the dtype of everything but the linear layers.

    Raises:
        UsageError: the name is unknown, or this machine does not multiply in int8.
    """
    if precision != INT8:
        return dtype(precision, on)
    if on.type != "cpu" or not int8.is_supported():
        what = "int8 needs a CPU with AVX512-VNNI"
        raise UsageError(
            f"{option('precision', INT8)}: {what}", hint=f"use {option('precision', 'bfloat16')}"
        )
    return dtype("auto", on)


def bfloat16_by(on: torch.device) -> str:
    """The device's native bfloat16 support, such as avx512_bf16; empty if it has none."""
    if on.type == "cuda":
        return "cuda" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    if on.type == "cpu":
        able = torch.cpu.get_capabilities()
        return next((name for name in ("amx_bf16", "avx512_bf16", "arm_bf16") if able.get(name)), "")
    return ""


def number_bytes(precision: str, name: str) -> int:
    """Bytes per number in matrix products, for planning.

    The device need not exist on this machine; `auto` precision then means bfloat16.

    Raises:
        UsageError: the precision is not auto, bfloat16 or float32.
    """
    try:
        return dtype(precision, device(name)).itemsize
    except UsageError:
        return dtype("bfloat16" if precision == "auto" else precision, torch.device("cpu")).itemsize


def limit_kernels() -> None:
    """Limit the caches of compiled matrix products, unless the environment sets their size.

    oneDNN and torch each cache 1,024 compiled products, one per shape. Texts of many lengths make new shapes
    in every step, so these caches and the fragmentation between them grow to a gigabyte (docs/log.md). Both
    libraries read these variables at their first product, so this must be called before it.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "64")


limit_kernels()


@contextmanager
def own_torch() -> Iterator[None]:
    """A context with torch's own settings for gradients and autocast, whatever those of the caller.

    In a forked process, it first sets torch to one thread, because the parent's threads do not exist there.

    Raises:
        UsageError: this process was forked while another thread was inside this context. Locks that the
            thread held are never released.
    """
    _settle_after_fork()
    thread = get_ident()
    outermost = thread not in _computing
    _computing.add(thread)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for kind in ("cpu", *(("cuda",) if torch.cuda.is_available() else ())):
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        if outermost:
            _computing.discard(thread)


def _settle_after_fork() -> None:
    global _process
    if os.getpid() == _process:
        return
    spawn = 'start processes with multiprocessing.get_context("spawn")'
    if _computing - {get_ident()}:
        raise UsageError("this process was forked while another thread was computing", hint=spawn)
    # torch has no annotations for is_initialized.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise UsageError("this process was forked, and CUDA does not work after a fork", hint=spawn)
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _process = os.getpid()


def limits_kernels() -> bool:
    """Whether the environment limits oneDNN's cache of compiled kernels, as importing rankwise does."""
    capacity = os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "")
    return capacity.isdecimal() and int(capacity) <= 256


def free_memory(on: torch.device) -> int:
    """Bytes that this process can still allocate on the device."""
    if on.type == "cuda":
        return torch.cuda.mem_get_info(on)[0]
    if on.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    import psutil

    free, limited = int(psutil.virtual_memory().available), cgroups.free_memory()
    return free if limited is None else min(free, limited)


def is_limited() -> bool:
    """Whether a container limits this process's memory."""
    return cgroups.free_memory() is not None


def threads() -> int:
    """Threads that torch uses, capped at the cores available to this process."""
    return min(torch.get_num_threads(), cores.cores())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that device or host memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(each in str(error) for each in words)
