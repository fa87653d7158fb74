"""When a temperature should be fitted, and whether the intervals of the calibration error hold.

    python -m bench.temperature [--part rules|check|ece] [--sweeps 400] [--record FILE]

`rules` compares rules for using a fitted temperature, on simulated classifiers: logits are drawn, labels are
drawn from their softmax, and the classifier shows the logits times its true temperature. In half of the
settings, the temperature varies from text to text, so that no single one is right.

`check` repeats this for the rule in use with classifiers that were not simulated: linear classifiers of
TF-IDF features with three strengths of regularization, with validation texts drawn from real ones. They are
emotion's if `RANKWISE_TEST_DATA` has them, or the starter's.

`ece` counts how often the intervals of the expected calibration error contain that of a million texts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from bench import common
from rankwise.stats import calibration
from rankwise.stats.metrics import BINS, bin_of, text_log_losses

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SIZES = (20, 50, 100, 200, 500, 2000)
"""Validation texts."""
HARM = 0.005
"""Nats by which the log loss of new texts must rise to count as harm."""
RULES: dict[str, Callable[[calibration.Fit, float, int], bool]] = {
    "always": lambda found, ratio, texts: True,
    "from 100 texts": lambda found, ratio, texts: texts >= 100,
    "gain above 0": lambda found, ratio, texts: found.gain > 0,
    "gain above 1 SE": lambda found, ratio, texts: found.gain > found.gain_error,
    "the rule in use": lambda found, ratio, texts: found.is_shown,
    "gain above 2 SE": lambda found, ratio, texts: found.gain > 2 * found.gain_error,
    "AIC": lambda found, ratio, texts: ratio > 2,
    "likelihood ratio, 5 %": lambda found, ratio, texts: ratio > 3.84,
}
"""Rule -> whether it uses a fit, twice the gain in the log likelihood of its own texts, and their number."""


def logits(rng: np.random.Generator, texts: int, classes: int, spread: float) -> Floats:
    """(texts, classes) calibrated logits, more or less sure."""
    return rng.normal(0, spread, (texts, classes))


def drawn(rng: np.random.Generator, calibrated: Floats) -> Ints:
    """(texts,) labels drawn from the softmax of logits."""
    sums = softmax(calibrated, axis=1).cumsum(axis=1)
    return np.asarray((rng.random((len(sums), 1)) > sums).sum(axis=1).clip(max=sums.shape[1] - 1))


def expected_loss(calibrated: Floats, shown: Floats) -> float:
    """Mean log loss of shown logits, exactly over labels."""
    return float(-(softmax(calibrated, axis=1) * log_softmax(shown, axis=1)).sum(axis=1).mean())


def ratio_of(found: calibration.Fit, targets: Ints, shown: NDArray[np.float32]) -> float:
    """Twice the gain in log likelihood on the texts that the temperature was fitted on."""
    scaled = (shown / found.temperature).astype(np.float32)
    return float(2 * (text_log_losses(targets, shown) - text_log_losses(targets, scaled)).sum())


def gains(
    sweeps: int, texts: int, true: float, classes: int, spread: float, varied: float
) -> Iterator[Floats]:
    """For each rule, in each sweep: gain in the log loss of new texts, 0 if the rule fits nothing."""
    rng = np.random.default_rng([texts, round(100 * true), classes, round(10 * varied)])
    new = logits(rng, 2000, classes, spread)
    new_shown = new * true * np.exp(varied * rng.normal(size=(len(new), 1)))
    known = expected_loss(new, new_shown)
    for _ in range(sweeps):
        calibrated = logits(rng, texts, classes, spread)
        factor = true * np.exp(varied * rng.normal(size=(texts, 1)))
        shown, targets = (calibrated * factor).astype(np.float32), drawn(rng, calibrated)
        found = calibration.fit(targets, shown)
        assert found is not None
        gain = known - expected_loss(new, new_shown / found.temperature)
        ratio = ratio_of(found, targets, shown)
        yield np.array([gain * rule(found, ratio, texts) for rule in RULES.values()])


def rules(sweeps: int) -> str:
    """Mean gain, share of sweeps that use a fit, and share of harm, of each rule by number of texts."""
    cells: dict[int, list[Floats]] = {texts: [] for texts in SIZES}
    by_true: dict[tuple[int, float], list[Floats]] = {}
    shapes = ((2, 3.0), (6, 3.0), (77, 2.5))  # classes, spread: accuracies of about 85, 76 and 40 %
    for texts, true, (classes, spread), varied in product(SIZES, (0.8, 1.0, 1.5, 2.5), shapes, (0.0, 0.4)):
        found = list(gains(max(1, sweeps // 8), texts, true, classes, spread, varied))
        cells[texts] += found
        by_true.setdefault((texts, true), []).extend(found)
    parts = []
    measures: dict[str, Callable[[Floats], Floats]] = {
        "Mean gain in log loss, nats x 1,000": lambda all_: 1000 * all_.mean(axis=0),
        f"Percent of sweeps in which new texts lose more than {HARM} nats": lambda all_: (
            100 * (all_ < -HARM).mean(axis=0)
        ),
        "Percent of sweeps that use the temperature": lambda all_: 100 * (all_ != 0).mean(axis=0),
    }
    for title, measure in measures.items():
        rows = [[f"{n:,}", *(f"{x:.1f}" for x in measure(np.array(found)))] for n, found in cells.items()]
        parts.append(f"{title}:\n\n{common.table(('texts', *RULES), rows)}\n")
    rows = [
        [f"{n:,}", f"{true:g}", *(f"{1000 * x:.1f}" for x in np.array(found).mean(axis=0))]
        for (n, true), found in by_true.items()
    ]
    header = ("texts", "true temperature", *RULES)
    parts.append(f"Mean gain by true temperature, nats x 1,000:\n\n{common.table(header, rows)}\n")
    return "\n".join(parts)


def real_classifiers() -> Iterator[tuple[str, NDArray[np.float32], Ints]]:
    """Name, logits and labels of linear classifiers on texts that they were not trained on."""
    source, texts, labels = common.labelled_texts()
    targets, order = np.array(labels), np.random.default_rng(0).permutation(len(texts))
    train, rest = order[: len(order) // 4], order[len(order) // 4 :]
    vectors = TfidfVectorizer(sublinear_tf=True).fit([texts[i] for i in train])
    features = [vectors.transform([texts[i] for i in part]) for part in (train, rest)]
    for strength in (0.3, 5.0, 1000.0):
        model = LogisticRegression(C=strength, max_iter=2000).fit(features[0], targets[train])
        found = model.decision_function(features[1]).astype(np.float32)
        yield f"{source}, C = {strength:g}", found, targets[rest]


def check(sweeps: int) -> str:
    """The rule in use, and fitting always, with real classifiers."""
    rows = []
    for name, shown, targets in real_classifiers():
        best = calibration.best_temperature(targets, shown)
        for texts in (size for size in SIZES if size <= len(targets) // 2):
            rng, found = np.random.default_rng(texts), []
            for _ in range(sweeps):
                order = rng.permutation(len(targets))
                own, new = order[:texts], order[texts:]
                each = calibration.fit(targets[own], shown[own])
                assert each is not None
                scaled = (shown[new] / each.temperature).astype(np.float32)
                gain = (
                    text_log_losses(targets[new], shown[new]) - text_log_losses(targets[new], scaled)
                ).mean()
                found.append((gain, gain * each.is_shown, each.is_shown))
            always, used, shares = np.array(found).T
            harm = [f"{100 * (each < -HARM).mean():.1f}" for each in (always, used)]
            means = [f"{1000 * each.mean():.1f}" for each in (always, used)]
            rows.append([name, f"{best:.2f}", f"{texts:,}", *means, *harm, f"{100 * shares.mean():.0f}"])
    header = (
        *("classifier", "best temperature", "texts", "gain, always", "gain, rule"),
        *("harm %, always", "harm %, rule", "fitted %"),
    )
    note = f"Gains in nats x 1,000; harm: new texts lose more than {HARM} nats."
    return f"{note}\n\n{common.table(header, rows)}\n"


def ece(sweeps: int) -> str:
    """Coverage of the intervals of the calibration error, before and after the true temperature."""
    rows = []
    for texts, true in product((100, 500), (1.0, 1.1, 1.25, 2.0)):
        rng = np.random.default_rng([texts, round(10 * true)])
        many = logits(rng, 1_000_000, 6, 3.0)
        exact = np.zeros(2)
        for side, factor in enumerate((true, 1.0)):
            shown = softmax(many * factor, axis=1)
            label = shown.argmax(axis=1)
            place = np.arange(len(many)), label
            gap = (
                softmax(many, axis=1)[place] - shown[place]
            )  # of the chance of being right and the confidence
            sums = np.bincount(bin_of(shown[place]), gap, BINS)
            exact[side] = np.abs(sums).sum() / len(many)
        counts, means = np.zeros((2, 2)), np.zeros(2)
        for _ in range(sweeps):
            calibrated = logits(rng, texts, 6, 3.0)
            found = calibration.scaling(drawn(rng, calibrated), (calibrated * true).astype(np.float32), true)
            for side, each in enumerate((found.before.ece, found.after.ece)):
                counts[side] += each.low <= exact[side] <= each.high, each.high < exact[side]
                means[side] += each.value
        for side, name in enumerate(("before", "after")):
            inside, below = 100 * counts[side] / sweeps
            if side and true > 1:
                continue  # the true temperature makes each calibrated, like the first
            cells = [f"{100 * each:.2f}" for each in (exact[side], means[side] / sweeps)]
            rows.append([f"{texts:,}", f"{true:g}", name, *cells, f"{inside:.1f}", f"{below:.1f}"])
    header = (
        "texts",
        "true temperature",
        "side",
        "true ECE",
        "mean estimate",
        "inside, %",
        "interval below, %",
    )
    return f"In points.\n\n{common.table(header, rows)}\n"


PARTS: dict[str, Callable[[int], str]] = {"rules": rules, "check": check, "ece": ece}


def main() -> None:
    """Simulate, print the tables, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--part", choices=list(PARTS), help="only this part")
    parser.add_argument("--sweeps", type=int, default=400)
    parser.add_argument("--record", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    chosen = [options.part] if options.part else list(PARTS)
    body = "\n".join(f"## {name}\n\n{PARTS[name](options.sweeps)}" for name in chosen)
    part = f" --part {options.part}" if options.part else ""
    command = f"python -m bench.temperature{part} --sweeps {options.sweeps}"
    common.write_record("When a temperature is fitted", command, {}, body, options.record)


if __name__ == "__main__":
    main()
