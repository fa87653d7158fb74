"""The base model's attention dropout: given the same dropout masks, logits match transformers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from rankwise.nn.classifier import logits
from rankwise.nn.ragged.batch import pack
from rankwise.nn.ragged.masks import StepMasks
from tests.parity.peers import SMALL, make_pair, random_texts

RATE, HEADS = 0.3, {"gpt2": 4, "llama": 6, "qwen2": 6, "gpt_neox": 4, "opt": 4}
LAYER = {
    "gpt2": ("h.{}.attn", {"attn_pdrop": RATE, "resid_pdrop": 0.0, "embd_pdrop": 0.0}),
    "llama": ("layers.{}.self_attn", {"attention_dropout": RATE}),
    "qwen2": ("layers.{}.self_attn", {"attention_dropout": RATE}),
    "gpt_neox": ("layers.{}.attention", {"attention_dropout": RATE}),
    "opt": ("decoder.layers.{}.self_attn", {"attention_dropout": RATE, "dropout": 0.0}),
}
family = pytest.mark.parametrize("name", LAYER)


def whole(masks: StepMasks, module: str, heads: int, length: int, last: bool) -> Tensor:
    """(1, heads, length, length): a text's masks; the last layer only uses the last token's query."""
    (mask,) = masks.attention(module, heads, RATE, last)
    if not last:
        return mask[:, :, :length, :length]
    full = torch.ones(1, heads, length, length, dtype=torch.uint8)
    full[:, :, -1:] = mask[..., :length]
    return full


def dropped(
    masks: Iterator[Tensor], x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Replacement for torch's dropout that applies the next of these masks."""
    return x * next(masks).to(x.dtype) / (1 - p) if training and p else x


@family
def test_the_same_masks_give_the_same_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, rates = LAYER[name]
    pair = make_pair(name, shape=SMALL[name] | rates)
    for length in (1, 7, 13):
        texts = random_texts([length], 500, seed=length)
        packed = pack([texts])
        masks = StepMasks([5], [3], packed)
        (ours,) = logits(pair.backbone, pair.bank, packed, masks)
        depth = pair.backbone.depth
        names = [pattern.format(i) for i in range(depth)]
        drawn = iter([whole(masks, each, HEADS[name], length, each == names[-1]) for each in names])
        with monkeypatch.context() as patched, warnings.catch_warnings():
            patched.setattr(torch.nn.functional, "dropout", partial(dropped, drawn))
            pair.peft.train()
            for module in pair.peft.modules():  # disable LoRA dropout
                if isinstance(module, torch.nn.Dropout) and module.p != RATE:
                    module.p = 0.0
            theirs = pair.peer_logits(texts)
        assert next(drawn, None) is None
        assert (ours - theirs).abs().max() < 1e-4


@family
def test_active_in_training_and_only_there(name: str) -> None:
    pair = make_pair(name, shape=SMALL[name] | LAYER[name][1])
    texts = random_texts([9, 20, 3], 500)
    packed = pack([texts])

    def run(step: int, **options: Any) -> Tensor:
        return logits(pair.backbone, pair.bank, packed, StepMasks([0], [step], packed), **options)[0]

    (plain,) = logits(pair.backbone, pair.bank, packed)
    pair.peft.eval()
    assert (plain - pair.peer_logits(texts)).abs().max() < 1e-4
    assert torch.equal(run(0, base_dropout=False), plain)
    assert torch.equal(run(0), run(0))
    assert not torch.allclose(run(0), plain, atol=1e-3)
    assert not torch.allclose(run(0), run(1), atol=1e-3)
