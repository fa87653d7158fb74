"""The `plan` and `data` commands, which work without downloading the base."""

from __future__ import annotations

from rankwise import hardware, plan
from rankwise.data import load as data
from rankwise.data.audit import report
from rankwise.models import base as bases
from rankwise.models import windows
from rankwise.models.tokenizer import Tokenizer
from rankwise.recipe import Recipe
from rankwise.schema import DataReport

CHARACTERS_PER_TOKEN = 4.4
"""Approximate value for English text and GPT-2's tokenizer; used if no tokenizer is available locally."""
DEFAULT_CLASSES = 2


KNOWN_DATA = {"dair-ai/emotion": (16_000, 6, 20.2)}
"""Hub id -> training texts, classes, mean tokens per text (with GPT-2's and SmolLM2's tokenizers)."""


def preview(
    recipe: Recipe, *, train_texts: int | None = None, tokens_per_text: float | None = None
) -> plan.Plan:
    """The plan of a recipe, from local files if available.

    Args:
        recipe: what to train.
        train_texts: number of training texts, if the data cannot be read yet.
        tokens_per_text: mean tokens per text, if the data cannot be read yet.

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
    """Training texts, classes and mean tokens per text of a recipe's data, as far as they are known."""
    if not recipe.data.in_memory and data.is_hub_id(recipe.data.name):
        texts, classes, tokens = KNOWN_DATA.get(recipe.data.name, (None, DEFAULT_CLASSES, None))
        return texts, len(recipe.data.labels or ()) or classes, tokens
    dataset, train = data.load(recipe), recipe.train
    lengths = [len(text) / CHARACTERS_PER_TOKEN for text in dataset.train.texts]
    if train.windows:
        stride = windows.stride_of(train.window_stride, train.max_length)
        lengths = [windows.tokens_read(each, train.max_length, stride) for each in lengths]
    else:
        lengths = [min(each, train.max_length) for each in lengths]
    return len(dataset.train), len(dataset.labels), sum(lengths) / len(lengths)


def data_report(recipe: Recipe) -> tuple[DataReport, tuple[str, ...]]:
    """A report on a recipe's data, and notes on how it was read.

    Lengths are in tokens if the base's tokenizer is available locally, else in words.

    Raises:
        DataError: the data cannot be used.
        ModelError: the base's tokenizer is damaged.
        Unreachable: the data is on the Hub, and the Hub does not answer.
    """
    dataset, train = data.load(recipe), recipe.train
    folder = bases.at_hand(recipe.base)
    if not folder:
        return report(dataset, train.max_length), dataset.notes
    tokenizer = Tokenizer.load(folder)
    longest = None
    if train.windows:
        stride = windows.stride_of(train.window_stride, tokenizer.room(train.max_length))
        longest = tokenizer.longest(train.max_length, stride)
    return report(dataset, train.max_length, tokenizer.lengths, longest), dataset.notes
