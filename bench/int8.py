"""Prediction in float32, bfloat16 and int8, in turn in one process: speed, and what int8 changes.

GPT-2's 124M shape with random weights, for speed alone; and SmolLM2-135M, or an adapter of it, with the
labels and the accuracy on labeled texts. Times are without tokenization. Each variant classifies all texts,
then some of them one by one.

    python -m bench.int8 [--adapter FOLDER --data FILE] [--texts N] [--rounds N] [--record FILE]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch

from bench import common
from rankwise import Classifier
from rankwise.data.load import read_labeled
from rankwise.models import base as bases
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import AdapterSpec, Bank
from rankwise.nn.batch import Ids
from rankwise.nn.inference import bank_logits
from rankwise.nn.quantize import quantize
from rankwise.stats.intervals import accuracy_interval

PRECISIONS = ("float32", "bfloat16", "int8")
SINGLY = 20
"""Number of texts that are classified one by one."""
CALIBRATION = 256

Label = Callable[[Sequence[Ids]], object]


def main() -> None:
    """Measure the shape, then the adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--adapter", type=Path, help="an adapter of SmolLM2-135M, in its run folder")
    parser.add_argument("--data", type=Path, help="labeled texts that it was not trained on")
    parser.add_argument("--texts", type=int, default=256, help="texts of each timed pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", type=Path, help="Markdown file to write the table to")
    options = parser.parse_args()
    ids, _ = common.draw(options.texts + CALIBRATION)
    texts, calibration = ids[: options.texts], ids[options.texts :]
    gpt2 = models(lambda dtype: common.gpt2({}, dtype), calibration)
    rows = speed_rows("GPT-2 124M shape", gpt2, texts, options.rounds)
    notes = {
        "work": f"{len(texts)} texts of {np.mean([*map(len, texts)]):.1f} tokens in the mean, of {name()}"
    }
    if options.adapter:
        loaded = {each: Classifier.load(options.adapter, precision=each) for each in PRECISIONS}
        rows += speed_rows(
            "SmolLM2-135M", {each: parts(loaded[each]) for each in loaded}, texts, options.rounds
        )
        notes["labels"] = agreement(loaded, options.data)
    else:
        rows += speed_rows("SmolLM2-135M", models(smollm2, calibration), texts, options.rounds)
    given = f" --adapter {options.adapter} --data {options.data}" if options.adapter else ""
    common.write_record(
        "Prediction in int8",
        f"python -m bench.int8{given} --texts {options.texts} --rounds {options.rounds}",
        notes | {"times": "CPU time of the process, medians over rounds"},
        common.table(
            ["model", "precision", "texts/s", "times bfloat16", "one text, ms", "times bfloat16"], rows
        ),
        options.record,
    )


def name() -> str:
    """Where the texts are from."""
    return common.labelled_texts()[0]


def models(build: Callable[[torch.dtype], Backbone], calibration: Sequence[Ids]) -> dict[str, Label]:
    """A base model in each precision, from the same weights."""
    found: dict[str, Label] = {}
    for precision in PRECISIONS:
        torch.manual_seed(0)
        backbone = build(torch.float32 if precision == "float32" else torch.bfloat16)
        if precision == "int8":
            quantize(backbone, calibration)
        bank = Bank([AdapterSpec(0, 0.0, 0.0, 0, 0.0, ())], {}, backbone.d_model, common.CLASSES)
        found[precision] = labeler(backbone, bank)
    return found


def smollm2(dtype: torch.dtype) -> Backbone:
    """SmolLM2-135M."""
    return bases.load_backbone(bases.find(bases.SMOLLM2), dtype, torch.device("cpu"))


def parts(classifier: Classifier) -> Label:
    """A classifier without its tokenizer."""
    return labeler(classifier._backbone, classifier._head)


def labeler(backbone: Backbone, head: Bank) -> Label:
    """Token ids -> logits."""
    return lambda ids: bank_logits(backbone, head, ids)


def speed_rows(model: str, ways: dict[str, Label], texts: Sequence[Ids], rounds: int) -> list[list[str]]:
    """A row for each precision."""
    together: dict[str, list[float]] = {way: [] for way in ways}
    singly: dict[str, list[float]] = {way: [] for way in ways}
    for label in ways.values():
        label(texts[:32])
        label(texts[:1])
    for _ in range(rounds):
        for way, label in ways.items():
            together[way].append(seconds(label, texts))
            singly[way] += [seconds(label, [text]) for text in texts[:SINGLY]]
    rate = {way: len(texts) / median(each) for way, each in together.items()}
    wait = {way: 1000 * median(each) for way, each in singly.items()}
    return [
        [
            model,
            way,
            f"{rate[way]:.1f}",
            f"{rate[way] / rate['bfloat16']:.2f}",
            f"{wait[way]:.1f}",
            f"{wait['bfloat16'] / wait[way]:.2f}",
        ]
        for way in ways
    ]


def seconds(label: Label, texts: Sequence[Ids]) -> float:
    """CPU seconds of the process, which other programs change less than wall time."""
    start = time.process_time()
    label(texts)
    return time.process_time() - start


def agreement(loaded: dict[str, Classifier], data: Path) -> str:
    """Labels equal to those of float32, and accuracies with 95 % intervals."""
    split = read_labeled(data, loaded["float32"].labels)
    found = {each: classifier.logits(split.texts).argmax(-1) for each, classifier in loaded.items()}
    said = []
    for each, labels in found.items():
        right, same = int((labels == np.asarray(split.labels)).sum()), np.mean(labels == found["float32"])
        low, high = accuracy_interval(right, len(split))
        said.append(
            f"{each}: {100 * same:.2f} % equal to float32's, accuracy {100 * right / len(split):.2f} % "
            f"({100 * low:.1f} to {100 * high:.1f})"
        )
    return f"{len(split):,} texts of {data.name}; " + "; ".join(said)


if __name__ == "__main__":
    main()
