"""How often a threshold of abstaining promises an accuracy that its answers do not have.

    python -m bench.abstaining [--sweeps 500] [--record FILE]

Simulated classifiers have logits of known calibration, so that the accuracy at any threshold is known. In
each sweep, a temperature is fitted on the validation texts, as rankwise does, and then a threshold is chosen
on the same texts. It errs if the accuracy of its answers on other texts, in expectation over their labels, is
below the target; it should in at most 5 % of the sweeps. With several classifiers, the one that is most
accurate on the validation texts is used. For comparison: the same without adjustment, and the lowest
threshold whose accuracy on validation is at least the target.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from bench import common
from rankwise.stats.abstain import CANDIDATES, LEVEL, choose_threshold, risk_coverage
from rankwise.stats.calibration import best_temperature, probabilities

Floats = NDArray[np.float64]
NEW_TEXTS = 40_000
CLASSES = 6


@dataclass(frozen=True)
class Kind:
    """A kind of classifier: its logits are calibrated ones times a factor, larger for some texts."""

    name: str
    spread: float  # of the calibrated logits
    factor: float
    sure: float = 0.0  # share of texts with a factor four times as large, wherever they are wrong or right


KINDS = (
    Kind("calibrated", 4.0, 1.0),
    Kind("overconfident", 4.0, 2.5),
    Kind("sure of some errors", 4.0, 1.0, 0.2),
    Kind("nearly at the target", 7.0, 1.5),
)


def drawn(rng: np.random.Generator, kind: Kind, texts: int) -> tuple[Floats, NDArray[np.int64], Floats]:
    """(texts, classes) logits, (texts,) labels, and (texts, classes) the probabilities of the labels."""
    calibrated = rng.normal(0, kind.spread, (texts, CLASSES))
    true = softmax(calibrated, axis=1)
    sums = true.cumsum(axis=1)
    labels = (rng.random((texts, 1)) > sums).sum(axis=1).clip(max=CLASSES - 1)
    factor = kind.factor * np.where(rng.random((texts, 1)) < kind.sure, 4.0, 1.0)
    return calibrated * factor, labels, true


def scored(logits: Floats, labels: NDArray[np.int64], temperature: float) -> tuple[Floats, NDArray[np.bool_]]:
    """(texts,) confidence, and whether the label is right."""
    found = probabilities(logits.astype(np.float32), temperature)
    return found.max(axis=1), found.argmax(axis=1) == labels


def naive(confidence: Floats, right: NDArray[np.bool_], target: float) -> float | None:
    """The lowest threshold whose accuracy on these texts is at least the target."""
    risk, ranked = risk_coverage(confidence, right).risk, np.sort(confidence)[::-1]
    enough = np.flatnonzero(1 - risk >= target)
    return float(ranked[enough[-1]]) if len(enough) else None


def rates(kind: Kind, texts: int, target: float, adapters: int, sweeps: int) -> list[str]:
    """Percent of sweeps with an error of each way, percent with a threshold, and mean coverage of those."""
    rng = np.random.default_rng([texts, round(1000 * target), adapters, len(kind.name)])
    new_logits, _, true = drawn(rng, kind, NEW_TEXTS)
    wrong, chosen, coverage = np.zeros(3), 0, 0.0
    for _ in range(sweeps):
        of_each = [drawn(rng, kind, texts) for _ in range(adapters)]
        logits, labels, _ = max(of_each, key=lambda each: (each[0].argmax(axis=1) == each[1]).mean())
        temperature = best_temperature(labels, logits.astype(np.float32))
        confidence, right = scored(logits, labels, temperature)
        found = choose_threshold(confidence, right, target, choices=adapters)
        plain = choose_threshold(confidence, right, target, level=LEVEL * CANDIDATES)
        lowest = naive(confidence, right, target)
        given = [*(each.answered.threshold if each else None for each in (found, plain)), lowest]
        predicted = new_logits.argmax(axis=1)
        new_confidence, _ = scored(new_logits, predicted, temperature)
        new_right = true[np.arange(NEW_TEXTS), predicted]  # the chance that each label is right
        for way, threshold in enumerate(given):
            if threshold is not None:
                answers = new_confidence >= threshold
                if answers.any():
                    wrong[way] += new_right[answers].mean() < target
        if found:
            chosen, coverage = chosen + 1, coverage + found.answered.coverage
    shares = [f"{100 * each / sweeps:.1f}" for each in wrong]
    mean = f"{100 * coverage / chosen:.0f}" if chosen else ""
    return [*shares, f"{100 * chosen / sweeps:.0f}", mean]


def body(sweeps: int) -> str:
    """The table."""
    header = (
        *("classifier", "adapters", "texts", "target, %", "errs, %", "errs without adjustment, %"),
        *("errs by the naive rule, %", "has a threshold, %", "its coverage, %"),
    )
    rows = []
    for kind, adapters, (texts, target) in product(KINDS, (1, 10), ((200, 0.9), (1000, 0.95))):
        found = rates(kind, texts, target, adapters, sweeps)
        rows.append([kind.name, str(adapters), f"{texts:,}", f"{100 * target:g}", *found])
    return common.table(header, rows)


def main() -> None:
    """Simulate, print the table, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sweeps", type=int, default=500)
    parser.add_argument("--record", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    command = f"python -m bench.abstaining --sweeps {options.sweeps}"
    common.write_record("Thresholds for a target accuracy", command, {}, body(options.sweeps), options.record)


if __name__ == "__main__":
    main()
