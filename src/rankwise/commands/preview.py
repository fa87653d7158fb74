"""What can be said before a base is fetched: what `rankwise plan` and `rankwise data` show."""

from __future__ import annotations

from rankwise import hardware, plan
from rankwise.data import load as data
from rankwise.data.audit import report
from rankwise.models import base as bases
from rankwise.models.tokenizer import Tokenizer
from rankwise.recipe import Recipe
from rankwise.schema import DataReport

CHARACTERS_PER_TOKEN = 4.4
"""English text in GPT-2's tokens, about; used only where no tokenizer has been fetched yet."""
DEFAULT_CLASSES = 2


KNOWN_DATA = {"dair-ai/emotion": (16_000, 6, 20.2)}
"""Hub id -> training texts, classes, mean tokens in a text (of GPT-2's and of SmolLM2's tokenizer)."""


def preview(
    recipe: Recipe, *, train_texts: int | None = None, tokens_per_text: float | None = None
) -> plan.Plan:
    """The plan of a recipe, from local files where there are any.

    Args:
        recipe: what to train.
        train_texts: number of training texts, where the data cannot be read yet.
        tokens_per_text: mean tokens in a text, where the data cannot be read yet.

    Raises:
        UsageError: the recipe does not fit the model.
        DataError: local data cannot be used.
        ModelError: the base model is not supported.
        Unreachable: the base is unknown and its config must come from the Hub, which does not answer.
    """
    texts, classes, tokens = _facts(recipe)
    return plan.make(
        recipe,
        bases.config(recipe.base),
        has_pad_token=bases.has_pad_token(recipe.base),
        classes=classes,
        texts=train_texts or texts,
        tokens_per_text=tokens_per_text or tokens,
        number_bytes=hardware.number_bytes(recipe.machine.precision, recipe.machine.device),
    )


def _facts(recipe: Recipe) -> tuple[int | None, int, float | None]:
    """Training texts, classes and mean tokens of a recipe's data, as far as they can be known here."""
    if data.is_hub_id(recipe.data.source):
        texts, classes, tokens = KNOWN_DATA.get(recipe.data.source, (None, DEFAULT_CLASSES, None))
        return texts, len(recipe.data.labels or ()) or classes, tokens
    found = data.load(recipe)
    characters = sum(map(len, found.train.texts)) / len(found.train)
    return len(found.train), len(found.labels), characters / CHARACTERS_PER_TOKEN


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
    return report(found, recipe.train.max_length, lengths), found.notes
