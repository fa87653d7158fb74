"""A bank's tensors side by side, so that one product does the work of every adapter.

On a GPU the low-rank products of many adapters are too small to fill it, and to start them one by
one takes longer than to run them. Where the adapters have equally many rows, as in an static-shape batch, all
of a target module are one batched product, the factors padded with zeros to the largest rank.
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


class Stack:
    """The padded copies of a bank's parameters, and the way back for their gradients.

    Args:
        bank: the adapters.

    Attributes:
        scales: target module -> (adapters, 1, 1) float32 factor on the low-rank product, 0 for adapters that are
            not on the target module.
        dropping: the same with dropout, where what is kept counts 1 / (1 - rate) times.
    """

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        names = dict.fromkeys(name for tensors in bank.tensors for name in tensors)
        self.shapes = {name: _padded(bank, name) for name in names}
        gather = np.concatenate([_places(bank, name, shape).ravel() for name, shape in self.shapes.items()])
        real = gather < len(bank.flat)
        scatter = np.empty(len(bank.flat), dtype=np.int64)
        scatter[gather[real]] = np.flatnonzero(real)
        device = bank.flat.device
        self._gather, self._scatter = (torch.from_numpy(each).to(device) for each in (gather, scatter))
        self.scales = {
            name.removesuffix(_A): torch.tensor(_scales(bank, name)).view(-1, 1, 1).to(device)
            for name in names
            if name.endswith(_A)
        }
        kept = torch.tensor([1 - spec.dropout for spec in bank.specs]).view(-1, 1, 1).to(device)
        self.dropping = {module: scale / kept for module, scale in self.scales.items()}

    @torch.no_grad()
    def leaves(self) -> dict[str, Tensor]:
        """Name -> (adapters, rows, columns) float32, to be differentiated by."""
        flat = torch.cat([self.bank.flat, self.bank.flat.new_zeros(1)]).index_select(0, self._gather)
        parts = torch.split(flat, [prod(shape) for shape in self.shapes.values()])
        return {
            name: part.view(shape).requires_grad_()
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    @torch.no_grad()
    def take(self, gradients: Sequence[Tensor]) -> None:
        """Write the gradients of the leaves, in their order, to the bank's."""
        every = torch.cat([gradient.flatten() for gradient in gradients])
        torch.index_select(every, 0, self._scatter, out=self.bank.grad)


def _padded(bank: Bank, name: str) -> tuple[int, int, int]:
    """Shape of a tensor's stack: (adapters, most rows, most columns)."""
    shapes = [tensors[name].shape for tensors in bank.tensors if name in tensors]
    return len(bank.specs), max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)


def _places(bank: Bank, name: str, shape: tuple[int, int, int]) -> NDArray[np.int64]:
    """Where each number of a stack is among the parameters; their number for what fills it up."""
    places = np.full(shape, len(bank.flat), dtype=np.int64)
    for place, tensors in zip(places, bank.tensors, strict=True):
        if name in tensors:
            rows, columns = tensors[name].shape
            own = np.arange(rows * columns).reshape(rows, columns)
            place[:rows, :columns] = tensors[name].storage_offset() + own
    return places


def _scales(bank: Bank, name: str) -> list[float]:
    both = zip(bank.specs, bank.tensors, strict=True)
    return [spec.scale if name in tensors else 0.0 for spec, tensors in both]


class StackHook(DropoutHook):
    """Adds a bank's adapters, stacked, to a backbone that runs over an static-shape batch.

    Args:
        stack: of the bank.
        leaves: the stack's.
        masks: dropout masks of this step; None leaves out all dropout.
        base_dropout: whether the base model's own dropout is active too.
    """

    def __init__(
        self, stack: Stack, leaves: Mapping[str, Tensor], masks: Masks | None, base_dropout: bool
    ) -> None:
        super().__init__(masks if base_dropout else None)
        self.stack, self.leaves, self.masks = stack, leaves, masks
        self._rates = [spec.dropout for spec in stack.bank.specs]

    def linear(self, linear: Linear, x: Tensor, pooled: bool = False) -> Tensor:
        """The frozen layer plus every adapter's low-rank product on its rows."""
        uses, factors = [], []
        for module, columns in linear.modules.items():
            if module in self.stack.scales:
                uses.append(self._use(module, columns, x.shape[1], pooled))
                factors += [self.leaves[f"{module}.lora_A"], self.leaves[f"{module}.lora_B"]]
        if not uses:
            return super().linear(linear, x, pooled)
        out: Tensor = _StackLinear.apply(x, linear, uses, *factors)  # type: ignore[no-untyped-call]
        return out

    def score(self, pooled: Tensor) -> list[Tensor]:
        """Each adapter's logits, (texts, classes) float32, from pooled (texts, d_model) float32."""
        head = self.leaves[HEAD]  # (adapters, classes, d_model)
        return list((pooled.view(len(head), -1, pooled.shape[1]) @ head.mT).unbind())

    def _use(self, module: str, columns: slice, width: int, pooled: bool) -> _Use:
        if self.masks is None or not any(self._rates):
            return _Use(columns, self.stack.scales[module], None)
        mask = self.masks.rows(f"{module}.lora", width, self._rates, pooled)
        return _Use(columns, self.stack.dropping[module], mask)


class _Use(NamedTuple):
    """The adapters of one target module."""

    columns: slice
    scale: Tensor  # (adapters, 1, 1) float32
    mask: Tensor | None  # (rows, in) uint8 dropout mask


class _StackLinear(torch.autograd.Function):
    """A frozen linear layer with every adapter's low-rank term on length buckets of its output.

    A batched product keeps the adapters apart: one's NaN cannot reach another.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Linear, uses: Sequence[_Use], *factors: Tensor) -> Tensor:
        y = linear.forward(x)
        saved = [x]
        for use, a, b in zip(uses, factors[0::2], factors[1::2], strict=True):
            a, b = a.to(x.dtype), (b * use.scale).to(x.dtype)  # (adapters, rank, in), (adapters, out, rank)
            low = _seen(x, use) @ a.mT  # (adapters, rows, rank)
            _each(y, use)[..., use.columns].baddbmm_(low, b.mT)
            saved += [a, b, low]
        ctx.save_for_backward(*saved)
        ctx.linear, ctx.uses = linear, uses
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0].contiguous()
        x, *saved = ctx.saved_tensors
        dx = ctx.linear.backward(dy) if ctx.needs_input_grad[0] else None
        factors: list[Tensor] = []
        for use, a, b, low in zip(ctx.uses, saved[0::3], saved[1::3], saved[2::3], strict=True):
            part = _each(dy, use)[..., use.columns]  # (adapters, rows, out)
            d_low = part @ b  # (adapters, rows, rank)
            factors += [(d_low.mT @ _seen(x, use)).float(), (part.mT @ low).float() * use.scale]
            if dx is not None and use.mask is None:
                _each(dx, use).baddbmm_(d_low, a)
            elif dx is not None:
                _each(dx, use).addcmul_(d_low @ a, _each(use.mask, use).to(dx.dtype))
        return dx, None, None, *factors


def _each(x: Tensor, use: _Use) -> Tensor:
    """x (rows, width) as (adapters, rows of each, width)."""
    return x.view(len(use.scale), -1, x.shape[1])


def _seen(x: Tensor, use: _Use) -> Tensor:
    """(adapters, rows of each, in): what the adapters see of x."""
    return _each(x if use.mask is None else use.mask.to(x.dtype).mul_(x), use)
