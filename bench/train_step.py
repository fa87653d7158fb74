"""One training step of rankwise beside transformers + PEFT, on the same texts in one run.

GPT-2's 124M shape with random weights, LoRA rank 4 on c_attn, dropout on. The contenders take turns,
so that a change in the machine's speed meets them all; each does the same texts once, after a step
that is not counted. The peer is driven by a plain loop, which costs it less than the Trainer would.

    python bench/train_step.py [--steps N] [--batch N] [--record FILE]
"""

from __future__ import annotations

import argparse
import os
import platform
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rankwise.nn.adamw import AdamW
from rankwise.nn.classifier import logits, losses
from rankwise.nn.dropout import Masks
from rankwise.nn.gpt2 import GPT2, GPT2Config
from rankwise.nn.lora import AdapterSpec, Bank, match_sites
from rankwise.nn.packing import Ids, pack
from rankwise.recipe import Recipe

CLASSES, RANK, PADDED = 6, 4, 128
Batch = list[Ids]
Contender = Callable[[list[Batch], int], None]  # does the step of this number


def main() -> None:
    """Run the contenders in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each contender")
    parser.add_argument("--batch", type=int, default=32, help="texts of one adapter in a step")
    parser.add_argument("--record", type=Path, help="Markdown file to write the table to")
    parser.add_argument(
        "--shape", default="", help="overrides such as n_layer=2,n_embd=48, for a quick trial"
    )
    options = parser.parse_args()
    shape: dict[str, Any] = {
        key: int(value) for key, value in (pair.split("=") for pair in options.shape.split(",") if pair)
    }
    batches = draw_batches(options.steps, options.batch)
    contenders: dict[str, tuple[Contender, int]] = {
        "PEFT, float32, padded to 128 (the published recipe)": (peer(shape, torch.float32, PADDED), 1),
        "PEFT, float32, padded to the longest": (peer(shape, torch.float32, None), 1),
        "PEFT, bfloat16, grouped by length (its best)": (peer(shape, torch.bfloat16, None, grouped=True), 1),
        "rankwise, float32": (ours(shape, torch.float32, 1), 1),
        "rankwise, bfloat16": (ours(shape, torch.bfloat16, 1), 1),
        "rankwise, bfloat16, five ranks in one pass": (ours(shape, torch.bfloat16, 5), 5),
    }
    seconds = take_turns({name: run for name, (run, _) in contenders.items()}, batches)
    texts = {name: options.batch * adapters / seconds[name] for name, (_, adapters) in contenders.items()}
    report = render(texts, options.batch, float(np.mean([len(t) for batch in batches for t in batch])))
    print(report)
    if options.record:
        options.record.write_text(report, encoding="utf-8")


def draw_batches(steps: int, batch: int) -> list[Batch]:
    """Batches of random ids with the lengths of the starter texts (a token and a sixth a word)."""
    from rankwise import data

    lengths = [max(1, round(len(text.split()) * 7 / 6)) for text in data.load(Recipe()).train.texts]
    random = np.random.default_rng(0)
    return [[random.integers(1, 5000, n) for n in random.choice(lengths, batch)] for _ in range(steps)]


def take_turns(contenders: dict[str, Contender], batches: list[Batch]) -> dict[str, float]:
    """Mean seconds of a step of each."""
    seconds = dict.fromkeys(contenders, 0.0)
    for run in contenders.values():
        run(batches, 0)  # not counted: first use of memory and kernels
    for i in range(len(batches)):
        for name, run in contenders.items():
            start = time.perf_counter()
            run(batches, i)
            seconds[name] += time.perf_counter() - start
    return {name: each / len(batches) for name, each in seconds.items()}


class RandomWeights:
    """A trunk's `Source` of random tensors."""

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A random tensor of the shape."""
        return torch.randn(shape) * 0.02 + (1.0 if "ln_" in name and name.endswith("weight") else 0.0)


def ours(shape: dict[str, Any], dtype: torch.dtype, adapters: int) -> Contender:
    """A step of a bank of so many adapters."""
    config = GPT2Config.from_json(shape)
    trunk = GPT2(config, RandomWeights(), dtype)
    sites = match_sites(list(trunk.sites()), trunk.default_targets)
    ranks = [RANK] if adapters == 1 else [1, 2, 4, 8, 16][:adapters]
    specs = [AdapterSpec(rank, 0.8, 0.8 / rank, 110, 0.1, sites) for rank in ranks]
    bank = Bank(specs, trunk.sites(), trunk.d_model, CLASSES)
    optimizer = AdamW(bank, weight_decay=0.01, max_grad_norm=1.0)

    def step(batches: list[Batch], i: int) -> None:
        texts = [batches[(i + k) % len(batches)] for k in range(adapters)]
        stream = pack(texts)
        outputs = logits(trunk, bank, stream, Masks([110] * adapters, optimizer.steps, stream))
        targets = [torch.arange(len(each)) % CLASSES for each in texts]
        torch.autograd.backward(losses(outputs, targets).sum())
        optimizer.step(5e-4)

    return step


def peer(shape: dict[str, Any], dtype: torch.dtype, width: int | None, grouped: bool = False) -> Contender:
    """A step of transformers + PEFT.

    Args:
        shape: overrides of GPT-2's config.
        dtype: bfloat16 runs under autocast, as the Trainer's `bf16=True` does.
        width: tokens that texts are padded to; None for the longest of the batch.
        grouped: batches of texts of like length, as `group_by_length` makes them.
    """
    import peft
    import transformers

    config = transformers.GPT2Config(**shape | {"num_labels": CLASSES, "pad_token_id": 0, "use_cache": False})
    model: Any = transformers.GPT2ForSequenceClassification(config)
    lora = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS, r=RANK, lora_alpha=1, lora_dropout=0.1, fan_in_fan_out=True
    )
    model = peft.get_peft_model(model, lora).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4, weight_decay=0.01)

    def step(batches: list[Batch], i: int) -> None:
        texts = (by_length(batches) if grouped else batches)[i]
        longest = width or max(map(len, texts))
        ids, mask = torch.zeros(len(texts), longest, dtype=torch.int64), torch.zeros(len(texts), longest)
        for i, text in enumerate(texts):
            ids[i, : len(text)] = torch.from_numpy(text)
            mask[i, : len(text)] = 1
        targets = torch.arange(len(texts)) % CLASSES
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = model(input_ids=ids, attention_mask=mask, labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def by_length(batches: list[Batch]) -> list[Batch]:
    """The same texts in as many batches, each of like length."""
    texts = sorted((text for batch in batches for text in batch), key=len)
    size = len(batches[0])
    return [texts[k : k + size] for k in range(0, len(texts), size)]


def matrix_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of a 640 x 768 x 3072 product."""
    a, b = torch.randn(640, 768).to(dtype), torch.randn(3072, 768).to(dtype)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        times.append(time.perf_counter() - start)
    return 2 * 640 * 768 * 3072 / median(times) / 1e9


