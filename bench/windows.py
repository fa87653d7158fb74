"""Accuracy of cut texts, of texts in windows, and of whole texts, with one adapter.

    python -m bench.windows RUN [--adapter r8-s110] [--length 16] [--texts 500] [--data FILE] [--train N]
        [--record FILE]

The first validation texts of a finished run, or the first texts of FILE, are classified at the maximum length
of training, and at a short one as if the adapter could read no more: cut, in windows with a stride of half a
window, and in windows without overlap. Texts above the short length are also counted alone. Each window of a
text is also decided alone, for its place in the text. Intervals are 95 % bootstrap intervals over texts, of
the paired differences from cut texts.

With --train, two further adapters are trained at the short length for an epoch, with the settings of the run,
on the first N training texts: one on cut texts, and one on windows.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench import common
from rankwise import Classifier, Recipe, sweep
from rankwise.data import load as data
from rankwise.data.load import Split
from rankwise.report.run import Run, load
from rankwise.store.run_folder import RunFolder

HEADER = ("texts are", "all: accuracy, %", "against cut", "long: accuracy, %", "against cut")
DRAWS = 2000

Right = NDArray[np.bool_]
"""(texts,) whether the label of each text is right."""


def answers(run: Run, name: str, length: int, split: Split) -> tuple[dict[str, Right], Right]:
    """Way of reading -> right labels; which texts are long."""
    classifier = Classifier.load(RunFolder(run.path).adapters / name, windows=False)
    full = classifier.max_length
    ways = {
        f"cut at {length} tokens": (length, None),
        f"in windows of {length}, stride {length // 2}": (length, length // 2),
        f"in windows of {length}, stride {length}": (length, length),
        f"whole, up to {full} tokens": (full, None),
    }
    right = {}
    for way, (most, stride) in ways.items():
        classifier.max_length, classifier.window_stride = most, stride
        right[way] = _right(classifier, run, split)
    lengths = classifier._tokenizer.lengths(split.texts)
    return right, lengths > length


def _right(classifier: Classifier, run: Run, split: Split) -> Right:
    decided = run.task.decided(classifier.logits(split.texts), classifier.thresholds).predicted
    return run.task.correct(decided, run.task.targets(split.labels, len(run.results.labels)))


def by_place(run: Run, name: str, length: int, split: Split) -> str:
    """Accuracy of single windows of long texts, by their place and the stride, in a table."""
    classifier = Classifier.load(RunFolder(run.path).adapters / name, windows=False)
    classifier.max_length = length
    rows = []
    for stride in (length // 2, length):
        classifier.window_stride = stride
        found = classifier._encoded(split.texts)
        places: dict[str, list[bool]] = {"first": [], "between": [], "last": []}
        long = [found.ids[i] for i in found.further], [ids for part in found.further.values() for ids in part]
        logits = iter(_logits(classifier, [*long[0], *long[1]]))
        firsts = [next(logits) for _ in long[0]]
        for first, (text, part) in zip(firsts, found.further.items(), strict=True):
            said = [row.argmax() == split.labels[text] for row in [first, *(next(logits) for _ in part)]]
            places["first"].append(said[0])
            places["between"] += said[1:-1]
            places["last"].append(said[-1])
        counts = (f"{100 * np.mean(each):.1f} ({len(each):,})" if each else "" for each in places.values())
        rows.append([str(stride), *counts])
    return common.table(("stride", "first window, %", "windows between, %", "last window, %"), rows)


def _logits(classifier: Classifier, ids: list[NDArray[np.int64]]) -> NDArray[np.float32]:
    from rankwise.nn.inference import bank_logits

    return np.asarray(bank_logits(classifier._backbone, classifier._head, ids)[0])


def trained(run: Run, length: int, split: Split, train: int) -> dict[str, Right]:
    """Way of training and reading at the short length -> right labels."""
    corpus = data.load(run.recipe)
    pairs = [(corpus.train.texts[:train], [corpus.labels[i] for i in corpus.train.labels[:train]])]
    pairs.append((split.texts, [corpus.labels[i] for i in split.labels]))
    right = {}
    with tempfile.TemporaryDirectory() as folder:
        for windows in (False, True):
            recipe = Recipe(
                **run.recipe.flat()
                | {"data": pairs[0], "validation": pairs[1], "test": None, "labels": corpus.labels}
                | {"max_length": length, "windows": windows, "epochs": 1, "tune": False}
                | {"seeds": run.recipe.train.seeds[:1], "baselines": False, "cuts": False}
                | {"learning_rates": None, "vary": {}}
            )
            results = sweep(recipe, Path(folder) / str(windows))
            adapter = RunFolder(Path(folder) / str(windows)).adapters / results.adapters[0].name
            for read in (False, True):
                classifier = Classifier.load(adapter, windows=read)
                name = f"trained {'in windows' if windows else 'on cut texts'}, read "
                name += "in windows" if read else "cut"
                right[name] = _right(classifier, run, split)
    return right


def body(right: Mapping[str, Right], is_long: Right) -> str:
    """The table with its explanation."""
    parts: Sequence[Right] = (np.ones_like(is_long), is_long)
    cut, rows = next(iter(right.values())), []
    for way, found in right.items():
        cells = [way]
        for part in parts:
            accuracy = f"{100 * found[part].mean():.1f}"
            cells += [accuracy, "" if found is cut else against(found[part], cut[part])]
        rows.append(cells)
    return common.table(HEADER, rows)


def against(found: Right, other: Right) -> str:
    """The difference in points, with its interval."""
    difference = found.astype(np.float64) - other
    draws = np.random.default_rng(0).choice(difference, (DRAWS, len(difference))).mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{100 * difference.mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def report(run: Run, name: str, length: int, split: Split, train: int) -> str:
    """All tables."""
    right, is_long = answers(run, name, length, split)
    overlapping, apart = (each[is_long] for each in list(right.values())[1:3])
    lines = [
        f"{len(is_long):,} texts, of which {is_long.sum():,} are long. Brackets: 95 % intervals, {DRAWS:,} "
        f"bootstrap samples of the texts.\n\n{body(right, is_long)}\n",
        "Windows without overlap against overlapping ones, on long texts: "
        f"{against(apart, overlapping)} points.\n",
        f"Single windows of long texts, decided alone (number of windows):\n\n"
        f"{by_place(run, name, length, split)}",
    ]
    if train:
        lines.append(
            f"\nAdapters trained at {length} tokens for an epoch of {train:,} texts, without overlap:\n\n"
            + body(trained(run, length, split, train), is_long)
        )
    return "\n".join(lines)


def texts_of(run: Run, file: Path | None, texts: int) -> Split:
    """The first labeled texts of a file, or of the run's validation split."""
    if file:
        split = data.read_labeled(file, tuple(run.results.labels))
        return data.Split(split.name, split.texts[:texts], split.labels[:texts])
    found = run.predictions["validation"]
    return data.Split("validation", list(found.texts[:texts]), found.targets[:texts].tolist())


def main() -> None:
    """Measure a run, print the tables, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--adapter", help="its name [default: the first]")
    parser.add_argument("--length", type=int, default=16, help="short maximum length, in tokens")
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--data", type=Path, help="labeled texts, instead of the run's validation texts")
    parser.add_argument("--train", type=int, default=0, help="texts to train further adapters on")
    parser.add_argument("--record", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    run = load(RunFolder(options.run))
    name = options.adapter or run.results.adapters[0].name
    found = report(run, name, options.length, texts_of(run, options.data, options.texts), options.train)
    notes = {"run": f"{run.results.base}, adapter {name}, maximum length {run.recipe.train.max_length}"}
    command = f"python -m bench.windows RUN --length {options.length} --texts {options.texts}"
    command += " --data FILE" * bool(options.data)
    command += f" --train {options.train}" * bool(options.train)
    common.write_record("Long texts cut and in windows", command, notes, found, options.record)


if __name__ == "__main__":
    main()
