"""Matrix products in int8, for prediction on CPUs with VNNI.

A weight is rounded to 8 bits with one scale per output. Inputs are rounded to 8 bits in one of two ways::

    one scale        q = round(x / (s c)) + 128          y = q (W s)^T, times c and the scales of the weight
    a scale per row  q = round(x H / c_row) + 128        y = q (W H^-1)^T, times the scales, then times c_row

With one scale, bias and activation are part of the product, as in bfloat16. The factors s of the columns
move the range of large columns into the weight (SmoothQuant, Xiao et al. 2023, arXiv 2211.10438); c covers
the largest input of the calibration texts, and larger ones are clamped.

Inputs whose rows differ too much for one scale, mostly those of the MLP's last layer, get a scale for each
row. H is a Hadamard matrix on blocks of 64 columns, which spreads a single large number over its block
(QuaRot, Ashkboos et al. 2024, arXiv 2404.00456). If a layer has few outputs, this rounding takes longer than
the product saves, so in bfloat16 such a layer stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.nn.activation import CHUNK

_BLOCK = 64
"""Columns that are rotated together. Larger blocks are more exact, and cost more."""
_SMOOTHING = 0.8
"""Share of a column's range that moves into the weight."""
_ONE_SCALE = 0.015
"""Largest relative error of a row, as a root mean square over rows, with which inputs have one scale."""
_WIDE = 1024
"""Least number of outputs with which a scale per row is faster in batches than a product in bfloat16."""
_MIDDLE = torch.tensor(128.5)
"""The zero point, and a half, so that rounding down rounds to the nearest."""
_ROWS = 1024
"""Number of input rows that oneDNN optimizes the layout for; any other number works as well."""
_TINY = 1e-9
"""Smallest range, so that a row of zeros can be divided by it."""


def is_supported() -> bool:
    """Whether this CPU multiplies in int8, and torch has the operators for it.

    Without VNNI, products are slower than in float32, and their sums in 16 bits may overflow.
    """
    vnni = bool(torch.cpu.get_capabilities().get("avx512_vnni"))
    return vnni and hasattr(torch.ops.onednn, "qlinear_pointwise")


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs of a layer on the calibration texts."""

    largest: Tensor  # (in,) float32, the largest absolute value of each column
    rows: Tensor  # (rows, in), some of them


class _Weight(NamedTuple):
    """A weight (out, in) in int8."""

    packed: Tensor  # (in, out) int8, in oneDNN's layout
    scales: Tensor  # (out,) float32
    zeros: Tensor  # (out,) int64, because the operator asks for them

    def times(
        self, q: Tensor, bias: Tensor | None, dtype: torch.dtype, post: str = "none", form: str = ""
    ) -> Tensor:
        """(q - 128) W^T of q (rows, in) uint8 -> (rows, out), plus bias, activated."""
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            q, 1.0, 128, *self, bias, 1.0, 0, dtype, post, [], form
        )
        return y


@dataclass(frozen=True, eq=False)
class OneScale:
    """A linear layer in int8 whose inputs have one scale."""

    weight: _Weight
    bias: Tensor | None  # (out,) float32
    factors: Tensor  # (in,) float32, 1 / (s c)

    def __call__(self, x: Tensor, activation: str = "none", form: str = "") -> Tensor:
        """x (rows, in) -> (rows, out) in x's dtype, with an activation of oneDNN's."""
        return self.weight.times(self.rounded(x), self.bias, x.dtype, activation, form)

    def rounded(self, x: Tensor) -> Tensor:
        """(rows, in) uint8."""
        q = torch.empty(x.shape, dtype=torch.uint8)
        if x.numel() <= CHUNK:  # in a short text, slices take a third of the time
            self._round(x, q)
        else:
            for part in _parts(x):
                self._round(x[part], q[part])
        return q

    def _round(self, x: Tensor, q: Tensor) -> None:
        _write(torch.addcmul(_MIDDLE, x.float(), self.factors).clamp_(0, 255), q)


@dataclass(frozen=True, eq=False)
class RowScales:
    """A linear layer in int8 whose inputs have a scale for each row."""

    weight: _Weight  # rotated
    bias: Tensor | None  # (out,)
    rotation: Tensor  # (block, block), ones and minus ones, in the dtype of inputs

    def __call__(self, x: Tensor) -> Tensor:
        """x (rows, in) -> (rows, out) in x's dtype."""
        q, scales = torch.empty(x.shape, dtype=torch.uint8), x.new_empty(len(x), 1)
        for part in _parts(x):
            rotated = _in_blocks(x[part], self.rotation).float()
            largest = torch.maximum(rotated.amax(1, keepdim=True), rotated.amin(1, keepdim=True).neg_())
            scales[part] = largest.clamp_min_(_TINY)
            _write(torch.addcmul(_MIDDLE, rotated, 127 / largest), q[part])
        y = self.weight.times(q, None, x.dtype)
        return y.mul_(scales) if self.bias is None else torch.addcmul(self.bias, y, scales)


