"""Trunk, bank and heads together: a packed stream in, each adapter's logits and loss out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.nn.dropout import Masks
from rankwise.nn.lora import HEAD, Bank, BankHook
from rankwise.nn.packing import Stream
from rankwise.nn.trunk import Trunk


def logits(
    trunk: Trunk, bank: Bank, stream: Stream, masks: Masks | None = None, base_dropout: bool = True
) -> list[Tensor]:
    """Each adapter's logits on its own texts of the stream.

    Args:
        trunk: the frozen model.
        bank: the adapters, in the stream's order.
        stream: their packed texts.
        masks: dropout masks, while training.
        base_dropout: whether the trunk's own dropout is active too, where there are masks.

    Returns:
        For each adapter (texts, classes) float32.
    """
    pooled = trunk(stream, BankHook(bank, stream, masks, base_dropout))  # (texts, d_model) float32
    rows = stream.text_rows()
    return [pooled[rows[k]] @ tensors[HEAD].T for k, tensors in enumerate(bank.tensors)]


def losses(
    logits: Sequence[Tensor], targets: Sequence[Tensor], class_weights: Tensor | None = None
) -> Tensor:
    """Each adapter's mean cross-entropy over its own texts.

    Args:
        logits: for each adapter (texts, classes) float32.
        targets: for each adapter (texts,) int64.
        class_weights: (classes,) float32; the mean is then weighted by them.

    Returns:
        (adapters,) float32. The adapters share no trained tensor, so the gradient of the sum is
        each one's own gradient.
    """
    each = [F.cross_entropy(z, t, weight=class_weights) for z, t in zip(logits, targets, strict=True)]
    return torch.stack(each)
