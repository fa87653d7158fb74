"""Pairs of texts train as transformers + PEFT train on the joined texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import AutoTokenizer

from rankwise.data.pairs import pair_of
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.batch import Ids
from rankwise.recipe import Recipe
from tests import tiny
from tests.parity.peers import CLASSES, Pair, gradients_apart, make_pair, steps_apart, without_dropout

STEPS, BATCH = 20, 8
BASES = {"gpt2": tiny.gpt2, "llama": tiny.llama}
COLUMNS = ("premise", "hypothesis")
each_family = pytest.mark.parametrize("family", BASES)


def pairs_of_texts(number: int) -> list[tuple[str, str]]:
    return list(zip(tiny.texts(number, 5), tiny.texts(number, 6), strict=True))


def ours(base: Path, pairs: Sequence[Sequence[str]]) -> list[Ids]:
    """Token ids as rankwise makes them of pairs."""
    joined = [pair_of(number, pair, COLUMNS) for number, pair in enumerate(pairs, 1)]
    return Tokenizer.load(base)(joined, 64)


def made(family: str, base: Path, texts: int) -> tuple[Pair, list[Ids], NDArray[np.int64]]:
    """A pair of models without dropout, pairs of texts, and labels."""
    targets = np.random.default_rng(3).integers(0, CLASSES, texts)
    return without_dropout(make_pair(family)), ours(base, pairs_of_texts(texts)), targets


@each_family
def test_tokens(family: str, tmp_path: Path) -> None:
    base, pairs = BASES[family](tmp_path / "base"), pairs_of_texts(20)
    theirs = AutoTokenizer.from_pretrained(base)(["\n".join(pair) for pair in pairs])["input_ids"]
    assert [ids.tolist() for ids in ours(base, pairs)] == theirs


@each_family
def test_loss_and_gradients(family: str, tmp_path: Path) -> None:
    found = gradients_apart(*made(family, BASES[family](tmp_path / "base"), 9))
    assert found.losses <= 1e-5
    assert found.tensors <= 1e-5


@each_family
def test_steps(family: str, tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, batch_size=BATCH, learning_rate=2e-3, weight_decay=0.1, base_dropout=False)
    given = made(family, BASES[family](tmp_path / "base"), STEPS * BATCH)
    found = steps_apart(*given, recipe, tmp_path / "steps")
    assert found.losses <= 1e-4
    assert found.tensors <= 1e-4
