"""How well gradient times input agrees with occlusion on the words of real texts.

    python -m bench.attribution ADAPTER [--texts 100] [--record FILE]

For texts of the starter data's validation split, the effects of all words by both methods are compared by
Spearman's rank correlation within each text, and by whether the word with the largest effect is the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from bench import common
from rankwise import Classifier
from rankwise.commands.explain import METHODS, Explanation
from rankwise.data import load as data
from rankwise.recipe import Recipe

FEWEST_WORDS = 5


def effects(found: Explanation) -> list[float]:
    """The effect of each word."""
    return [word.effect for word in found.words]


def body(classifier: Classifier, texts: list[str]) -> str:
    """The table."""
    correlations, same, baseline = [], [], []
    rng = np.random.default_rng(0)
    for text in texts:
        by_occlusion, by_gradient = (effects(classifier.explain(text, method=each)) for each in METHODS)
        correlations.append(float(spearmanr(by_occlusion, by_gradient).statistic))
        same.append(int(np.argmax(by_occlusion)) == int(np.argmax(by_gradient)))
        baseline.append(1 / len(by_occlusion))
    found = np.array(correlations)
    samples = rng.choice(found, (1000, len(found))).mean(axis=1)
    low, high = np.quantile(samples, (0.025, 0.975))
    quartiles = " / ".join(f"{each:.2f}" for each in np.quantile(found, (0.25, 0.5, 0.75)))
    rows = [
        ["texts", str(len(texts))],
        ["Spearman's correlation within a text, mean", f"{found.mean():.2f} ({low:.2f} to {high:.2f})"],
        ["its quartiles", quartiles],
        ["texts in which it is above 0", f"{100 * (found > 0).mean():.0f} %"],
        ["same word first", f"{100 * np.mean(same):.0f} % (by chance {100 * np.mean(baseline):.0f} %)"],
    ]
    return common.table(("measure", "value"), rows)


def main() -> None:
    """Compare, print the table, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("adapter", type=Path, help="adapter folder, or a run")
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--record", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    validation = data.load(Recipe()).validation
    assert validation is not None
    texts = [text for text in validation.texts if len(text.split()) >= FEWEST_WORDS][: options.texts]
    classifier = Classifier.load(options.adapter)
    command = f"python -m bench.attribution {options.adapter} --texts {options.texts}"
    common.write_record(
        "Gradient times input against occlusion", command, {}, body(classifier, texts), options.record
    )


if __name__ == "__main__":
    main()
