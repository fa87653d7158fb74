"""Shared code of the benchmarks: texts, machine info, matrix rates, contender processes, records."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.data import load as data
from rankwise.hardware import limit_kernels
from rankwise.models.config import ModelConfig
from rankwise.models.gpt2 import GPT2, GPT2Config
from rankwise.nn.batch import Ids
from rankwise.nn.linear import Linear
from rankwise.recipe import Recipe

limit_kernels()

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("RANKWISE_TEST_DATA", REPOSITORY.parent / "shared"))
CLASSES = 6
TOLD = "contender: "


@lru_cache(None)
def labelled_texts() -> tuple[str, list[str], list[int]]:
    """Name, texts, labels: emotion's training texts if `RANKWISE_TEST_DATA` has them, or the starter's."""
    emotion = SHARED / "data" / "emotion" / "train.txt"
    if not emotion.is_file():
        train = data.load(Recipe()).train
        return "starter", list(train.texts), list(train.labels)
    rows = [line.rsplit(";", 1) for line in emotion.read_text(encoding="utf-8").splitlines() if line]
    names = sorted({label for _, label in rows})
    return "emotion", [text for text, _ in rows], [names.index(label) for _, label in rows]


def token_ids(texts: Sequence[str]) -> list[Ids]:
    """Token ids from SmolLM2's tokenizer, which has a smaller vocabulary than GPT-2 but similar lengths."""
    from rankwise.models import base as bases
    from rankwise.models.tokenizer import Tokenizer

    return Tokenizer.load(bases.find(bases.SMOLLM2).folder)(texts, 128)


def draw(number: int, seed: int = 0) -> tuple[list[Ids], list[int]]:
    """Sample texts, without replacement if there are enough; returns ids and labels."""
    _, texts, labels = labelled_texts()
    random = np.random.default_rng(seed)
    chosen = random.choice(len(texts), number, replace=number > len(texts))
    return token_ids([texts[i] for i in chosen]), [labels[i] for i in chosen]


class RandomWeights:
    """A backbone's `Source` of random tensors."""

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a random tensor of the shape."""
        scale = ("ln_" in name or "norm" in name) and name.endswith("weight")
        return torch.randn(shape) * 0.02 + (1.0 if scale else 0.0)


def gpt2(shape: dict[str, Any], dtype: torch.dtype) -> GPT2:
    """A GPT-2 with random weights; `shape` overrides the 124M configuration."""
    return GPT2(GPT2Config.from_json(shape), RandomWeights(), dtype)


def products(config: ModelConfig) -> list[tuple[int, int]]:
    """(in, out) of the frozen products of a layer, in order. Modules with the same input are one product."""
    fused: dict[str, tuple[int, int]] = {}
    same = config.layer_memory().same_input
    for module, (n_in, n_out) in config.layer_shapes().items():
        key = same.get(module, module)
        fused[key] = n_in, n_out + fused.get(key, (n_in, 0))[1]
    return list(fused.values())


def predict_flop(config: ModelConfig, lengths: Sequence[int]) -> int:
    """Floating-point operations of the frozen matrix products that a forward pass over these texts needs.

    The last layer only works on last tokens, except for its queries, keys and values. Attention and the
    adapters' products, a few percent, are not counted.
    """
    qkv, *rest = (n_in * n_out for n_in, n_out in products(config))
    rows = (config.layers - 1) * sum(lengths) + len(lengths)
    return 2 * (config.layers * sum(lengths) * qkv + rows * sum(rest))


def train_flop(config: ModelConfig, lengths: Sequence[int]) -> int:
    """The same for the forward pass and the backward pass to the activations.

    The first layer's input needs no gradient.
    """
    n_in, n_out = products(config)[0]
    return 2 * predict_flop(config, lengths) - 2 * sum(lengths) * n_in * n_out


def matrix_rate(dtype: torch.dtype, rows: int) -> float:
    """GFLOP/s of the (rows, 768) x (768, 3072) product."""
    return 2 * rows * 768 * 3072 / _product_seconds(dtype, rows, 768, 3072) / 1e9


def own_rate(dtype: torch.dtype, rows: int, config: ModelConfig) -> float:
    """GFLOP/s of a layer's own frozen products, one after another: with its weights, and with their
    transposes, as in the backward pass. Smaller products have a lower rate."""
    shapes = products(config)
    shapes += [(n_out, n_in) for n_in, n_out in shapes]
    seconds = sum(_product_seconds(dtype, rows, *shape, repeats=10) for shape in shapes)
    return 2 * rows * sum(n_in * n_out for n_in, n_out in shapes) / seconds / 1e9


def _product_seconds(dtype: torch.dtype, rows: int, n_in: int, n_out: int, repeats: int = 30) -> float:
    """Time of the (rows, in) x (in, out) product: the faster of torch's product and of one with a
    prepacked weight, each the median of alternating runs."""
    x, weight = torch.randn(rows, n_in).to(dtype), torch.randn(n_out, n_in).to(dtype)
    ways: list[tuple[Callable[[Tensor], Tensor], list[float]]] = [
        (partial(F.linear, weight=weight), []),
        (Linear(weight, None, {}).forward, []),
    ]
    for _ in range(repeats):
        for product, times in ways:
            start = time.perf_counter()
            product(x)
            times.append(time.perf_counter() - start)
    return min(median(times) for _, times in ways)


def resident(peak: bool = False) -> int:
    """Current memory of this process in bytes, or its peak since `forget_peak`; 0 except on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    name = "VmHWM:" if peak else "VmRSS:"
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Reset the peak."""
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


class Clock:
    """Used in a contender's process to measure its model's memory and to time its steps."""

    def __init__(self) -> None:
        self.held, self.started, self.worked = 0, 0.0, 0.0
        self.seconds: list[float] = []
        self.cpu: list[float] = []

    def loaded(self) -> None:
        """Call when the model is loaded; sets the memory baseline."""
        forget_peak()
        self.held = resident()

    def begin(self) -> None:
        """Call at the start of a step."""
        self.started, self.worked = time.perf_counter(), time.process_time()

    def end(self) -> None:
        """Call at the end of a step."""
        self.seconds.append(time.perf_counter() - self.started)
        self.cpu.append(time.process_time() - self.worked)

    def tell(self) -> None:
        """Call after all steps."""
        peak = resident(peak=True)
        told = {"seconds": self.seconds, "cpu": self.cpu, "peak": peak, "beyond": peak - self.held}
        print(TOLD + json.dumps(told), flush=True)


@dataclass
class Contender:
    """The measurements of a contender, over all rounds."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # CPU seconds over all threads
    peak: int = 0  # peak memory of the process in bytes
    beyond: int = 0  # excluding the loaded model


