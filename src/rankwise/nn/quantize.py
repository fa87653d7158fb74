"""A backbone's linear layers, converted to int8 with the inputs that they have on calibration texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankwise.nn.backbone import Backbone
from rankwise.nn.batch import Ids
from rankwise.nn.classifier import pooled
from rankwise.nn.dropout import DropoutHook
from rankwise.nn.inference import most_tokens, windows
from rankwise.nn.int8 import Inputs
from rankwise.nn.linear import Linear
from rankwise.nn.ragged.batch import pack

_KEPT = 256
"""Input rows that are kept of a layer, on which its error is measured."""


def quantize(backbone: Backbone, texts: Sequence[Ids]) -> None:
    """Convert the linear layers to int8, for prediction only.

    Args:
        backbone: the frozen model, with the adapter merged into it.
        texts: token ids of the calibration texts, each (length,) int64.
    """
    device = backbone.tokens.device
    hook = _Recorder()
    with torch.inference_mode():
        for members in windows(texts, most_tokens(device)):
            packed = pack([[texts[i] for i in members]], device, shared=True)
            pooled(backbone, 0, packed, hook)
    for linear in backbone.linears():
        linear.quantize(hook.inputs(linear))


class _Recorder(DropoutHook):
    """Records the inputs of every linear layer."""

    def __init__(self) -> None:
        super().__init__(None)
        self._largest: dict[Linear, Tensor] = {}
        self._rows: dict[Linear, list[Tensor]] = {}

    def linear(self, linear: Linear, x: Tensor, pooled: bool = False) -> Tensor:
        """`linear` on x (rows, in)."""
        largest = x.abs().amax(0).float()
        before = self._largest.get(linear, largest)
        self._largest[linear] = torch.maximum(before, largest)
        spread = torch.linspace(0, len(x) - 1, min(len(x), _KEPT)).long()
        self._rows.setdefault(linear, []).append(x[spread])
        return linear.forward(x)

    def inputs(self, linear: Linear) -> Inputs:
        """What was recorded of a layer."""
        rows = torch.cat(self._rows[linear])
        return Inputs(self._largest[linear], rows[:: max(1, len(rows) // _KEPT)])
