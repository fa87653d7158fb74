"""Logits and gradients match transformers + PEFT in float32."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rankwise.nn.bank import match_modules
from rankwise.nn.classifier import logits
from rankwise.nn.inference import bank_logits
from rankwise.nn.loss import CrossEntropy
from rankwise.nn.ragged.batch import pack
from tests.parity.peers import CLASSES, Pair, make_pair, random_texts

LENGTHS = [1, 5, 9, 64, 17, 3, 8, 2, 33]
CASES = [
    ("gpt2", None),
    ("gpt2", ["attn.c_proj"]),
    ("gpt2", "all-linear"),
    ("llama", None),
    ("llama", ["q_proj", "k_proj", "v_proj", "o_proj"]),
    ("llama", ["gate_proj", "down_proj"]),
    ("llama", "all-linear"),
    ("llama3", None),
    ("qwen2", None),
    ("qwen2", "all-linear"),
    ("gpt_neox", None),
    ("gpt_neox", ["dense", "dense_h_to_4h"]),
    ("gpt_neox", "all-linear"),
    ("gpt_neox-serial", "all-linear"),
    ("opt", None),
    ("opt", ["k_proj", "out_proj", "fc2"]),
    ("opt", "all-linear"),
    ("opt-unbiased", "all-linear"),
]


@pytest.mark.parametrize(("family", "targets"), CASES)
def test_logits_and_gradients(family: str, targets: list[str] | str | None) -> None:
    pair = make_pair(family, targets)
    _compare_gradients(pair, LENGTHS, 500)


@pytest.mark.parametrize(("family", "targets"), CASES)
def test_the_same_parameters_are_trained(family: str, targets: list[str] | str | None) -> None:
    pair = make_pair(family, targets)
    theirs = {name: tuple(p.shape) for name, p in pair.peer_parameters().items()}
    ours = {name: tuple(p.shape) for name, p in pair.bank.tensors[0].items()}
    assert ours == theirs


def _compare_gradients(pair: Pair, lengths: list[int], vocabulary: int) -> None:
    texts = random_texts(lengths, vocabulary)
    targets = torch.arange(len(texts)) % CLASSES
    theirs = pair.peer_logits(texts)
    (ours,) = logits(pair.backbone, pair.bank, pack([texts]))
    assert (ours - theirs).abs().max() < 1e-4
    # The tolerance is far below the magnitude of the logits, so that a wrong model cannot pass.
    assert theirs.abs().max() > 1e-2
    torch.autograd.backward(F.cross_entropy(theirs, targets) + CrossEntropy()([ours], [targets]).sum())
    for name, parameter in pair.peer_parameters().items():
        mine, other = pair.bank.tensors[0][name].grad, parameter.grad
        assert mine is not None and other is not None
        assert torch.linalg.vector_norm(mine - other) <= 1e-5 * torch.linalg.vector_norm(other), name


@pytest.mark.timeout(900)  # minutes, with 200 texts beside other tests
def test_gpt2_at_its_true_shape() -> None:
    """124M parameters: logits of 12 texts (`make faults`: 200) of 1 to 1,024 tokens, gradients of a batch."""
    pair = make_pair("gpt2", shape={})
    _compare_gradients(pair, [1, 2, 7, 12, 19, 24, 31, 48], 50257)
    number = 200 if os.environ.get("RANKWISE_FAULTS") == "full" else 12
    lengths = np.geomspace(1, 1024, number).round().astype(int)
    texts = random_texts(lengths.tolist(), 50257, seed=1)
    assert len(texts) == number and max(map(len, texts)) == 1024 and min(map(len, texts)) == 1
    ours = bank_logits(pair.backbone, pair.bank, texts)[0]
    with torch.inference_mode():
        theirs = torch.cat([pair.peer_logits([text]) for text in texts]).numpy()
    assert np.abs(ours - theirs).max() < 1e-4
    assert np.abs(theirs).max() > 1e-2


def test_fine_targets_are_told_apart() -> None:
    """`c_proj` matches two target modules per GPT-2 layer, `attn.c_proj` one."""
    modules = list(make_pair("gpt2").backbone.modules())
    assert len(match_modules(modules, ["c_proj"])) == 2 * len(match_modules(modules, ["attn.c_proj"]))
