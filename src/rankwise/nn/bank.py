"""The bank: low-rank adapters of any rank, and a score head each, on one frozen backbone.

On the tokens of adapter k, at each of its target modules (Hu et al. 2021, arXiv 2106.09685)::

    y += scale_k * (dropout(x) A_k^T) B_k^T      A_k: (rank, in)   B_k: (out, rank)

All parameters of the bank lie in one flat float32 tensor, an adapter's next to each other, so that
norms, clipping and the optimizer are a few operations on slices of it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from rankwise.errors import UsageError

HEAD = "score"


@dataclass(frozen=True)
class AdapterSpec:
    """What one adapter of a bank is."""

    rank: int  # 0: the score head alone
    alpha: float  # as PEFT's lora_alpha; `scale` is what counts
    scale: float  # factor on the low-rank product
    seed: int
    dropout: float  # on the adapter's input
    modules: tuple[str, ...]  # full target module names

    @property
    def name(self) -> str:
        """Folder name of the adapter in a run."""
        return f"r{self.rank}-s{self.seed}"


def match_modules(modules: Sequence[str], targets: Sequence[str]) -> tuple[str, ...]:
    """The target modules that `targets` name: by full name, by last part as PEFT does, or `all-linear`.

    Raises:
        UsageError: a target names no target module.

    >>> match_sites(["h.0.attn.c_attn", "h.0.mlp.c_fc"], ["c_attn"])
    ('h.0.attn.c_attn',)
    """
    if "all-linear" in targets:
        return tuple(modules)
    for target in targets:
        if not any(_names(target, module) for module in modules):
            known = sorted({module.rsplit(".", 1)[-1] for module in modules})
            raise UsageError(
                f"targets: {target!r} names no linear layer of this model", hint=f"it has {', '.join(known)}"
            )
    return tuple(module for module in modules if any(_names(target, module) for target in targets))


def layer_of(module: str) -> int:
    """The layer of a target module, from 0.

    >>> layer_of("layers.29.self_attn.q_proj")
    29
    """
    return next(int(part) for part in module.split(".") if part.isdecimal())


def _names(target: str, module: str) -> bool:
    return module == target or module.endswith(f".{target}")


def tensor_shapes(
    spec: AdapterSpec, modules: Mapping[str, tuple[int, int]], d_model: int, classes: int
) -> dict[str, tuple[int, int]]:
    """Name -> shape of every tensor that an adapter trains.

    Args:
        spec: the adapter.
        target modules: target module name -> (in, out) of the backbone.
        d_model: width of the head's input.
        classes: number of labels.
    """
    shapes: dict[str, tuple[int, int]] = {}
    if spec.rank:
        for module in spec.modules:
            n_in, n_out = modules[module]
            shapes[f"{module}.lora_A"] = (spec.rank, n_in)
            shapes[f"{module}.lora_B"] = (n_out, spec.rank)
    return shapes | {HEAD: (classes, d_model)}


class Bank:
    """The trained tensors of several adapters.

    Args:
        specs: the adapters.
        target modules: target module name -> (in, out) of the backbone.
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
        modules: Mapping[str, tuple[int, int]],
        d_model: int,
        classes: int,
        head_std: float = 0.02,
        device: torch.device | str = "cpu",
    ) -> None:
        self.specs, self.classes = tuple(specs), classes
        self.first_layer = min((layer_of(module) for spec in specs for module in spec.modules), default=None)
        shapes = [tensor_shapes(spec, modules, d_model, classes) for spec in specs]
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
