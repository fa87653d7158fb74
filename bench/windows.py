"""Accuracy of cut texts, of texts in windows, and of whole texts, with one adapter.

    python -m bench.windows RUN [--adapter r8-s110] [--length 16] [--texts 500] [--record FILE]

The first validation texts of a finished run are classified at the maximum length of training, and at a short
one as if the adapter could read no more: cut, in windows with a stride of half a window, and in windows
without overlap. Texts above the short length are also counted alone. Intervals are 95 % bootstrap intervals
over texts, of the paired differences from cut texts.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench import common
from rankwise import Classifier
from rankwise.report.run import Run, load
from rankwise.store.run_folder import RunFolder

HEADER = ("texts are", "all: accuracy, %", "against cut", "long: accuracy, %", "against cut")
DRAWS = 2000

Right = NDArray[np.bool_]
"""(texts,) whether the label of each text is right."""


def answers(run: Run, name: str, length: int, texts: int) -> tuple[dict[str, Right], Right, int]:
    """Way of reading -> right labels; which texts are long; how many windows they have."""
    split = run.predictions["validation"]
    chosen, targets = list(split.texts[:texts]), split.targets[:texts]
    classifier = Classifier.load(RunFolder(run.path).adapters / name)
    full = classifier.max_length
    ways = {
        f"cut at {length} tokens": (length, None),
        f"in windows of {length}, stride {length // 2}": (length, length // 2),
        f"in windows of {length}, stride {length}": (length, length),
        f"whole, up to {full} tokens": (full, None),
    }
    right, windows = {}, 0
    for way, (most, stride) in ways.items():
        classifier.max_length, classifier.window_stride = most, stride
        decided = run.task.decided(classifier.logits(chosen), classifier.thresholds).predicted
        right[way] = run.task.correct(decided, targets)
        windows = windows or classifier.long_texts(chosen).windows
    lengths = classifier._tokenizer.lengths(chosen)
    return right, lengths > length, windows


def body(right: Mapping[str, Right], is_long: Right, windows: int) -> str:
    """The table with its explanation."""
    parts: Sequence[Right] = (np.ones_like(is_long), is_long)
    cut, rows = next(iter(right.values())), []
    for way, found in right.items():
        cells = [way]
        for part in parts:
            accuracy = f"{100 * found[part].mean():.1f}"
            cells += [accuracy, "" if found is cut else against(found[part], cut[part])]
        rows.append(cells)
    overlapping, apart = (each[is_long] for each in list(right.values())[1:3])
    return (
        f"{len(is_long):,} texts, of which {is_long.sum():,} are long. With a stride of half a window, these "
        f"have {windows:,} windows. Brackets: 95 % intervals, {DRAWS:,} bootstrap samples of the texts.\n\n"
        + common.table(HEADER, rows)
        + "\n\nWindows without overlap against overlapping ones, on long texts: "
        + f"{against(apart, overlapping)} points."
    )


def against(found: Right, other: Right) -> str:
    """The difference in points, with its interval."""
    difference = found.astype(np.float64) - other
    draws = np.random.default_rng(0).choice(difference, (DRAWS, len(difference))).mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{100 * difference.mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def main() -> None:
    """Measure a run, print the table, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--adapter", help="its name [default: the first]")
    parser.add_argument("--length", type=int, default=16, help="short maximum length, in tokens")
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--record", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    run = load(RunFolder(options.run))
    name = options.adapter or run.results.adapters[0].name
    found = answers(run, name, options.length, options.texts)
    notes = {"run": f"{run.results.base}, adapter {name}, maximum length {run.recipe.train.max_length}"}
    command = f"python -m bench.windows RUN --length {options.length} --texts {options.texts}"
    common.write_record("Long texts cut and in windows", command, notes, body(*found), options.record)


if __name__ == "__main__":
    main()
