"""The bank: low-rank adapters of any rank on one frozen backbone, each with a score head.

On the tokens of adapter k, at each of its target modules (Hu et al. 2021, arXiv 2106.09685)::

    y += scale_k * (dropout(x) A_k^T) B_k^T      A_k: (rank, in)   B_k: (out, rank)

All parameters are stored in one flat float32 tensor; those of an adapter are contiguous. Norms, clipping,
the optimizer and checkpoints work on slices of it. For rank 0 (a linear probe), rank 1 and rank 2 on one
target module of 3 inputs and 4 outputs, with a head of 2 classes on 3 features::

    flat     0        6        9        13       19       25       33       39
             | score  | lora_A | lora_B | score  | lora_A | lora_B | score  |
    shape    | (2, 3) | (1, 3) | (4, 1) | (2, 3) | (2, 3) | (4, 2) | (2, 3) |
    segment  | rank 0 | rank 1                   | rank 2                   |

`grad` has the same layout. The tensors in `tensors` are views of `flat`, and their gradients are views of
`grad`, so autograd accumulates directly into `grad`.
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
"""Name of an adapter's classification head, (classes, d_model), as in transformers' classifiers."""


@dataclass(frozen=True)
class AdapterSpec:
    """The configuration of one adapter of a bank."""

    rank: int  # 0: a linear probe, the score head alone
    alpha: float  # PEFT's lora_alpha, as saved; the computation uses `scale`
    scale: float  # factor on the low-rank product
    seed: int
    dropout: float  # on the adapter's input
    modules: tuple[str, ...]  # full names of its target modules
    name: str = ""  # unique within the run; default `rRANK-sSEED`
    learning_rate: float = 1e-3  # peak learning rate; this and the following only matter in training
    weight_decay: float = 0.01
    lora_plus_ratio: float = 1.0  # learning rate of B over that of A (Hayou et al. 2024, arXiv 2402.12354)
    epochs: float = 1.0  # length of the schedule, in passes over the training texts
    share: float = 1.0  # of the recipe's schedule; the warmup is as long in proportion

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", f"r{self.rank}-s{self.seed}")


def match_modules(modules: Sequence[str], targets: Sequence[str]) -> tuple[str, ...]:
    """Resolve `targets` to modules: by full name, by suffix as in PEFT, or `all-linear`.

    Args:
        modules: names of the linear layers of a model.
        targets: as in the recipe.

    Returns:
        The target modules, in the order of `modules`.

    Raises:
        UsageError: a target matches no linear layer.

    >>> match_modules(["h.0.attn.c_attn", "h.0.mlp.c_fc"], ["c_attn"])
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
    """The layer index of a target module, from 0.

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
        modules: target module name -> (in, out), of the backbone.
        d_model: width of the head's input.
        classes: number of labels.

    >>> tensor_shapes(AdapterSpec(1, 1.0, 1.0, 7, 0.0, ("h.0.q",)), {"h.0.q": (3, 4)}, 3, 2)
    {'h.0.q.lora_A': (1, 3), 'h.0.q.lora_B': (4, 1), 'score': (2, 3)}
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
        modules: target module name -> (in, out), of the backbone.
        d_model: width of the heads' input.
        classes: number of labels.
        head_std: standard deviation of a new head. A is initialized as in PEFT, and B to 0.
        device: device of the bank.

    Attributes:
        first_layer: the lowest layer with an adapter; None for linear probes alone.
        flat: (parameters,) float32, all parameters.
        grad: (parameters,) float32, their gradients.
        segments: each adapter's slice of both.
        tensors: for each adapter, name -> leaf tensor, a view of `flat` whose `.grad` is a view of `grad`.

    >>> linear_probe, rank_1, rank_2 = (
    ...     AdapterSpec(rank, 1.0, 1.0, 7, 0.0, ("h.0.q",) if rank else ()) for rank in (0, 1, 2)
    ... )
    >>> bank = Bank([linear_probe, rank_1, rank_2], {"h.0.q": (3, 4)}, d_model=3, classes=2)
    >>> bank.segments
    [slice(0, 6, None), slice(6, 19, None), slice(19, 39, None)]
    >>> bank.tensors[1]["h.0.q.lora_B"].storage_offset()
    9
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
        self.specs, self.modules, self.d_model, self.classes = tuple(specs), modules, d_model, classes
        self.first_layer = min((layer_of(module) for spec in specs for module in spec.modules), default=None)
        shapes = [tensor_shapes(spec, modules, d_model, classes) for spec in specs]
        sizes = [sum(math.prod(shape) for shape in of_adapter.values()) for of_adapter in shapes]
        ends = np.cumsum([0, *sizes]).tolist()
        self.segments = [slice(a, b) for a, b in pairwise(ends)]
        self.flat = torch.zeros(ends[-1], dtype=torch.float32, device=device)
        self.grad = torch.zeros_like(self.flat)
        self.tensors: list[dict[str, Tensor]] = []
        for spec, segment, of_adapter in zip(specs, self.segments, shapes, strict=True):
            self.tensors.append(_views(self.flat[segment], self.grad[segment], of_adapter))
            _initialize(self.tensors[-1], spec.seed, head_std)

    def state(self, adapter: int) -> dict[str, Tensor]:
        """Copies of one adapter's tensors on the CPU, float32."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.tensors[adapter].items()}

    def subset(self, adapters: Sequence[int]) -> Bank:
        """A bank of copies of some of the adapters."""
        made = Bank(
            [self.specs[k] for k in adapters],
            self.modules,
            self.d_model,
            self.classes,
            device=self.flat.device,
        )
        with torch.no_grad():
            for segment, k in zip(made.segments, adapters, strict=True):
                made.flat[segment] = self.flat[self.segments[k]]
        return made

    def load(self, adapter: int, state: Mapping[str, Tensor]) -> None:
        """Overwrite one adapter's tensors with saved ones of the same names and shapes."""
        with torch.no_grad():
            for name, tensor in self.tensors[adapter].items():
                tensor.copy_(state[name])


def _views(flat: Tensor, grad: Tensor, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Named leaf tensors of one adapter, as views of its segments of `flat` and `grad`."""
    tensors, start = {}, 0
    for name, shape in shapes.items():
        place = slice(start, start + math.prod(shape))
        leaf = flat[place].view(shape).requires_grad_()
        leaf.grad = grad[place].view(shape)
        tensors[name], start = leaf, place.stop
    return tensors


@torch.no_grad()
def _initialize(tensors: Mapping[str, Tensor], seed: int, head_std: float) -> None:
    """Initialize one adapter; B stays 0.

    Each tensor has its own generator, keyed by the seed and the tensor's name. The values therefore do not
    depend on the other tensors, on the other adapters, or on the order of initialization.
    """
    for name, tensor in tensors.items():
        random = np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
        if name.endswith("lora_A"):  # PEFT's kaiming_uniform with a = sqrt(5)
            bound = 1 / math.sqrt(tensor.shape[1])
            tensor.copy_(torch.from_numpy(random.uniform(-bound, bound, tensor.shape)).float())
        elif name == HEAD:
            tensor.copy_(torch.from_numpy(random.normal(0, head_std, tensor.shape)).float())
