"""Prediction: rankwise's Classifier compared with a transformers model in padded batches, in one run.

GPT-2's 124M shape with random weights and a merged adapter, in bfloat16. Tokenization is included.

    python -m bench.predict [--texts N] [--rounds N] [--full] [--record FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from bench import common
from rankwise.commands.classifier import Classifier
from rankwise.models import base as bases
from rankwise.models.gpt2 import GPT2Config
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.bank import AdapterSpec, Bank

SINGLY = 40
"""Number of texts that are classified one by one."""

Label = Callable[[Sequence[str]], Any]


def main() -> None:
    """Classify the same texts alternately, then some of them one at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="16,000 texts")
    parser.add_argument("--shape", default="{}", help='overrides of GPT-2, such as {"n_layer": 2}')
    parser.add_argument("--record", type=Path, help="Markdown file to write the table to")
    options = parser.parse_args()
    shape, number = json.loads(options.shape), 16_000 if options.full else options.texts
    config = GPT2Config.from_json(shape)
    name, texts, _ = common.labelled_texts()
    chosen = [
        texts[i] for i in np.random.default_rng(0).choice(len(texts), number, replace=number > len(texts))
    ]
    model, tokenizer = peer_model(shape), peer_tokenizer()
    ways: dict[str, Label] = {
        "transformers, batches of 32 in the order of the texts": peer(model, tokenizer, ordered=False),
        "transformers, batches of 32 in order of length": peer(model, tokenizer, ordered=True),
        "rankwise": ours(shape),
    }
    before = common.rates()
    rates = {way: number / each for way, each in by_turns(ways, chosen, options.rounds).items()}
    singly = one_by_one(ways, chosen[:SINGLY], options.rounds)
    lengths = [len(ids) for ids in common.token_ids(chosen)]
    flop = common.predict_flop(config, lengths) / number
    limit = max(*before[torch.bfloat16].values(), *common.rates()[torch.bfloat16].values())
    rows = [
        [way, f"{rate:.0f}", f"{100 * rate * flop / 1e9 / limit:.0f} %", f"{1000 * singly[way]:.1f}"]
        for way, rate in rates.items()
    ]
    common.write_record(
        "Prediction: rankwise beside transformers",
        f"python -m bench.predict --texts {number} --rounds {options.rounds}",
        {
            "work": f"GPT-2 124M shape, random weights, bfloat16, {number} {name} texts of "
            f"{np.mean(lengths):.1f} tokens in the mean, {flop / 1e9:.2f} GFLOP a text, where what texts "
            "begin with in common counts for each of them",
            "matrix products, GFLOP/s": common.rates_note(before),
            "one text": floor_note(config, lengths[:SINGLY], limit),
        },
        common.table(["what", "texts/s", "of the matrix rate", "one text, median ms"], rows),
        options.record,
    )


def by_turns(ways: dict[str, Label], texts: Sequence[str], rounds: int) -> dict[str, float]:
    """Median seconds of each variant."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for label in ways.values():
        label(texts[:64])
    for _ in range(rounds):
        for way, label in ways.items():
            start = time.perf_counter()
            label(texts)
            seconds[way].append(time.perf_counter() - start)
    return {way: median(each) for way, each in seconds.items()}


def one_by_one(ways: dict[str, Label], texts: Sequence[str], rounds: int) -> dict[str, float]:
    """Median seconds per single text, alternating between the variants."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for way, label in [*ways.items()] * rounds:
        for text in texts:
            start = time.perf_counter()
            label([text])
            seconds[way].append(time.perf_counter() - start)
    return {way: median(each) for way, each in seconds.items()}


def floor_note(config: GPT2Config, lengths: Sequence[int], gflops: float) -> str:
    """Lower bounds for a single text of median length: its matrix products, and reading every weight once."""
    length = int(median(lengths))
    flop = common.predict_flop(config, [length])
    size = 2 * sum(n_in * n_out for n_in, n_out in config.module_shapes().values())
    products, reading = 1000 * flop / (1e9 * gflops), 1000 * size / read_rate()
    return (
        f"{len(lengths)} texts of {length} tokens in the median: {flop / 1e9:.2f} GFLOP, {products:.1f} ms "
        f"at the matrix rate, {size / 1e6:.0f} MB of weights, {reading:.1f} ms to read them"
    )


def read_rate() -> float:
    """Memory bandwidth in bytes per second, from reading a tensor larger than any cache; median of ten."""
    x = torch.ones(1 << 26)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        x.sum()
        seconds.append(time.perf_counter() - start)
    return 4 * len(x) / median(seconds)


def ours(shape: dict[str, Any]) -> Label:
    """A Classifier with the adapter merged into the backbone."""
    backbone = common.gpt2(shape, torch.bfloat16)
    head = Bank([AdapterSpec(0, 1.0, 1.0, 0, 0.0, ())], backbone.modules(), backbone.d_model, common.CLASSES)
    labels = [str(i) for i in range(common.CLASSES)]
    return Classifier(backbone, head, Tokenizer.load(bases.find(bases.SMOLLM2).folder), labels, 128)


def peer_model(shape: dict[str, Any]) -> Any:
    """transformers' classifier in evaluation mode, in bfloat16."""
    import transformers

    config = transformers.GPT2Config(
        **shape | {"num_labels": common.CLASSES, "pad_token_id": 0, "use_cache": False}
    )
    model: Any = transformers.GPT2ForSequenceClassification(config)
    return model.to(torch.bfloat16).eval()


def peer_tokenizer() -> Any:
    """transformers' tokenizer with the same vocabulary."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(bases.find(bases.SMOLLM2).folder)
    tokenizer.pad_token_id = 0
    return tokenizer


def peer(model: Any, tokenizer: Any, ordered: bool) -> Label:
    """Classify padded batches with transformers; labels are in the order of the texts."""

    def label(texts: Sequence[str]) -> Any:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i])) if ordered else range(len(texts))
        out = torch.empty(len(texts), common.CLASSES)
        with torch.inference_mode():
            for i in range(0, len(texts), 32):
                members = list(order[i : i + 32])
                batch = tokenizer([texts[m] for m in members], padding=True, return_tensors="pt")
                out[members] = model(**batch).logits.float()
        return out.softmax(-1)

    return label


if __name__ == "__main__":
    main()
