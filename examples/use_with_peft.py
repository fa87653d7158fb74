"""Train with rankwise, use with PEFT: the same adapter folder, the same predictions.

python examples/use_with_peft.py [--base NAME] [--data DATA] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

from rankwise import Classifier, RankwiseError, Recipe, sweep
from rankwise.models.base import find

TEXTS = ["The window seat was mine all the way home.", "Not again.", "Who left the gate open?"]


def main() -> None:
    """Train one adapter, load it with both libraries, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m", help="base model")
    parser.add_argument("--data", default="starter", help="data to train on")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/with-peft"), help="folder to write; must be new"
    )
    options = parser.parse_args()

    # An adapter stores the name of its base, and PEFT looks up the base by that name. Some names, such
    # as smollm2-135m, are only known to rankwise. A folder works with both.
    base = find(options.base).folder
    settings = {"ranks": [4], "max_length": 64, "tune": False, "learning_rate": 1e-3}
    recipe = Recipe(**settings | {"base": str(base), "data": options.data})
    sweep(recipe, options.out)
    folder = options.out / "adapters" / "r4-s110"

    # rankwise merges the adapter into the base; PEFT applies it in every layer. Both use float32 here.
    ours = Classifier.load(folder, precision="float32")
    peft, tokenizer = load_with_peft(folder)
    theirs = np.concatenate([peft_logits(peft, tokenizer, text, ours.max_length) for text in TEXTS])
    for text, row in zip(TEXTS, theirs, strict=True):
        print(f"{peft.config.id2label[int(row.argmax())]:<10} {text}")
    print(f"largest difference of a logit: {np.abs(ours.logits(TEXTS) - theirs).max():.1e}")


def load_with_peft(folder: Path) -> tuple[Any, Any]:
    """A PEFT model and its tokenizer, with the classes stored in the adapter folder."""
    config = json.loads((folder / "classifier.json").read_text("utf-8"))
    labels = {int(number): label for number, label in config["id2label"].items()}
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        str(folder), num_labels=config["num_labels"], id2label=labels, label2id=config["label2id"]
    )
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def peft_logits(model: Any, tokenizer: Any, text: str, max_length: int) -> NDArray[np.float32]:
    """(1, classes) float32. One text at a time needs no padding, and so no pad token."""
    tokens = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
    found = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    logits: NDArray[np.float32] = found.logits.numpy()
    return logits


if __name__ == "__main__":
    try:
        main()
    except RankwiseError as error:  # the message says what is wrong and what to do
        raise SystemExit(f"error: {error}") from None