def render(texts: dict[str, float], batch: int, tokens: float) -> str:
    """The record, in Markdown."""
    best = max(rate for name, rate in texts.items() if name.startswith("PEFT"))
    seed = next(iter(texts.values()))
    rates = ", ".join(
        f"{str(d).removeprefix('torch.')} {matrix_rate(d):.0f}" for d in (torch.float32, torch.bfloat16)
    )
    lines = [
        "# Training step: rankwise beside transformers + PEFT",
        "",
        f"- date: {datetime.now(UTC):%Y-%m-%d}",
        f"- machine: {cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; GPU: none used",
        f"- versions: Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {version('transformers')}, peft {version('peft')}, rankwise {version('rankwise')}",
        "- command: `make bench`",
        f"- work: GPT-2 124M shape, random weights, LoRA rank {RANK} on c_attn, dropout on, batch {batch}, "
        f"{tokens:.1f} tokens a text",
        f"- matrix products, GFLOP/s in the same run: {rates}",
        "",
        "| what | texts/s | times the published recipe | times PEFT's best |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {rate:.1f} | {rate / seed:.1f} | {rate / best:.2f} |" for name, rate in texts.items()
    ]
    return "\n".join(lines) + "\n"


def cpu_name() -> str:
    """The processor's name, where the system tells it."""
    name = torch.cpu.get_capabilities().get("cpu_name")
    return str(name or platform.processor() or platform.machine())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
