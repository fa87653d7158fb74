"""Low-rank products on a packed batch, one adapter at a time. The counterpart of `static.lora`.

Each adapter owns a range of rows of x, and the linear layer may fuse several target modules, so an
adapter changes a rectangle of the output for each target module. For a fused query, key and value layer
of Llama and two adapters on query and value::

                     q_proj    k_proj    v_proj        columns of y
    rows of        +---------+---------+---------+
    adapter 0      | A0q B0q |         | A0v B0v |     y = x W^T + bias, and in each
    adapter 1      | A1q B1q |         | A1v B1v |     rectangle  += s (M * x) A^T B^T
                   +---------+---------+---------+

In a rectangle, with M the dropout mask on the adapter's rows and s = scale / (1 - rate)::

    low = (M * x) A^T                  (rows, rank)     saved
    y  += s low B^T                    (rows, out)

and backward, from the rectangle of dy::

    d_low = s dy B                     (rows, rank)
    dA    = d_low^T (M * x)            (rank, in)       M * x is recomputed: it is as large as x
    dB    = s dy^T low                 (out, rank)
    dx   += M * (d_low A)              (rows, in)       added to the frozen layer's dy W

The frozen W needs no gradient, so the forward pass only saves x, the factors in the dtype of the
products, and `low`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankwise.nn.bank import HEAD, Bank
from rankwise.nn.batch import PackedBatch
from rankwise.nn.dropout import DropoutHook
from rankwise.nn.linear import Linear
from rankwise.nn.masks import Masks


class BankHook(DropoutHook):
    """Adds a bank's adapters to a backbone's pass over a packed batch.

    Args:
        bank: the adapters.
        packed: the packed batch, with the adapters in the bank's order.
        masks: dropout masks of this step; None for no dropout.
        base_dropout: whether the masks also apply the base model's own dropout.

    >>> import numpy as np
    >>> from rankwise.nn.bank import AdapterSpec
    >>> from rankwise.nn.ragged.batch import pack
    >>> bank = Bank([AdapterSpec(1, 0.5, 0.5, 7, 0.0, ("h.0.q",))], {"h.0.q": (2, 2)}, d_model=2, classes=2)
    >>> a, b = torch.tensor([[1.0, 1.0]]), torch.tensor([[10.0], [0.0]])
    >>> bank.load(0, {"h.0.q.lora_A": a, "h.0.q.lora_B": b, "score": torch.eye(2)})
    >>> linear = Linear(torch.eye(2), None, {"h.0.q": slice(0, 2)})
    >>> y = BankHook(bank, pack([[np.array([5])]])).linear(linear, torch.tensor([[1.0, 2.0]]))
    >>> y.tolist()  # low = 1 + 2, y = x + 0.5 * 3 * [10, 0]
    [[16.0, 2.0]]
    >>> y.sum().backward()
    >>> bank.tensors[0]["h.0.q.lora_A"].grad.tolist()  # d_low = 0.5 * (10 + 0), dA = 5 * x
    [[5.0, 10.0]]
    >>> bank.tensors[0]["h.0.q.lora_B"].grad.tolist()  # dB = 0.5 * 3
    [[1.5], [1.5]]
    """

    def __init__(
        self, bank: Bank, packed: PackedBatch, masks: Masks | None = None, base_dropout: bool = True
    ) -> None:
        super().__init__(masks if base_dropout else None)
        self.bank, self.masks = bank, masks
        self._rows = {False: packed.token_rows(), True: packed.text_rows()}  # by `pooled`
        self._rates = [spec.dropout for spec in bank.specs]

    def linear(self, linear: Linear, x: Tensor, pooled: bool = False) -> Tensor:
        """The frozen layer plus every adapter's low-rank product on its own rows."""
        uses: list[_Use] = []
        factors: list[Tensor] = []
        for module, columns in linear.modules.items():
            for use, a, b in self._uses(module, columns, x, pooled):
                uses.append(use)
                factors += (a, b)
        if not uses:
            return super().linear(linear, x, pooled)
        out: Tensor = _BankLinear.apply(x, linear, uses, *factors)  # type: ignore[no-untyped-call]
        return out

    def score(self, pooled: Tensor) -> list[Tensor]:
        """Each adapter's logits, (texts, classes) float32, from pooled (texts, d_model) float32."""
        adapters = zip(self._rows[True], self.bank.tensors, strict=True)
        return [pooled[rows] @ tensors[HEAD].T for rows, tensors in adapters]

    def _uses(
        self, module: str, columns: slice, x: Tensor, pooled: bool
    ) -> Iterator[tuple[_Use, Tensor, Tensor]]:
        """For each adapter with this target module: its rectangle, and its A and B."""
        a, b = f"{module}.lora_A", f"{module}.lora_B"
        adapters = [k for k, tensors in enumerate(self.bank.tensors) if a in tensors]
        mask = self._mask(module, x, pooled) if adapters else None
        for k in adapters:
            spec, rows, tensors = self.bank.specs[k], self._rows[pooled][k], self.bank.tensors[k]
            if mask is None or not spec.dropout:
                use = _Use(rows, columns, spec.scale, None)
            else:
                use = _Use(rows, columns, spec.scale / (1 - spec.dropout), mask[rows])
            yield use, tensors[a], tensors[b]

    def _mask(self, module: str, x: Tensor, pooled: bool) -> Tensor | None:
        if self.masks is None or not any(self._rates):
            return None
        return self.masks.rows(f"{module}.lora", x.shape[1], self._rates, pooled)


