"""Low-rank products on a static-shape batch, batched over all adapters. The counterpart of `ragged.lora`.

The low-rank products of a single adapter are too small for a GPU: launching them one by one takes longer
than running them. In a static-shape batch all adapters have the same number of rows, so each target
module needs one batched product, with the factors zero-padded to the largest rank. A of one target module
with 3 inputs, for adapters of rank 0, 1 and 2, is stacked to (adapters, 2, in)::

    adapter 0    0 0 0    adapter 1    a a a    adapter 2    a a a
                 0 0 0                 0 0 0                 a a a

One `index_select` gathers all stacks from `bank.flat` (padding points to an appended zero), and another
returns the gradients. The stacks of A come first and are rounded to the backbone's dtype together; B is
rounded after it is scaled, one target module at a time. The padding is exact: a row of zeros in A makes a
column of zeros in `low`, and the gradient of padding is discarded. An adapter that does not target a module
has scale 0 there.

With X and Y viewed as (adapters, rows per adapter, ...), M the dropout mask, and s (adapters, 1, 1) the
scales, including 1 / (1 - rate)::

    low  = (M * X) A^T                 (adapters, rows, rank)    saved
    Y   += low (s B)^T                 (adapters, rows, out)     the scale is folded into B

and backward::

    d_low = dY (s B)                   (adapters, rows, rank)
    dA    = d_low^T (M * X)            (adapters, rank, in)
    dB    = s dY^T low                 (adapters, out, rank)
    dX   += M * (d_low A)              (adapters, rows, in)      added to the frozen layer's dY W
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.bank import HEAD, Bank
from rankwise.nn.dropout import DropoutHook
from rankwise.nn.linear import Linear
from rankwise.nn.masks import Masks

_A = ".lora_A"


class StackedBank:
    """A bank's tensors, stacked by name and padded; scatters their gradients back into the bank.

    Args:
        bank: the adapters.

    Attributes:
        shapes: name -> (adapters, max rows, max columns).
        scales: target module -> (adapters, 1, 1) float32 factor on the low-rank product, 0 for adapters
            that do not target the module.
        dropout_scales: the same with dropout, multiplied by 1 / (1 - rate).

    >>> from rankwise.nn.bank import AdapterSpec
    >>> specs = [AdapterSpec(rank, 1.0, 1.0, 7, 0.0, ("h.0.q",)) for rank in (1, 2)]
    >>> bank = Bank(specs, {"h.0.q": (2, 3)}, d_model=1, classes=1)
    >>> _ = bank.flat.detach().copy_(torch.arange(1.0, 18.0))
    >>> StackedBank(bank).leaves()["h.0.q.lora_A"].tolist()
    [[[1.0, 2.0], [0.0, 0.0]], [[7.0, 8.0], [9.0, 10.0]]]
    """

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        found = dict.fromkeys(name for tensors in bank.tensors for name in tensors)
        names = sorted(found, key=lambda name: not name.endswith(_A))  # those of A first
        self.shapes = {name: _stacked_shape(bank, name) for name in names}
        self._of_a = sum(name.endswith(_A) for name in names)
        gather = np.concatenate([_places(bank, name, shape).ravel() for name, shape in self.shapes.items()])
        real = gather < len(bank.flat)
        scatter = np.empty(len(bank.flat), dtype=np.int64)
        scatter[gather[real]] = np.flatnonzero(real)
        device = bank.flat.device
        self._gather, self._scatter = (torch.from_numpy(index).to(device) for index in (gather, scatter))
        self.scales = {
            name.removesuffix(_A): torch.tensor(_scales(bank, name), dtype=torch.float32)
            .view(-1, 1, 1)
            .to(device)
            for name in names
            if name.endswith(_A)
        }
        kept = (
            torch.tensor([1 - spec.dropout for spec in bank.specs], dtype=torch.float32)
            .view(-1, 1, 1)
            .to(device)
        )
        self.dropout_scales = {module: scale / kept for module, scale in self.scales.items()}

    @torch.no_grad()
    def leaves(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Copies of the tensors that are leaves of the autograd graph.

        Args:
            dtype: the dtype of matrix products.

        Returns:
            Name -> (adapters, rows, columns), those of A in `dtype`, the others float32.
        """
        flat = torch.cat([self.bank.flat, self.bank.flat.new_zeros(1)]).index_select(0, self._gather)
        sizes = [prod(shape) for shape in self.shapes.values()]
        end = sum(sizes[: self._of_a])
        of_a = torch.split(flat[:end].to(dtype), sizes[: self._of_a])
        stacks = [*of_a, *torch.split(flat[end:], sizes[self._of_a :])]
        return {
            name: stack.view(shape).requires_grad_()
            for (name, shape), stack in zip(self.shapes.items(), stacks, strict=True)
        }

    @torch.no_grad()
    def add_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Add the gradients of the leaves, in the same order, to those of the bank."""
        flat = [gradient.flatten() for gradient in gradients]
        of_a = [torch.cat(flat[: self._of_a]).float()] if self._of_a else []
        self.bank.grad.add_(torch.cat([*of_a, *flat[self._of_a :]]).index_select(0, self._scatter))


def _stacked_shape(bank: Bank, name: str) -> tuple[int, int, int]:
    """(adapters, max rows, max columns) of the adapters' tensors of this name."""
    shapes = [tensors[name].shape for tensors in bank.tensors if name in tensors]
    return len(bank.specs), max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)


