"""A multi-label data set made of given single-label texts, and a sweep on it.

One to three texts are joined, and the new text has the labels of all of them. Every tenth text of a split is
also made without a label: it consists of words that are frequent in all classes. The set is the same for the
same files and numbers. Without --data, the texts are the starter texts.

    python -m bench.multi_label [--data FOLDER] [--texts N] [--held-out N] [--base NAME] [--ranks LIST]
        [--epochs N] [--out FOLDER] [--only-data]

FOLDER has the files that `rankwise --data` reads. The set is written to OUT/data, and the run to OUT/run.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rankwise import Recipe, sweep
from rankwise.data import load as data
from rankwise.data.load import Dataset, Split
from rankwise.store import files

MOST = 3
"""Maximum number of texts that are joined."""
UNLABELED = 10
"""One text in this many has no label."""
COMMON = 60
"""Number of frequent words that texts without a label are made of."""


def joined(dataset: Dataset, split: Split, number: int, seed: int) -> Iterator[dict[str, object]]:
    """Rows with a text and the list of its labels.

    Args:
        dataset: the single-label data set.
        split: the split of it to take texts from.
        number: of rows to make.
        seed: of the draw.
    """
    draw, words = random.Random(seed), _common_words(dataset, split)
    for row in range(number):
        if row % UNLABELED == UNLABELED - 1:
            yield {"text": " ".join(draw.choices(words, k=draw.randint(5, 20))), "labels": []}
            continue
        chosen = draw.sample(range(len(split)), 1 + row % MOST)
        ids = sorted({label for i in chosen if isinstance(label := split.labels[i], int)})
        yield {
            "text": " ".join(split.texts[i] for i in chosen),
            "labels": [dataset.labels[i] for i in ids],
        }


def _common_words(dataset: Dataset, split: Split) -> list[str]:
    """The words that are most frequent in the class where they are rarest."""
    counts = [Counter[str]() for _ in dataset.labels]
    for text, label in zip(split.texts, split.labels, strict=True):
        if isinstance(label, int):
            counts[label].update(set(text.split()))
    texts = Counter(split.labels)
    shares = {
        word: min(count[word] / max(1, texts[i]) for i, count in enumerate(counts)) for word in counts[0]
    }
    return sorted(shares, key=lambda word: (-shares[word], word))[:COMMON]


def write(dataset: Dataset, folder: Path, sizes: dict[str, int]) -> None:
    """Write train.jsonl, validation.jsonl and test.jsonl."""
    for seed, split in enumerate(dataset.splits):
        rows = joined(dataset, split, sizes[split.name], seed)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        files.write_text(folder / f"{split.name}.jsonl", "".join(lines))


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the set, train, and print the verdict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", default="starter")
    parser.add_argument("--texts", type=int, default=2000, help="training texts")
    parser.add_argument("--held-out", type=int, default=500, help="validation texts, and test texts")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--ranks", default="1,4")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/multi-label"))
    parser.add_argument("--only-data", action="store_true")
    given = parser.parse_args(arguments)
    sizes = {"train": given.texts, "validation": given.held_out, "test": given.held_out}
    write(data.load(Recipe(data=given.data)), given.out / "data", sizes)
    if given.only_data:
        return
    recipe = Recipe.preset(
        "quickstart",
        base=given.base,
        data=given.out / "data",
        task="multi-label",
        ranks=tuple(map(int, given.ranks.split(","))),
        epochs=given.epochs,
        tune=False,
    )
    print(sweep(recipe, given.out / "run").verdict)


if __name__ == "__main__":
    main()
