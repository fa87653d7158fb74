"""Prediction with a Llama, with the residual added in place and without, in one process.

SmolLM2-135M's shape, random weights. The two ways take turns over the same texts, so that a change in the
machine's speed meets both, and the figure is the ratio of their medians. Their logits are bit-identical, which
is checked.

    python -m bench.llama_paths [--texts N] [--rounds N]
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np
import torch
from torch import Tensor

from bench import common
from rankwise.models.llama import SMOLLM2
from rankwise.models.registry import KNOWN, build
from rankwise.nn import classifier
from rankwise.nn.bank import AdapterSpec, Bank
from rankwise.nn.dropout import DropoutHook
from rankwise.nn.inference import bank_logits


class Apart(classifier._FrozenHook):
    """The way it was: each residual sum is a new tensor."""

    def add(self, module: str, x: Tensor, branch: Tensor, rate: float, pooled: bool = False) -> Tensor:
        """x + branch."""
        return DropoutHook.add(self, module, x, branch, rate, pooled)


def main() -> None:
    """Print texts a second of both ways, in both precisions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    ids, _ = common.draw(options.texts)
    ways = {"apart": Apart, "in place": classifier._FrozenHook}
    for dtype in (torch.bfloat16, torch.float32):
        backbone = build(KNOWN[SMOLLM2], common.RandomWeights(), dtype)
        bank = Bank([AdapterSpec(0, 0.0, 0.0, 0, 0.0, ())], {}, backbone.d_model, common.CLASSES)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        logits = {}
        for turn in range(options.rounds + 1):
            for name, hook in ways.items():
                classifier._FrozenHook = hook  # type: ignore[misc]
                start = time.process_time()
                logits[name] = bank_logits(backbone, bank, ids)
                if turn:  # the first turn compiles products
                    seconds[name].append(time.process_time() - start)
        assert np.array_equal(*logits.values())
        rates = {name: len(ids) / median(each) for name, each in seconds.items()}
        ratio = rates["in place"] / rates["apart"]
        shown = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
        print(f"{str(dtype).removeprefix('torch.')}: texts a second of CPU time: {shown}; ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
