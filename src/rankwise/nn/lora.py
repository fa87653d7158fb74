"""The bank: low-rank adapters of any rank, and a score head each, on one frozen trunk.

On the tokens of adapter k, at each of its sites (Hu et al. 2021, arXiv 2106.09685)::

    y += scale_k * (dropout(x) A_k^T) B_k^T      A_k: (rank, in)   B_k: (out, rank)

All masters of the bank lie in one flat float32 tensor, an adapter's next to each other, so that
norms, clipping and the optimiser are a few operations on slices of it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rankwise.errors import UsageError
from rankwise.nn.dropout import Masks
from rankwise.nn.linear import Linear
from rankwise.nn.packing import Stream
from rankwise.nn.trunk import Hook

HEAD = "score"


@dataclass(frozen=True)
class AdapterSpec:
    """What one adapter of a bank is."""

    rank: int  # 0: the score head alone
    alpha: float  # as PEFT's lora_alpha; `scale` is what counts
    scale: float  # factor on the low-rank product
    seed: int
    dropout: float  # on the adapter's input
    sites: tuple[str, ...]  # full site names

    @property
    def name(self) -> str:
        """Folder name of the adapter in a run."""
        return f"r{self.rank}-s{self.seed}"


def match_sites(sites: Sequence[str], targets: Sequence[str]) -> tuple[str, ...]:
    """The sites that `targets` name: by full name, by last part as PEFT does, or `all-linear`.

    Raises:
        UsageError: a target names no site.

    >>> match_sites(["h.0.attn.c_attn", "h.0.mlp.c_fc"], ["c_attn"])
    ('h.0.attn.c_attn',)
    """
    if "all-linear" in targets:
        return tuple(sites)
    for target in targets:
        if not any(_names(target, site) for site in sites):
            known = sorted({site.rsplit(".", 1)[-1] for site in sites})
            raise UsageError(
                f"targets: {target!r} names no linear site of this model", hint=f"it has {', '.join(known)}"
            )
    return tuple(site for site in sites if any(_names(target, site) for target in targets))


def layer_of(site: str) -> int:
    """The layer of a site, from 0.

    >>> layer_of("layers.29.self_attn.q_proj")
    29
    """
    return int(site.split(".")[1])


def _names(target: str, site: str) -> bool:
    return site == target or site.endswith(f".{target}")


def tensor_shapes(
    spec: AdapterSpec, sites: Mapping[str, tuple[int, int]], d_model: int, classes: int
) -> dict[str, tuple[int, int]]:
    """Name -> shape of every tensor that an adapter trains.

    Args:
        spec: the adapter.
        sites: site name -> (in, out) of the trunk.
        d_model: width of the head's input.
        classes: number of labels.
    """
    shapes: dict[str, tuple[int, int]] = {}
    if spec.rank:
        for site in spec.sites:
            n_in, n_out = sites[site]
            shapes[f"{site}.lora_A"] = (spec.rank, n_in)
            shapes[f"{site}.lora_B"] = (n_out, spec.rank)
    return shapes | {HEAD: (classes, d_model)}


class Bank:
    """The trained tensors of several adapters.

    Args:
        specs: the adapters.
        sites: site name -> (in, out) of the trunk.
        d_model: width of the heads' input.
        classes: number of labels.
        head_std: standard deviation of a fresh head; B starts at 0, A as PEFT has it.
        device: where the bank shall live.

    Attributes:
        first_layer: the lowest layer that any adapter is on; None for heads alone.
        flat: (parameters,) float32, every master.
        grad: (parameters,) float32, every gradient.
        segments: each adapter's part of both.
        tensors: for each adapter, name -> leaf tensor that is a view of `flat`, its `.grad` a view of `grad`.
    """

    def __init__(
        self,
        specs: Sequence[AdapterSpec],
        sites: Mapping[str, tuple[int, int]],
        d_model: int,
        classes: int,
        head_std: float = 0.02,
        device: torch.device | str = "cpu",
    ) -> None:
        self.specs, self.classes = tuple(specs), classes
        self.first_layer = min((layer_of(site) for spec in specs for site in spec.sites), default=None)
        shapes = [tensor_shapes(spec, sites, d_model, classes) for spec in specs]
        sizes = [sum(math.prod(shape) for shape in each.values()) for each in shapes]
        ends = np.cumsum([0, *sizes]).tolist()
        self.segments = [slice(a, b) for a, b in pairwise(ends)]
        self.flat = torch.zeros(ends[-1], device=device)
        self.grad = torch.zeros_like(self.flat)
        self.tensors: list[dict[str, Tensor]] = []
        for spec, segment, each in zip(specs, self.segments, shapes, strict=True):
            self.tensors.append(_views(self.flat[segment], self.grad[segment], each))
            _draw(self.tensors[-1], spec.seed, head_std)

    def state(self, adapter: int) -> dict[str, Tensor]:
        """Copies of one adapter's tensors on the CPU, float32."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.tensors[adapter].items()}

    def load(self, adapter: int, state: Mapping[str, Tensor]) -> None:
        """Put saved tensors in an adapter's place. Names and shapes must be its own."""
        with torch.no_grad():
            for name, tensor in self.tensors[adapter].items():
                tensor.copy_(state[name])


