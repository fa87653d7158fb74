"""Logits of every adapter of a bank on the same texts, without dropout.

Texts are sorted so that those with a shared prefix are adjacent, and the prefix is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import Bank
from rankwise.nn.batch import Ids
from rankwise.nn.classifier import logits
from rankwise.nn.ragged.batch import lexical_order, pack

BATCH_TOKENS = 4096
"""Tokens per forward pass on a CPU: enough for efficient matrix products, few enough to stay in cache."""

DEVICE_TOKENS = 32_768
"""The same on other devices, where launching a small product takes longer than running it; not tuned."""


def bank_logits(
    backbone: Backbone, bank: Bank, texts: Sequence[Ids], on_texts: Callable[[int], None] = lambda done: None
) -> NDArray[np.float32]:
    """Every adapter's logits on the same texts, without dropout.

    Args:
        backbone: the frozen model.
        bank: the adapters.
        texts: token ids, each (length,) int64.
        on_texts: called after each forward pass with the number of texts in it.

    Returns:
        (adapters, texts, classes) float32, in the order of `texts`.
    """
    out = np.empty((len(bank.specs), len(texts), bank.classes), dtype=np.float32)
    most = most_tokens(bank.flat.device)
    with torch.inference_mode():
        for members in windows(texts, most // len(bank.specs)):
            batches = [[texts[i] for i in members]] * len(bank.specs)
            packed = pack(batches, bank.flat.device, same=[0] * len(batches), shared=True)
            out[:, members] = torch.stack(logits(backbone, bank, packed)).cpu().numpy()
            on_texts(len(members))
    return out


def most_tokens(device: torch.device) -> int:
    """Tokens per forward pass on a device."""
    return BATCH_TOKENS if device.type == "cpu" else DEVICE_TOKENS


def windows(texts: Sequence[Ids], tokens: int) -> Iterator[NDArray[np.int64]]:
    """Indices of texts in lexical order, in windows of at most `tokens` tokens.

    A single longer text forms a window of its own.
    """
    window: list[int] = []
    filled = 0
    for i in lexical_order(texts):
        if window and filled + len(texts[i]) > tokens:
            yield np.array(window)
            window, filled = [], 0
        window.append(i)
        filled += len(texts[i])
    yield np.array(window)
