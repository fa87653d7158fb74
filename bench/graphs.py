"""Simulates CUDA graph replay of the training step, without a device.

Uses batches of real texts and five ranks of one seed. Counts the shapes of static-shape batches, the steps
that would be replayed, and the padding; then the operators of one step that do computation, ragged and
static, for one rank and for five. On a device, each operator launches at least one kernel.

    python -m bench.graphs [--steps N] [--batch N] [--record FILE]
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench import common
from bench.train_step import EPOCH, RANKS
from rankwise.nn.bank import AdapterSpec, Bank, match_modules
from rankwise.nn.ragged.step import RaggedStep
from rankwise.nn.static.batch import shape_of
from rankwise.nn.static.step import StaticStep


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators that do computation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operator.overloadpacket.__name__
        self.count += not (operator.is_view or "view" in name or "empty" in name)
        return operator(*args, **(kwargs or {}))


def main() -> None:
    """Count and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32, help="texts of one adapter in a step")
    parser.add_argument("--record", type=Path, help="Markdown file to write the tables to")
    options = parser.parse_args()
    body = "\n\n".join([shapes(options.steps, options.batch), operators(options.batch)])
    common.write_record(
        "Shapes and operators of a training step, for CUDA graphs",
        f"python -m bench.graphs --steps {options.steps} --batch {options.batch}",
        {"work": f"{common.labelled_texts()[0]} texts, ranks {RANKS}; nothing was timed"},
        body,
        options.record,
    )


def shapes(steps: int, batch: int) -> str:
    """A table of the shapes in `steps` steps of shuffled epochs."""
    ids, _ = common.draw(EPOCH)
    seen: Counter[object] = Counter()
    replayed = real = filled = places = 0
    for number in range(steps):
        epoch, i = divmod(number, EPOCH // batch)
        order = np.random.default_rng(epoch).permutation(EPOCH)
        texts = [ids[n] for n in order[i * batch : (i + 1) * batch]]
        shape = shape_of([texts] * len(RANKS), [0] * len(RANKS))
        seen[shape] += 1
        replayed += seen[shape] > 2
        real += sum(map(len, texts))
        filled += shape.tokens
        places += sum(number * width for number, width in shape.groups)
    rows = [
        ["steps", f"{steps:,}"],
        ["shapes", f"{len(seen)}"],
        ["steps replayed", f"{100 * replayed / steps:.1f} %"],
        ["rows of the matrix products for each real token", f"{filled / real:.2f}"],
        ["rows of attention's length buckets for each real token", f"{places / real:.2f}"],
    ]
    return common.table(["what", "figure"], rows)


def operators(batch: int) -> str:
    """A table of the operators of one step, with GPT-2's depth and a small width.

    ReLU replaces GELU, which is one operator on a device but many on the CPU.
    """
    backbone = common.gpt2({"n_embd": 96, "activation_function": "relu"}, torch.bfloat16)
    ids, labels = common.draw(batch)
    rows = [
        [
            f"{len(ranks)} rank{'s' * (len(ranks) > 1)}",
            *(f"{count(kind, backbone, ranks, ids, labels):,}" for kind in (RaggedStep, StaticStep)),
        ]
        for ranks in ((4,), RANKS)
    ]
    return common.table(["operators of a step", "ragged", "static"], rows)


def count(kind: Any, backbone: Any, ranks: Sequence[int], ids: Sequence[Any], labels: Sequence[int]) -> int:
    """Number of operators of the second step."""
    modules = match_modules(list(backbone.modules()), backbone.default_targets)
    bank = Bank(
        [AdapterSpec(rank, 0.8, 0.8 / rank, 110, 0.1, modules) for rank in ranks],
        backbone.modules(),
        backbone.d_model,
        common.CLASSES,
    )
    step = kind(backbone, bank, None, True)
    batches, targets = [ids] * len(ranks), [np.array(labels)] * len(ranks)
    step(batches, targets, 0)
    counting = Counting()
    with counting:
        step(batches, targets, 1)
    return counting.count


if __name__ == "__main__":
    main()
