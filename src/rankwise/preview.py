"""A plan before anything is fetched: what `rankwise plan` shows."""

from __future__ import annotations

from rankwise import bases, data, plan
from rankwise.recipe import Recipe

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
