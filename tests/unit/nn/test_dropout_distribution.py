"""In training, GPT-2's logits have the same distribution as with transformers + PEFT in train mode.

The masks differ, but the distribution does not. Every kind of dropout has a different rate here, so
that a misplaced or missing one is detected.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from rankwise.nn.bank import Bank
from rankwise.nn.batch import Ids
from rankwise.nn.classifier import logits
from rankwise.nn.ragged.batch import pack
from rankwise.nn.ragged.masks import StepMasks
from tests.parity.peers import CLASSES, Pair, make_pair, random_texts

COPIES = 3000  # forward passes, as copies of a text in one batch
LORA_DROPOUT = 0.4
SHAPE = {
    "vocab_size": 50,
    "n_positions": 16,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "initializer_range": 0.3,
    "embd_pdrop": 0.2,
    "attn_pdrop": 0.5,
    "resid_pdrop": 0.1,
}


@pytest.fixture(scope="module")
def pair() -> Pair:
    made = make_pair("gpt2", shape=SHAPE)
    for module in made.peft.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = torch.nn.Dropout(LORA_DROPOUT)
    made.peft.train()
    backbone, state = made.backbone, made.bank.state(0)
    # An adapter large enough for its dropout to be visible next to the base model's.
    state = {name: 3 * tensor if name.endswith("lora_B") else tensor for name, tensor in state.items()}
    made.bank = Bank(
        [replace(made.bank.specs[0], dropout=LORA_DROPOUT)], backbone.modules(), backbone.d_model, CLASSES
    )
    made.bank.load(0, state)
    with torch.no_grad():
        for name, parameter in made.peer_parameters().items():
            parameter.copy_(state[name])
    return made


@torch.no_grad()
def draws(pair: Pair, text: Ids, base_dropout: bool = True) -> NDArray[np.float32]:
    """(copies, classes) of our logits."""
    packed = pack([[text] * COPIES])
    (found,) = logits(pair.backbone, pair.bank, packed, StepMasks([1], [0], packed), base_dropout)
    return found.numpy()


@torch.no_grad()
def peer_draws(pair: Pair, text: Ids) -> NDArray[np.float32]:
    torch.manual_seed(0)
    return pair.peer_logits([text] * COPIES).numpy()


@pytest.mark.parametrize("length", [1, 4, 11])
def test_masks_differ_the_distribution_does_not(pair: Pair, length: int) -> None:
    (text,) = random_texts([length], 50, seed=length)
    ours, theirs = draws(pair, text), peer_draws(pair, text)
    errors = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / COPIES)
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 4 * errors).all()
    np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.08)
    for k in range(CLASSES):
        assert ks_2samp(ours[:, k], theirs[:, k]).pvalue > 1e-4


def test_a_missing_dropout_would_show(pair: Pair) -> None:
    """The comparison above detects missing dropout of the base model."""
    (text,) = random_texts([11], 50, seed=11)
    ours, theirs = draws(pair, text, base_dropout=False), peer_draws(pair, text)
    assert min(ks_2samp(ours[:, k], theirs[:, k]).pvalue for k in range(CLASSES)) < 1e-6