class _Use(NamedTuple):
    """One adapter at one target module."""

    rows: slice
    columns: slice
    scale: float  # including 1 / (1 - rate)
    mask: Tensor | None  # (rows, in) uint8 dropout mask


class _BankLinear(torch.autograd.Function):
    """A frozen linear layer plus low-rank terms on rectangles of its output; formulas above.

    Every adapter only touches its own rows, so a NaN in one cannot reach another.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Linear, uses: Sequence[_Use], *factors: Tensor) -> Tensor:
        y = linear.forward(x)  # (rows of all adapters, out of all target modules)
        cast = [factor.to(x.dtype) for factor in factors]  # A, B of the first use, A, B of the next, ...
        lows = []
        for use, a, b in zip(uses, cast[0::2], cast[1::2], strict=True):
            low = _dropped(x, use) @ a.T  # (rows, rank)
            y[use.rows, use.columns].addmm_(low, b.T, alpha=use.scale)  # (rows, out)
            lows.append(low)
        ctx.save_for_backward(x, *cast, *lows)
        ctx.linear, ctx.uses = linear, uses
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy, uses = grads[0], ctx.uses
        x, *saved = ctx.saved_tensors
        cast, lows = saved[: 2 * len(uses)], saved[2 * len(uses) :]
        dx = ctx.linear.backward(dy) if ctx.needs_input_grad[0] else None
        d_factors: list[Tensor] = []
        for use, a, b, low in zip(uses, cast[0::2], cast[1::2], lows, strict=True):
            d_use = dy[use.rows, use.columns]  # (rows, out)
            d_low = (d_use @ b).mul_(use.scale)  # (rows, rank)
            d_a = (d_low.T @ _dropped(x, use)).float()  # (rank, in)
            d_b = (d_use.T @ low).float().mul_(use.scale)  # (out, rank)
            d_factors += (d_a, d_b)
            if dx is not None and use.mask is None:
                dx[use.rows].addmm_(d_low, a)
            elif dx is not None:
                dx[use.rows].addcmul_(d_low @ a, use.mask.to(dx.dtype))
        return dx, None, None, *d_factors


def _dropped(x: Tensor, use: _Use) -> Tensor:
    """M * x on the adapter's rows, (rows, in)."""
    return x[use.rows] if use.mask is None else use.mask.to(x.dtype).mul_(x[use.rows])
