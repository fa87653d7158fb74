"""From a CSV to labels: sweep two ranks, take the recommended adapter, label new texts.

    python examples/own_csv.py [--base NAME] [--csv FILE] [--out FOLDER]

Without --csv, the script writes a small example file first. 30 texts are far too few to learn much
from; expect better predictions with your own file.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from scipy.stats import binomtest

from rankwise import Classifier, RankwiseError, Recipe, sweep

MESSAGES = {
    "billing": [
        "You charged my card twice this month.",
        "The invoice still shows our old address.",
        "Why did the price go up without a word?",
        "Please send me a receipt for March.",
        "My refund has not arrived in eleven days.",
        "The discount code was accepted and then ignored.",
        "I was billed for a plan that I cancelled.",
        "Can I pay by bank transfer instead?",
        "The tax on my bill looks wrong.",
        "Which card do you have on file for me?",
    ],
    "delivery": [
        "The parcel says delivered, but my porch is empty.",
        "It was left in the rain and the box is soaked.",
        "Could the courier ring the bell next time?",
        "Tracking has not moved since Tuesday.",
        "You shipped it to the flat downstairs.",
        "Half of the order is missing from the box.",
        "When will the second package get here?",
        "I need it sent to my office, not my home.",
        "The driver came at noon, not in the evening as booked.",
        "My neighbor got my books and I got her lamp.",
    ],
    "praise": [
        "The new desk is lovely, thank you.",
        "Your colleague on the phone could not have been kinder.",
        "Best mug I have ever owned.",
        "It arrived a day early and fits like a glove.",
        "I have told all my friends about the shop.",
        "Such a pretty card in the box, it made me smile.",
        "Five years on and the kettle still works like new.",
        "Well done, the website is a joy to use now.",
        "My daughter will not put the puzzle down.",
        "Thanks for sorting it out so quickly!",
    ],
}
NEW_TEXTS = ["There is a fee on my statement that I do not know.", "Nobody brought the box.", "I adore it."]


def main() -> None:
    """Sweep, load the recommended adapter, and classify new texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m", help="base model")
    parser.add_argument(
        "--csv", type=Path, help="your file, with a column for the text and one for the label"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/own-csv"), help="folder to write; must be new")
    options = parser.parse_args()
    data = options.csv or write_csv(options.out.with_suffix(".csv"))

    # Both ranks train in one pass. A validation split is cut from the file: a third of each class
    # here, because there are so few texts. With thousands of texts, the default of a tenth is enough.
    recipe = Recipe(
        **{
            "base": options.base,
            "data": str(data),
            "validation_fraction": 1 / 3,
            "max_length": 64,  # in tokens; enough for texts as short as these
            "ranks": [1, 8],
            # Scale alpha / r: one learning rate suits both ranks (docs/concepts.md, "Alpha and the scale").
            "alpha": 16.0,
            "alpha_mode": "fixed",
            "epochs": 4,
            "batch_size": 4,
            # Tuning the rate of each rank takes more texts; without "tune": False, a sweep does it.
            "tune": False,
            "learning_rate": 1e-3,
        }
    )
    results = sweep(recipe, options.out)
    for row in results.adapters:
        low, high = 100 * row.validation.accuracy_low, 100 * row.validation.accuracy_high
        print(f"{row.name}: accuracy {100 * row.validation.accuracy:.1f} % ({low:.1f} to {high:.1f})")

    adapter = results.recommended
    p = difference(options.out, *(row.name for row in results.adapters))
    print(f"recommended: {adapter.adapter} (p-value of the difference: {p:.2g})")
    classifier = Classifier.load(adapter.folder)
    for text, found in zip(NEW_TEXTS, classifier(NEW_TEXTS), strict=True):
        print(f"{found.label:<10} {found.probability:.2f}  {text}")


def write_csv(path: Path) -> Path:
    """Write the messages to a CSV file. The csv module quotes texts with commas or quotes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([text, label] for label, texts in MESSAGES.items() for text in texts)
    return path


def difference(run: Path, one: str, other: str) -> float:
    """The p-value of the difference between two adapters of a run on its validation texts."""
    with (run / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return chance([row for row in csv.DictReader(file) if row["split"] == "validation"], one, other)


def chance(rows: list[dict[str, str]], one: str, other: str) -> float:
    """The p-value of the difference between two adapters (McNemar's exact test)."""
    only_one = sum(row[one] == row["label"] != row[other] for row in rows)
    only_other = sum(row[other] == row["label"] != row[one] for row in rows)
    return float(binomtest(only_one, only_one + only_other).pvalue) if only_one + only_other else 1.0


if __name__ == "__main__":
    try:
        main()
    except RankwiseError as error:  # the message says what is wrong and what to do
        raise SystemExit(f"error: {error}") from None
