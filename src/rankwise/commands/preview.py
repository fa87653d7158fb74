"""What can be said before a base is fetched: what `rankwise plan` and `rankwise data` show."""

from __future__ import annotations

from rankwise import plan
from rankwise.data import load as data
from rankwise.data.audit import report
from rankwise.models import base as bases
from rankwise.models.tokenizer import Tokenizer
from rankwise.recipe import Recipe
from rankwise.schema import DataReport

CHARACTERS_PER_TOKEN = 4.4
"""English text in GPT-2's tokens, about; used only where no tokenizer has been fetched yet."""
DEFAULT_CLASSES = 2


def preview(recipe: Recipe) -> plan.Plan:
    """The plan of a recipe, from files at hand where there are any.

    Raises:
        UsageError: the recipe does not fit the model.
        DataError: local data cannot be used.
        ModelError: the base model is not supported.
        Unreachable: the base is unknown and its config must come from the Hub, which does not answer.
    """
    texts = tokens = None
    classes = len(recipe.labels or ()) or DEFAULT_CLASSES
    if not data.is_hub_id(recipe.data):
        found = data.load(recipe)
        texts, classes = len(found.train), len(found.labels)
        tokens = sum(map(len, found.train.texts)) / texts / CHARACTERS_PER_TOKEN
    return plan.make(
        recipe,
        bases.config(recipe.base),
        has_pad_token=bases.has_pad_token(recipe.base),
        classes=classes,
        texts=texts,
        tokens_per_text=tokens,
        number_bytes=4 if recipe.precision == "float32" else 2,
    )


def data_report(recipe: Recipe) -> tuple[DataReport, tuple[str, ...]]:
    """What a recipe's data holds, and notes on how they were read.

    Lengths are in tokens where the base's tokenizer is on this machine, else in words.

    Raises:
        DataError: the data cannot be used.
        ModelError: the base's tokenizer is damaged.
        Unreachable: the data is on the Hub, and the Hub does not answer.
    """
    found = data.load(recipe)
    folder = bases.at_hand(recipe.base)
    lengths = Tokenizer.load(folder).lengths if folder else None
    return report(found, recipe.max_length, lengths), found.notes