def _views(flat: Tensor, grad: Tensor, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    tensors, start = {}, 0
    for name, shape in shapes.items():
        part = slice(start, start + math.prod(shape))
        leaf = flat[part].view(shape).requires_grad_()
        leaf.grad = grad[part].view(shape)
        tensors[name], start = leaf, part.stop
    return tensors


@torch.no_grad()
def _draw(tensors: Mapping[str, Tensor], seed: int, head_std: float) -> None:
    """Fresh values, each tensor's from (seed, its name): no other tensor or adapter matters."""
    for name, tensor in tensors.items():
        random = np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
        if name.endswith("lora_A"):  # PEFT's kaiming_uniform with a = sqrt(5)
            bound = 1 / math.sqrt(tensor.shape[1])
            tensor.copy_(torch.from_numpy(random.uniform(-bound, bound, tensor.shape)).float())
        elif name == HEAD:
            tensor.copy_(torch.from_numpy(random.normal(0, head_std, tensor.shape)).float())


class DropoutHook(Hook):
    """The base model's own dropout, each adapter with its own masks; none without masks."""

    def __init__(self, masks: Masks | None) -> None:
        self.base_masks = masks

    def drop(self, site: str, x: Tensor, rate: float, pooled: bool = False) -> Tensor:
        """Dropout on x (rows, d_model)."""
        if self.base_masks is None or not rate:
            return x
        return x * self._rows_kept(self.base_masks, site, x, rate, pooled).to(x.dtype) * (1 / (1 - rate))

    def add(self, site: str, x: Tensor, branch: Tensor, rate: float, pooled: bool = False) -> Tensor:
        """x + dropout(branch), both (rows, d_model)."""
        if self.base_masks is None or not rate:
            return x + branch
        keep = self._rows_kept(self.base_masks, site, branch, rate, pooled)
        out: Tensor = _AddDropped.apply(x, branch, keep, 1 / (1 - rate))  # type: ignore[no-untyped-call]
        return out

    def keep(self, site: str, heads: int, rate: float, pooled: bool = False) -> list[Tensor] | None:
        """Masks for the attention weights of each block."""
        if self.base_masks is None or not rate:
            return None
        return self.base_masks.attention(site, heads, rate, pooled)

    @staticmethod
    def _rows_kept(masks: Masks, site: str, x: Tensor, rate: float, pooled: bool) -> Tensor:
        return masks.rows(site, x.shape[1], [rate] * masks.stream.adapters, pooled)


class _AddDropped(torch.autograd.Function):
    """x + scale * keep * branch, in one pass; keeps the mask's bytes alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale, ctx.dtype = scale, branch.dtype
        return torch.addcmul(x, branch, keep.to(branch.dtype), value=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        d_branch = keep.to(grads[0].dtype).mul_(grads[0]).mul_(ctx.scale)
        return grads[0], d_branch.to(ctx.dtype), None, None


class BankHook(DropoutHook):
    """Adds a bank's adapters to a trunk that runs over `stream`.

    Args:
        bank: the adapters.
        stream: the packed texts, the bank's adapters in order.
        masks: dropout masks of this step; None leaves out all dropout.
        base_dropout: whether the base model's own dropout is active too.
    """

    def __init__(
        self, bank: Bank, stream: Stream, masks: Masks | None = None, base_dropout: bool = True
    ) -> None:
        super().__init__(masks if base_dropout else None)
        self.bank, self.masks = bank, masks
        self._rows = {False: stream.token_rows(), True: stream.text_rows()}
        self._rates = [spec.dropout for spec in bank.specs]

    def linear(self, linear: Linear, x: Tensor, pooled: bool = False) -> Tensor:
        """The frozen layer plus every adapter's own low-rank product on its rows."""
        uses: list[_Use] = []
        factors: list[Tensor] = []
        for site, columns in linear.sites.items():
            a, b = f"{site}.lora_A", f"{site}.lora_B"
            adapters = [k for k, tensors in enumerate(self.bank.tensors) if a in tensors]
            keep = self._keep(site, x, pooled) if adapters else None
            for k in adapters:
                spec, rows, tensors = self.bank.specs[k], self._rows[pooled][k], self.bank.tensors[k]
                dropping = keep is not None and spec.dropout > 0
                scale = spec.scale / (1 - spec.dropout) if dropping else spec.scale
                uses.append(_Use(rows, columns, scale, keep[rows] if keep is not None and dropping else None))
                factors += (tensors[a], tensors[b])
        if not uses:
            return super().linear(linear, x, pooled)
        out: Tensor = _BankLinear.apply(x, linear, uses, *factors)  # type: ignore[no-untyped-call]
        return out

    def score(self, pooled: Tensor) -> list[Tensor]:
        """Each adapter's logits, (texts, classes) float32, from pooled (texts, d_model) float32."""
        both = zip(self._rows[True], self.bank.tensors, strict=True)
        return [pooled[rows] @ tensors[HEAD].T for rows, tensors in both]

    def _keep(self, site: str, x: Tensor, pooled: bool) -> Tensor | None:
        if self.masks is None or not any(self._rates):
            return None
        return self.masks.rows(f"{site}.lora", x.shape[1], self._rates, pooled)


class _Use(NamedTuple):
    """One adapter at one site."""

    rows: slice
    columns: slice
    scale: float
    keep: Tensor | None  # (rows, in) uint8 dropout mask


class _BankLinear(torch.autograd.Function):
    """A frozen linear layer with low-rank terms on blocks of its output.

    The frozen weight needs no gradient, so the backward pass keeps the input and the small
    `x A^T` only. Every adapter is computed on its own rows: a neighbour's NaN cannot reach it.
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
            if dx is not None and use.keep is None:
                dx[use.rows].addmm_(d_low, a)
            elif dx is not None:
                dx[use.rows].addcmul_(d_low @ a, use.keep.to(dx.dtype))
        return dx, None, None, *factors


def _dropped(x: Tensor, use: _Use) -> Tensor:
    return x[use.rows] if use.keep is None else use.keep.to(x.dtype).mul_(x[use.rows])
