"""Training on a CUDA device: five ranks in one pass and a single rank, with graphs and eagerly.

GPT-2's 124M shape with random weights, LoRA on c_attn, dropout on, batch 32, bfloat16, through the real
training loop. The variants run alternately; steps that record a new shape are reported separately.

    python -m bench.gpu [--steps N] [--rounds N] [--full] [--record FILE]

`--full` adds one full sweep: 5 ranks x 5 epochs x 16,000 texts, including recording.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch

from bench import common
from bench.train_step import EPOCH, RANKS
from rankwise.models.gpt2 import GPT2, GPT2Config
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import AdapterSpec, Bank, match_modules
from rankwise.nn.loss import Loss
from rankwise.nn.ragged.step import RaggedStep
from rankwise.recipe import Recipe
from rankwise.training import trainer as training
from rankwise.training.trainer import Trainer, TrainingData, step_of


def kernel_by_kernel(backbone: Backbone, bank: Bank, loss: Loss, base: bool, *rest: Any) -> RaggedStep:
    """A ragged step, as on the CPU."""
    return RaggedStep(backbone, bank, loss, base)


WAYS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "five ranks, graphs": (step_of, RANKS),
    "five ranks, kernel by kernel": (kernel_by_kernel, RANKS),
    "rank 4 alone, graphs": (step_of, (4,)),
    "rank 4 alone, kernel by kernel": (kernel_by_kernel, (4,)),
}


def main() -> None:
    """Time the variants alternately and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="timed steps of a turn")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each way")
    parser.add_argument("--batch", type=int, default=32, help="texts of one adapter in a step")
    parser.add_argument("--full", action="store_true", help="the whole seed sweep too")
    parser.add_argument("--device", default="cuda", help="another one only to try the benchmark out")
    parser.add_argument("--shape", default="{}", help='overrides of GPT-2, such as {"n_layer": 2}')
    parser.add_argument("--record", type=Path, help="Markdown file to write the table to")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("error: this machine has no CUDA device")
    shape = json.loads(options.shape)
    backbone = GPT2(GPT2Config.from_json(shape), common.RandomWeights(), torch.bfloat16, device)
    texts, labels = common.draw(options.steps * options.batch)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    first, peaks = dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0)
    for _ in range(options.rounds):
        for name, (step, ranks) in WAYS.items():
            each, peaks[name] = epochs(backbone, ranks, step, texts, labels, options.batch, epochs=2)
            first[name] = sum(each[: options.steps])
            seconds[name] += each[options.steps :]  # the second epoch: most shapes have been seen
    whole = sweep_seconds(backbone, options.batch) if options.full else None
    report(options, shape, {n: median(s) for n, s in seconds.items()}, first, peaks, whole)


def epochs(
    backbone: GPT2,
    ranks: Sequence[int],
    step: Any,
    texts: Sequence[Any],
    labels: Sequence[int],
    batch: int,
    epochs: int,
) -> tuple[list[float], int]:
    """Seconds of each step, and peak memory in bytes."""
    modules = match_modules(list(backbone.modules()), backbone.default_targets)
    specs = [
        AdapterSpec(rank, 0.8, 0.8 / rank, 110, 0.1, modules, learning_rate=5e-4, epochs=epochs)
        for rank in ranks
    ]
    settings = Recipe(epochs=epochs, batch_size=batch, learning_rate=5e-4).train
    data = TrainingData(texts, np.array(labels), [str(i) for i in range(common.CLASSES)])
    ends: list[float] = []
    on_cuda = backbone.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    with mock.patch.object(training, "step_of", step):
        trainer = Trainer(backbone, specs, data, settings)
        start = time.perf_counter()
        while not trainer.done:
            trainer.step()
            ends.append(time.perf_counter())
    peak = torch.cuda.max_memory_allocated() if on_cuda else 0
    return np.diff([start, *ends]).tolist(), peak


def sweep_seconds(backbone: GPT2, batch: int) -> float:
    """Training time of the full sweep in seconds, including recording."""
    texts, labels = common.draw(EPOCH)
    return sum(epochs(backbone, RANKS, step_of, texts, labels, batch, epochs=5)[0])


def matrix_rate(device: torch.device, rows: int) -> float:
    """GFLOP/s of the (rows, 768) x (768, 3072) product in bfloat16, the mean of a hundred."""
    a = torch.randn(rows, 768, device=device, dtype=torch.bfloat16)
    b = torch.randn(3072, 768, device=device, dtype=torch.bfloat16)
    for count in (10, 100):
        start = time.perf_counter()
        for _ in range(count):
            out = torch.nn.functional.linear(a, b)
        out.sum().item()
    return 100 * 2 * rows * 768 * 3072 / (time.perf_counter() - start) / 1e9


def report(
    options: argparse.Namespace,
    shape: dict[str, Any],
    seconds: dict[str, float],
    first: dict[str, float],
    peaks: dict[str, int],
    whole: float | None,
) -> None:
    """Print the record and write it to a file."""
    device = torch.device(options.device)
    texts, _ = common.draw(options.steps * options.batch)
    lengths = [len(ids) for ids in texts]
    flop = common.train_flop(GPT2Config.from_json(shape), lengths) / len(lengths)
    rows = []
    for name, each in seconds.items():
        done = len(WAYS[name][1]) * options.batch
        limit = matrix_rate(device, round(done * float(np.mean(lengths))))
        rows.append(
            [
                name,
                f"{1000 * each:.2f}",
                f"{done / each:,.0f}",
                f"{100 * done / each * flop / 1e9 / limit:.0f} %",
                f"{first[name]:.1f}",
                f"{peaks[name] / 1e9:.2f}",
            ]
        )
    five, one = seconds["five ranks, graphs"], seconds["rank 4 alone, graphs"]
    notes = {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "work": f"GPT-2 124M shape, random weights, LoRA ranks {RANKS} or 4 on c_attn, dropout on, bfloat16, "
        f"batch {options.batch}, {common.labelled_texts()[0]} texts of {np.mean(lengths):.1f} tokens each",
        "five ranks in one pass": f"{five / (5 * one):.2f} of the time of five runs of one",
    }
    if whole is not None:
        notes["the whole seed sweep"] = f"{whole:.1f} s of training, 5 ranks x 5 epochs x 16,000 texts"
    header = [
        "what",
        "ms a step",
        "texts/s",
        "of the matrix rate",
        f"s of the first {options.steps} steps",
        "GB at the peak",
    ]
    full = " --full" if options.full else ""
    common.write_record(
        "Training on a CUDA device",
        f"python -m bench.gpu --steps {options.steps} --rounds {options.rounds}{full}",
        notes,
        common.table(header, rows),
        options.record,
    )


if __name__ == "__main__":
    main()