def _places(bank: Bank, name: str, shape: tuple[int, int, int]) -> NDArray[np.int64]:
    """The index in `bank.flat` of each element of a stack; one past the end for padding.

    Args:
        bank: the adapters.
        name: name of the tensors.
        shape: shape of the stack.

    Returns:
        (adapters, rows, columns) int64.
    """
    places = np.full(shape, len(bank.flat), dtype=np.int64)
    for of_adapter, tensors in zip(places, bank.tensors, strict=True):
        if name in tensors:
            rows, columns = tensors[name].shape
            numbers = np.arange(rows * columns).reshape(rows, columns)
            of_adapter[:rows, :columns] = tensors[name].storage_offset() + numbers
    return places


def _scales(bank: Bank, name: str) -> list[float]:
    adapters = zip(bank.specs, bank.tensors, strict=True)
    return [spec.scale if name in tensors else 0.0 for spec, tensors in adapters]


class BankHook(DropoutHook):
    """Adds the adapters of a stacked bank to a backbone's pass over a static-shape batch.

    Args:
        stacked: the bank.
        leaves: from `stacked.leaves()`.
        masks: dropout masks of this step; None for no dropout.
        base_dropout: whether the masks also apply the base model's own dropout.
    """

    def __init__(
        self,
        stacked: StackedBank,
        leaves: Mapping[str, Tensor],
        masks: Masks | None = None,
        base_dropout: bool = True,
    ) -> None:
        super().__init__(masks if base_dropout else None)
        self.stacked, self.leaves, self.masks = stacked, leaves, masks
        self._rates = [spec.dropout for spec in stacked.bank.specs]

    def linear(self, linear: Linear, x: Tensor, pooled: bool = False) -> Tensor:
        """The frozen layer plus every adapter's low-rank product on its own rows."""
        uses, factors = [], []
        for module, columns in linear.modules.items():
            if module in self.stacked.scales:
                uses.append(self._use(module, columns, x, pooled))
                factors += [self.leaves[f"{module}.lora_A"], self.leaves[f"{module}.lora_B"]]
        if not uses:
            return super().linear(linear, x, pooled)
        out: Tensor = _BankLinear.apply(x, linear, uses, *factors)  # type: ignore[no-untyped-call]
        return out

    def score(self, pooled: Tensor) -> list[Tensor]:
        """Each adapter's logits, (texts, classes) float32, from pooled (texts, d_model) float32."""
        head = self.leaves[HEAD]  # (adapters, classes, d_model)
        return list((pooled.view(len(head), -1, pooled.shape[1]) @ head.mT).unbind())

    def _use(self, module: str, columns: slice, x: Tensor, pooled: bool) -> _Use:
        mask = self._mask(module, x, pooled)
        scales = self.stacked.scales if mask is None else self.stacked.dropout_scales
        return _Use(columns, scales[module], mask)

    def _mask(self, module: str, x: Tensor, pooled: bool) -> Tensor | None:
        if self.masks is None or not any(self._rates):
            return None
        return self.masks.rows(f"{module}.lora", x.shape[1], self._rates, pooled)


class _Use(NamedTuple):
    """All adapters at one target module."""

    columns: slice
    scale: Tensor  # (adapters, 1, 1) float32, including 1 / (1 - rate)
    mask: Tensor | None  # (rows, in) uint8 dropout mask


class _BankLinear(torch.autograd.Function):
    """A frozen linear layer plus all adapters' low-rank terms on column ranges of its output; formulas above.

    Adapters are separate matrices of a batched product, so a NaN in one cannot reach another.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Linear, uses: Sequence[_Use], *factors: Tensor) -> Tensor:
        y = linear.forward(x)  # (rows of all adapters, out of all target modules)
        saved = [x]
        for use, a, b in zip(uses, factors[0::2], factors[1::2], strict=True):
            b = torch.mul(b, use.scale, out=b.new_empty(b.shape, dtype=x.dtype))  # (adapters, out, rank)
            low = _dropped(x, use) @ a.mT  # (adapters, rows, rank)
            _by_adapter(y, use)[..., use.columns].baddbmm_(low, b.mT)  # (adapters, rows, out)
            saved += [a, b, low]
        ctx.save_for_backward(*saved)
        ctx.linear, ctx.uses = linear, uses
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0].contiguous()
        x, *saved = ctx.saved_tensors
        dx = ctx.linear.backward(dy) if ctx.needs_input_grad[0] else None
        d_factors: list[Tensor] = []
        for use, a, b, low in zip(ctx.uses, saved[0::3], saved[1::3], saved[2::3], strict=True):
            d_use = _by_adapter(dy, use)[..., use.columns]  # (adapters, rows, out)
            d_low = d_use @ b  # (adapters, rows, rank); b includes the scale
            d_a = d_low.mT @ _dropped(x, use)  # (adapters, rank, in)
            d_b = (d_use.mT @ low) * use.scale  # (adapters, out, rank) float32
            d_factors += [d_a, d_b]
            if dx is not None and use.mask is None:
                _by_adapter(dx, use).baddbmm_(d_low, a)
            elif dx is not None:
                _by_adapter(dx, use).addcmul_(d_low @ a, _by_adapter(use.mask, use).to(dx.dtype))
        return dx, None, None, *d_factors


def _by_adapter(x: Tensor, use: _Use) -> Tensor:
    """x (rows of all adapters, width) as (adapters, rows per adapter, width)."""
    return x.view(len(use.scale), -1, x.shape[1])


def _dropped(x: Tensor, use: _Use) -> Tensor:
    """M * x, (adapters, rows per adapter, in)."""
    return _by_adapter(x if use.mask is None else x * use.mask, use)