def take_turns(commands: dict[str, list[str]], rounds: int) -> dict[str, Contender]:
    """Run the contenders alternately, so that changes in the machine's speed affect all of them.

    Each run is a separate process with the machine to itself, so none holds memory that another needs.

    Args:
        commands: name -> arguments for Python; the process must use `Clock`.
        rounds: runs per contender.
    """
    contenders = {name: Contender() for name in commands}
    for _ in range(rounds):
        for name, arguments in commands.items():
            command = [sys.executable, "-W", "ignore", *arguments]
            lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
            (told,) = (json.loads(line.removeprefix(TOLD)) for line in lines if line.startswith(TOLD))
            contender = contenders[name]
            contender.seconds += told["seconds"]
            contender.cpu += told["cpu"]
            contender.peak, contender.beyond = (
                max(getattr(contender, what), told[what]) for what in ("peak", "beyond")
            )
            print(f"{name}: {median(told['seconds']):.2f} s per step", file=sys.stderr)
    return contenders


def least(figures: Sequence[float], steps: int) -> float:
    """The mean over steps of each step's minimum over rounds, because disturbances only add time."""
    return float(np.reshape(figures, (-1, steps)).min(0).mean())


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def undisturbed(done: Iterable[Contender]) -> str:
    """The share of wall time that the contenders' threads ran; below 100 % if other processes ran."""
    shares = [sum(each.cpu) / sum(each.seconds) / torch.get_num_threads() for each in done]
    return f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % of the steps' time, threads together"


def write_record(title: str, command: str, notes: dict[str, str], body: str, target: Path | None) -> None:
    """Print a record as Markdown, and write it to `target`."""
    packages = ("torch", "transformers", "peft", "rankwise")
    facts = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; GPU: none used",
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
        ),
        "command": f"`{_pinned()}{command}`",
    }
    lines = [f"# {title}", "", *(f"- {key}: {value}" for key, value in (facts | notes).items()), "", body]
    text = "\n".join(lines) + "\n"
    print(text)
    if target:
        target.write_text(text, encoding="utf-8")


def _pinned() -> str:
    """The command prefix, if the process is pinned to one core."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    return f"taskset -c {min(cores)} env OMP_NUM_THREADS=1 " if len(cores) == 1 else ""


def cpu_name() -> str:
    """The processor's name, if known."""
    name = torch.cpu.get_capabilities().get("cpu_name")
    return str(name or platform.processor() or platform.machine())


def rates(
    rate: Callable[[torch.dtype, int], float] = matrix_rate,
    dtypes: Iterable[torch.dtype] = (torch.float32, torch.bfloat16),
) -> dict[torch.dtype, dict[int, float]]:
    """Matrix product rates of this run, in GFLOP/s, by dtype and number of rows."""
    return {dtype: {rows: rate(dtype, rows) for rows in (640, 3200)} for dtype in dtypes}


def rates_note(found: dict[torch.dtype, dict[int, float]]) -> str:
    """The rates as text for a record."""
    each = (
        f"{str(d).removeprefix('torch.')} " + " / ".join(f"{rate:.0f}" for rate in by_rows.values())
        for d, by_rows in found.items()
    )
    return ", ".join(each) + " at 640 / 3,200 rows"


def batches(ids: Sequence[Ids], size: int) -> Iterator[Sequence[Ids]]:
    """Yield the texts in batches."""
    yield from (ids[i : i + size] for i in range(0, len(ids), size))
