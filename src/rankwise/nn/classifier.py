"""Backbone, bank and heads together: a packed batch in, each adapter's logits and loss out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.nn.activation import Activation
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import Bank
from rankwise.nn.batch import PackedBatch
from rankwise.nn.dropout import DropoutHook
from rankwise.nn.linear import Linear
from rankwise.nn.masks import Masks
from rankwise.nn.ragged.lora import BankHook


def logits(
    backbone: Backbone, bank: Bank, packed: PackedBatch, masks: Masks | None = None, base_dropout: bool = True
) -> list[Tensor]:
    """Each adapter's logits on its own texts of the packed batch.

    Args:
        backbone: the frozen model.
        bank: the adapters, in the packed batch's order.
        packed batch: their packed texts.
        masks: dropout masks, while training.
        base_dropout: whether the backbone's own dropout is active too, where there are masks.

    Returns:
        For each adapter (texts, classes) float32.
    """
    hook = BankHook(bank, packed, masks, base_dropout)
    return hook.score(pooled(backbone, bank.first_layer, packed, hook))


def pooled(backbone: Backbone, first_layer: int | None, packed: PackedBatch, hook: DropoutHook) -> Tensor:
    """The backbone with its adapters; below the first adapted layer, each distinct batch only once.

    Args:
        backbone: the frozen model.
        first_layer: the first adapted one, None for heads alone.
        packed batch: the packed texts.
        hook: that adds the adapters.

    Returns:
        (texts, d_model) float32: the final hidden state of each text's last token.
    """
    first = backbone.depth if first_layer is None else first_layer
    lower, masks = packed.distinct, hook.base_masks
    with torch.no_grad():  # nothing is trained down there
        below, lower_hook = lower.packed if lower else packed, _FrozenHook(masks and masks.distinct())
        x = backbone.embed(below, lower_hook)
        for i in range(first):
            x = backbone.layer(i, x, below, lower_hook)
        if lower:
            x = x[lower.texts if first == backbone.depth else lower.rows]
    for i in range(first, backbone.depth):
        x = backbone.layer(i, x, packed, hook)
    return backbone.normed(x)


class _FrozenHook(DropoutHook):
    """For layers that nothing is trained in: nobody comes back for a slope, or for an earlier sum."""

    def activated(self, linear: Linear, x: Tensor, activation: Activation, pooled: bool = False) -> Tensor:
        """`activation` of what `linear` gives, without a gradient."""
        return linear.activated(x, activation)

    def add(self, module: str, x: Tensor, branch: Tensor, rate: float, pooled: bool = False) -> Tensor:
        """x + dropout(branch), both (rows, d_model); x itself where nothing is dropped."""
        if self.base_masks is None or not rate:
            return x.add_(branch)
        return super().add(module, x, branch, rate, pooled)


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
