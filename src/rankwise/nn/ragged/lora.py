"""Low-rank products on a packed batch: each adapter on its own rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankwise.nn.bank import HEAD, Bank
from rankwise.nn.batch import PackedBatch
from rankwise.nn.dropout import DropoutHook
from rankwise.nn.linear import Linear
from rankwise.nn.masks import Masks


class BankHook(DropoutHook):
    """Adds a bank's adapters to a backbone that runs over a packed batch.

    Args:
        bank: the adapters.
        packed batch: the packed texts, the bank's adapters in order.
        masks: dropout masks of this step; None leaves out all dropout.
        base_dropout: whether the base model's own dropout is active too.
    """

    def __init__(
        self, bank: Bank, packed: PackedBatch, masks: Masks | None = None, base_dropout: bool = True
    ) -> None:
        super().__init__(masks if base_dropout else None)
        self.bank, self.masks = bank, masks
        self._rows = {False: packed.token_rows(), True: packed.text_rows()}
        self._rates = [spec.dropout for spec in bank.specs]

    def linear(self, linear: Linear, x: Tensor, pooled: bool = False) -> Tensor:
        """The frozen layer plus every adapter's own low-rank product on its rows."""
        uses: list[_Use] = []
        factors: list[Tensor] = []
        for module, columns in linear.modules.items():
            a, b = f"{module}.lora_A", f"{module}.lora_B"
            adapters = [k for k, tensors in enumerate(self.bank.tensors) if a in tensors]
            mask = self._mask(module, x, pooled) if adapters else None
            for k in adapters:
                spec, rows, tensors = self.bank.specs[k], self._rows[pooled][k], self.bank.tensors[k]
                dropping = mask is not None and spec.dropout > 0
                scale = spec.scale / (1 - spec.dropout) if dropping else spec.scale
                uses.append(_Use(rows, columns, scale, mask[rows] if mask is not None and dropping else None))
                factors += (tensors[a], tensors[b])
        if not uses:
            return super().linear(linear, x, pooled)
        out: Tensor = _BankLinear.apply(x, linear, uses, *factors)  # type: ignore[no-untyped-call]
        return out

    def score(self, pooled: Tensor) -> list[Tensor]:
        """Each adapter's logits, (texts, classes) float32, from pooled (texts, d_model) float32."""
        both = zip(self._rows[True], self.bank.tensors, strict=True)
        return [pooled[rows] @ tensors[HEAD].T for rows, tensors in both]

    def _mask(self, module: str, x: Tensor, pooled: bool) -> Tensor | None:
        if self.masks is None or not any(self._rates):
            return None
        return self.masks.rows(f"{module}.lora", x.shape[1], self._rates, pooled)


class _Use(NamedTuple):
    """One adapter at one target module."""

    rows: slice
    columns: slice
    scale: float
    mask: Tensor | None  # (rows, in) uint8 dropout mask


class _BankLinear(torch.autograd.Function):
    """A frozen linear layer with low-rank terms on length buckets of its output.

    The frozen weight needs no gradient, so the backward pass keeps the input and the small
    `x A^T` only. Every adapter is computed on its own rows: a neighbor's NaN cannot reach it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Linear, uses: Sequence[_Use], *factors: Tensor) -> Tensor:
        y = linear.forward(x)
        halves = [factor.to(x.dtype) for factor in factors]
        lows = []
        for use, a, b in zip(uses, halves[0::2], halves[1::2], strict=True):
            low = _dropped(x, use) @ a.T  # (rows, rank)
            y[use.rows, use.columns].addmm_(low, b.T, alpha=use.scale)
            lows.append(low)
        ctx.save_for_backward(x, *halves, *lows)
        ctx.linear, ctx.uses = linear, uses
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy, uses = grads[0], ctx.uses
        x, *saved = ctx.saved_tensors
        halves, lows = saved[: 2 * len(uses)], saved[2 * len(uses) :]
        dx = ctx.linear.backward(dy) if ctx.needs_input_grad[0] else None
        factors: list[Tensor] = []
        for use, a, b, low in zip(uses, halves[0::2], halves[1::2], lows, strict=True):
            part = dy[use.rows, use.columns]
            d_low = (part @ b).mul_(use.scale)  # (rows, rank)
            factors += ((d_low.T @ _dropped(x, use)).float(), (part.T @ low).float().mul_(use.scale))
            if dx is not None and use.mask is None:
                dx[use.rows].addmm_(d_low, a)
            elif dx is not None:
                dx[use.rows].addcmul_(d_low @ a, use.mask.to(dx.dtype))
        return dx, None, None, *factors


def _dropped(x: Tensor, use: _Use) -> Tensor:
    return x[use.rows] if use.mask is None else use.mask.to(x.dtype).mul_(x[use.rows])
