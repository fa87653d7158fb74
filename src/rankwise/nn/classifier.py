"""Backbone, bank and heads combined: from a packed batch to each adapter's logits.

Below the first layer with an adapter, the activations of adapters with the same batch are identical. The
backbone therefore runs these layers on the distinct batches only, without gradients::

    embed, layer 0 .. first - 1      packed.distinct.packed     each distinct batch once
    x[distinct.rows]                 copied to every adapter
    layer first .. depth - 1         packed                     all adapters, with gradients
"""

from __future__ import annotations

import torch
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
        bank: the adapters, in the order of the packed batch.
        packed: the packed batch.
        masks: dropout masks; None for no dropout.
        base_dropout: whether the masks also apply the backbone's own dropout.

    Returns:
        For each adapter (texts, classes) float32.
    """
    hook = BankHook(bank, packed, masks, base_dropout)
    return hook.score(pooled(backbone, bank.first_layer, packed, hook))


def pooled(backbone: Backbone, first_layer: int | None, packed: PackedBatch, hook: DropoutHook) -> Tensor:
    """The final hidden state of each text's last token.

    Args:
        backbone: the frozen model.
        first_layer: the first layer with an adapter; None for linear probes alone.
        packed: the packed batch.
        hook: adds the adapters.

    Returns:
        (texts, d_model) float32.
    """
    first = backbone.depth if first_layer is None else first_layer
    lower, masks = packed.distinct, hook.base_masks
    with torch.no_grad():  # nothing is trained below `first`
        below, lower_hook = lower.packed if lower else packed, _FrozenHook(masks and masks.distinct())
        x = backbone.embed(below, lower_hook)
        for i in range(first):
            x = backbone.layer(i, x, below, lower_hook)
        if lower:  # the last layer returns a row for each text
            x = x[lower.texts if first == backbone.depth else lower.rows]
    for i in range(first, backbone.depth):
        x = backbone.layer(i, x, packed, hook)
    return backbone.normed(x)


class _FrozenHook(DropoutHook):
    """For layers below the first adapter: without a backward pass, nothing has to be saved."""

    def activated(self, linear: Linear, x: Tensor, activation: Activation, pooled: bool = False) -> Tensor:
        """`activation(linear(x))`, without a gradient."""
        return linear.activated(x, activation)

    def add(self, name: str, x: Tensor, branch: Tensor, rate: float, pooled: bool = False) -> Tensor:
        """x + dropout(branch), both (rows, d_model); in place if there is no dropout."""
        if self.base_masks is None or not rate:
            return x.add_(branch)
        return super().add(name, x, branch, rate, pooled)
