"""Llama prediction with in-place and out-of-place residual addition, in one process.

SmolLM2-135M's shape, random weights. The two variants alternate over the same texts, so that changes in the
machine's speed affect both; the result is the ratio of their medians. The benchmark checks that their logits
are bit-identical.

    python -m bench.llama_paths [--texts N] [--rounds N] [--fused]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor

from bench import common
from rankwise.models.llama import SMOLLM2
from rankwise.models.registry import KNOWN, build
from rankwise.nn import classifier, linear
from rankwise.nn.activation import swiglu
from rankwise.nn.bank import AdapterSpec, Bank
from rankwise.nn.dropout import DropoutHook
from rankwise.nn.inference import bank_logits


class Apart(classifier._FrozenHook):
    """The previous implementation: each residual sum is a new tensor."""

    def add(self, module: str, x: Tensor, branch: Tensor, rate: float, pooled: bool = False) -> Tensor:
        """x + branch."""
        return DropoutHook.add(self, module, x, branch, rate, pooled)


def main() -> None:
    """Print texts per second of both variants, in both precisions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--fused", action="store_true", help="the MLP's first products alone, SiLU fused or not"
    )
    options = parser.parse_args()
    if options.fused:
        return fused(options.rounds)
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
                if turn:  # the first run compiles the products
                    seconds[name].append(time.process_time() - start)
        assert np.array_equal(logits["apart"], logits["in place"])
        rates = {name: len(ids) / median(each) for name, each in seconds.items()}
        ratio = rates["in place"] / rates["apart"]
        shown = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
        print(
            f"{str(dtype).removeprefix('torch.')}: texts per second of CPU time: {shown}; ratio {ratio:.3f}"
        )


def fused(rounds: int) -> None:
    """Compare one product for gate and up plus SwiGLU with two products, with SiLU fused into the gate's."""
    for dtype in (torch.bfloat16, torch.float32):
        x, weight = torch.randn(1024, 576).to(dtype), (torch.randn(3072, 576) * 0.05).to(dtype)
        both, gate, up = (linear._pack(each) for each in (weight, weight[:1536], weight[1536:]))
        ways: dict[str, Callable[[], Tensor]] = {
            "one product": partial(_one_product, x, both),
            "fused": partial(_two_products, x, gate, up),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        with torch.inference_mode():
            for _ in range(30 * rounds):
                for name, way in ways.items():
                    start = time.process_time()
                    way()
                    seconds[name].append(time.process_time() - start)
            equal = torch.equal(ways["one product"](), ways["fused"]())
        shown = ", ".join(f"{name} {1e3 * median(each):.2f}" for name, each in seconds.items())
        print(f"{str(dtype).removeprefix('torch.')}: ms of CPU time: {shown}; bit-identical: {equal}")


def _one_product(x: Tensor, both: Tensor) -> Tensor:
    return swiglu(linear._packed_product(x, both, None))


def _two_products(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    return linear._packed_product(x, gate, None, "swish").mul_(linear._packed_product(x, up, None))


if __name__ == "__main__":
    main()
