"""Logits of texts, each by its own adapter, in one packed batch: adapters of any rank and any labels.

A bank trains adapters that share their labels. Here, adapters of one frozen backbone may differ in
everything, and each has its own texts. The packed batch has a segment for each adapter. The frozen product
runs once over all rows, and each adapter only changes its own (Chen et al. 2023, arXiv 2310.18547)::

                                     columns of its target modules
    adapter 0 (3 labels)   a b c | d e   +  s0 (x A0^T) B0^T
    adapter 1 (7 labels)   a b c         +  s1 (x A1^T) B1^T
    y = x W^T              all rows

Below the first layer with an adapter, the hidden states of a text do not depend on the adapter. They are
computed once for each distinct text, whichever adapters read it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.activation import Activation
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import HEAD, AdapterSpec, layer_of
from rankwise.nn.batch import Distinct, Ids, PackedBatch
from rankwise.nn.classifier import pooled
from rankwise.nn.dropout import DropoutHook
from rankwise.nn.linear import Linear
from rankwise.nn.ragged.batch import pack


@dataclass(frozen=True, eq=False)
class Adapter:
    """The tensors of one adapter, for forward passes only.

    A frozen layer fuses the target modules that have the same input, and so do an adapter's factors. For an
    adapter of rank r on query and value, x A^T is one product, and zeros keep the modules apart::

        A  q: r rows    B         q: r columns   v: r columns
           v: r rows       q rows      Bq             0
                           k rows      0              0
                           v rows      0              Bv
    """

    factors: Mapping[Linear, tuple[Tensor, Tensor]]  # A^T (in, ranks), scaled B^T (ranks, out)
    first_layer: int | None  # with factors; None for a linear probe
    head: Tensor  # (classes, d_model) float32

    @classmethod
    def of(cls, spec: AdapterSpec, state: Mapping[str, Tensor], backbone: Backbone) -> Self:
        """An adapter with its factors on the backbone's device.

        They are float32 on CPUs, where a bfloat16 product of a few rows takes several times as long, and
        elsewhere in the dtype of the backbone's products.

        Args:
            spec: the adapter.
            state: its tensors, named as in `Bank.tensors`.
            backbone: the frozen model that it is for.
        """
        device = backbone.tokens.device
        dtype = torch.float32 if device.type == "cpu" else backbone.dtype
        modules = frozenset(spec.modules if spec.rank else ())
        factors = {
            linear: (a_t.to(device, dtype), b_t.to(device, dtype))
            for linear in backbone.linears()
            if not modules.isdisjoint(linear.modules)
            for a_t, b_t in [_fused(linear, modules, spec.scale, state)]
        }
        first = min(map(layer_of, modules), default=None)
        return cls(factors, first, state[HEAD].to(device, torch.float32))

    @classmethod
    def merged(cls, head: Tensor) -> Self:
        """An adapter whose products are part of the backbone's weights, with its head (classes, d_model)."""
        return cls({}, None, head)


def mixed_logits(
    backbone: Backbone, adapters: Sequence[Adapter], batches: Sequence[Sequence[Ids]]
) -> list[NDArray[np.float32]]:
    """Each adapter's logits on its own texts, in one forward pass without dropout.

    Args:
        backbone: the frozen model.
        adapters: the adapters, whose labels and target modules may differ.
        batches: for each adapter its texts, each (length,) int64 ids, not empty.

    Returns:
        For each adapter (texts, classes) float32, in the order of its texts.

    Raises:
        ValueError: there are no texts, or a text has no tokens.
    """
    packed = pack(batches, backbone.tokens.device, shared=True)
    first = min((each.first_layer for each in adapters if each.first_layer is not None), default=None)
    if first != 0 and len(adapters) > 1:
        packed = replace(packed, distinct=_distinct_texts(batches, packed))
    with torch.inference_mode():
        hidden = pooled(backbone, first, packed, _AdaptersHook(adapters, packed))  # (texts, d_model)
        segments = zip(packed.text_rows(), adapters, strict=True)
        return [(hidden[rows] @ adapter.head.T).cpu().numpy() for rows, adapter in segments]


class _AdaptersHook(DropoutHook):
    """Adds each adapter's low-rank product to its own rows. Nothing is saved for a backward pass."""

    def __init__(self, adapters: Sequence[Adapter], packed: PackedBatch) -> None:
        super().__init__(None)
        self._adapters = adapters
        starts = {False: packed.token_starts, True: packed.adapter_starts}  # by `pooled`
        self._sizes = {pooled: np.diff(each).tolist() for pooled, each in starts.items()}

    def linear(self, linear: Linear, x: Tensor, pooled: bool = False) -> Tensor:
        """The frozen layer plus every adapter's low-rank product."""
        y = linear.forward(x)
        factors = [adapter.factors.get(linear) for adapter in self._adapters]
        dtype = next((each[0].dtype for each in factors if each), None)
        if dtype is None:
            return y
        sizes = self._sizes[pooled]
        change = torch.empty_like(y, dtype=dtype)
        parts = x.to(dtype).split_with_sizes(sizes), change.split_with_sizes(sizes)
        for each, of_x, of_change in zip(factors, *parts, strict=True):
            if each:
                torch.mm(of_x @ each[0], each[1], out=of_change)
            else:
                of_change.zero_()
        return y.add_(change.to(y.dtype))

    def activated(self, linear: Linear, x: Tensor, activation: Activation, pooled: bool = False) -> Tensor:
        """`activation(linear(x))`; fused where no adapter targets the layer."""
        if any(linear in adapter.factors for adapter in self._adapters):
            return activation(self.linear(linear, x, pooled))
        return linear.activated(x, activation)

    def add(self, name: str, x: Tensor, branch: Tensor, rate: float, pooled: bool = False) -> Tensor:
        """x + branch, in place."""
        return x.add_(branch)


def _fused(
    linear: Linear, modules: Collection[str], scale: float, state: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """A^T (in, ranks) and scale B^T (ranks, out) of an adapter's modules in a frozen layer, float32."""
    used = [module for module in linear.modules if module in modules]
    a = torch.cat([state[f"{module}.lora_A"].float() for module in used])
    b = torch.zeros(len(a), linear.n_out, device=a.device)
    for module, rows in zip(used, b.chunk(len(used)), strict=True):
        rows[:, linear.modules[module]] = scale * state[f"{module}.lora_B"].float().T
    return a.T.contiguous(), b


def _distinct_texts(batches: Sequence[Sequence[Ids]], packed: PackedBatch) -> Distinct:
    """Each distinct text once, and where each row of `packed` finds its token there."""
    texts = [text for batch in batches for text in batch]
    once = {text.tobytes(): text for text in texts}
    numbers = {key: number for number, key in enumerate(once)}
    which = [numbers[text.tobytes()] for text in texts]
    lower = pack([list(once.values())], packed.ids.device, shared=True)
    here, there = _rows_of_texts(packed), _rows_of_texts(lower)
    rows = torch.empty_like(packed.ids)
    for text, number in enumerate(which):
        rows[here[text]] = there[number]
    return Distinct(lower, (0,), rows, torch.tensor(which, device=rows.device))


def _rows_of_texts(packed: PackedBatch) -> list[Tensor]:
    """For each text (length,) int64, the rows of its tokens."""
    found: dict[int, Tensor] = {}
    for bucket in packed.buckets:
        for text, length, rows in zip(
            bucket.texts.tolist(), bucket.lengths.tolist(), bucket.rows, strict=True
        ):
            found[text] = rows[:length]
    return [found[text] for text in range(len(found))]