Int8 = OneScale | RowScales


def quantized(weight: Tensor, bias: Tensor | None, inputs: Inputs) -> Int8 | None:
    """A linear layer in int8, with one input scale if that is exact enough on the calibration inputs.

    None if it is not, and the layer is about as fast without.

    Args:
        weight: (out, in).
        bias: (out,), or None.
        inputs: the calibration inputs, in the dtype of later inputs.
    """
    exact = F.linear(inputs.rows.float(), weight.float())
    layer = _with_one_scale(weight, bias, inputs.largest)
    error = layer.weight.times(layer.rounded(inputs.rows), None, torch.float32).sub_(exact)
    # Row by row, because a few large rows would hide the errors of the others.
    relative = error.square().sum(1) / exact.square().sum(1).clamp_min(_TINY)
    if relative.mean() <= _ONE_SCALE**2:
        return layer
    is_slow = weight.dtype == torch.float32 or len(weight) >= _WIDE
    return _with_row_scales(weight, bias) if is_slow else None


def _with_one_scale(weight: Tensor, bias: Tensor | None, largest: Tensor) -> OneScale:
    weight, largest = weight.float(), largest.clamp_min(_TINY)
    smoothing = largest**_SMOOTHING / weight.abs().amax(0).clamp_min(_TINY) ** (1 - _SMOOTHING)
    scale = (largest / smoothing).amax() / 127
    return OneScale(
        _packed(weight * smoothing, scale), None if bias is None else bias.float(), 1 / (smoothing * scale)
    )


def _with_row_scales(weight: Tensor, bias: Tensor | None) -> RowScales:
    ones = _hadamard(math.gcd(weight.shape[1], _BLOCK))
    # H is symmetric, and H H is the block's size times the identity.
    rotated = _in_blocks(weight.float(), ones / len(ones))
    return RowScales(_packed(rotated, 1 / 127), bias, ones.to(weight.dtype))


@torch.no_grad()
def _packed(weight: Tensor, scale: Tensor | float) -> _Weight:
    """A weight (out, in) float32, for inputs with this scale."""
    scales = weight.abs().amax(1).clamp_min(_TINY) / 127
    rounded = (weight / scales[:, None]).round_().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(rounded, [_ROWS, weight.shape[1]])
    return _Weight(packed, scales * scale, torch.zeros(len(scales), dtype=torch.int64))


def _parts(x: Tensor) -> Iterator[slice]:
    """Rows whose intermediate results stay in cache."""
    rows = max(1, CHUNK // x.shape[1])
    yield from (slice(start, start + rows) for start in range(0, len(x), rows))


def _write(rounded: Tensor, q: Tensor) -> None:
    """Round float32 numbers from 0 to 255 down to uint8."""
    q.copy_(rounded.to(torch.int16))  # torch converts float32 to uint8 directly six times slower


def _in_blocks(x: Tensor, matrix: Tensor) -> Tensor:
    """x (rows, in) with each block of columns multiplied by a symmetric matrix."""
    return F.linear(x.reshape(-1, len(matrix)), matrix).view(x.shape)


def _hadamard(size: int) -> Tensor:
    """A Hadamard matrix of ones and minus ones (Sylvester 1867), (size, size); size is a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix
