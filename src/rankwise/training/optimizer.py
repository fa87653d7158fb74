"""AdamW for a bank (Loshchilov and Hutter 2019, arXiv 1711.05101), with per-adapter gradient clipping.

Every adapter has its own learning rate, weight decay, number of steps and, with LoRA+, learning rate of B.
A *part* consists of adjacent parameters of an adapter with the same LoRA+ ratio. On a CUDA device with
Triton, one kernel updates all parts. Elsewhere, parts with the same learning rate and weight decay are
updated in one call. For three adapters, the last with a LoRA+ ratio of 16::

    flat             | adapter 0      | adapter 1      | adapter 2                                |
                     |                |                | lora_A | lora_B | lora_A | lora_B | score |
    learning rate    | 1e-3           | 1e-3           | 1e-3   | 16e-3  | 1e-3   | 16e-3  | 1e-3  |
    call             | first          | first          | first  | second | first  | second | first |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from rankwise.nn import fused
from rankwise.nn.bank import Bank

BETA_1, BETA_2, EPS = 0.9, 0.999, 1e-8


class AdamW:
    """The optimizer of a bank. Its state is flat, like the bank's parameters.

    It calls torch's functional AdamW, because constructing a `torch.optim` optimizer imports torch's
    compiler (0.8 s, 75 MB). All trained tensors are matrices, so weight decay applies to all of them, as
    in transformers' Trainer.

    With a LoRA+ ratio r, the learning rate of B is r times that of A and of the score head (Hayou et al.
    2024, arXiv 2402.12354).

    Args:
        bank: the bank to train; the adapters' specs give weight decay and LoRA+ ratio.
        max_grad_norm: maximum norm of an adapter's gradient; 0 for no clipping.

    Attributes:
        exp_avg: (parameters,) float32, the moving average of the gradient.
        exp_avg_sq: (parameters,) float32, the moving average of its square.
        steps: each adapter's updates so far.
    """

    def __init__(self, bank: Bank, max_grad_norm: float) -> None:
        self.bank, self.max_grad_norm = bank, max_grad_norm
        self.exp_avg = torch.zeros_like(bank.flat)
        self.exp_avg_sq = torch.zeros_like(bank.flat)
        self.steps = [0] * len(bank.specs)
        self._parts = [list(_parts(bank, k)) for k in range(len(bank.specs))]
        self._part_of = self._numbered_parts() if fused.used_on(bank.flat) else None

    @torch.no_grad()
    def step(self, learning_rates: Sequence[float]) -> Tensor:
        """Update the parameters from the bank's gradients, then zero the gradients.

        Args:
            learning_rates: each adapter's learning rate in this step.

        Returns:
            (adapters,) float32, each adapter's gradient norm before clipping.
        """
        if self._part_of is not None:
            norms = self._update_at_once(learning_rates, self._part_of)
            self.steps = [steps + 1 for steps in self.steps]
            return norms
        norms = self._clip()
        groups: dict[tuple[float, float], list[tuple[slice, int]]] = {}
        for spec, rate, steps, parts in zip(
            self.bank.specs, learning_rates, self.steps, self._parts, strict=True
        ):
            for part, ratio in parts:
                groups.setdefault((rate * ratio, spec.weight_decay), []).append((part, steps))
        for (rate, weight_decay), members in groups.items():
            self._update(members, rate, weight_decay)
        self.steps = [steps + 1 for steps in self.steps]
        self.bank.grad.zero_()
        return norms

    def _update(self, members: Sequence[tuple[slice, int]], rate: float, weight_decay: float) -> None:
        """One update of parts of `flat`, each after its own number of earlier updates."""
        parts = [part for part, _ in members]
        adamw(
            [self.bank.flat[part] for part in parts],
            [self.bank.grad[part] for part in parts],
            [self.exp_avg[part] for part in parts],
            [self.exp_avg_sq[part] for part in parts],
            max_exp_avg_sqs=[],
            state_steps=[torch.tensor(float(steps), dtype=torch.float32) for _, steps in members],
            foreach=True,
            amsgrad=False,
            beta1=BETA_1,
            beta2=BETA_2,
            lr=rate,
            weight_decay=weight_decay,
            eps=EPS,
            maximize=False,
        )

    def _numbered_parts(self) -> Tensor:
        """(parameters,) int32: the part of each parameter."""
        numbers = torch.zeros(len(self.bank.flat), dtype=torch.int32)
        for number, (part, _) in enumerate(part for parts in self._parts for part in parts):
            numbers[part] = number
        return numbers.to(self.bank.flat.device)

    def _update_at_once(self, learning_rates: Sequence[float], part_of: Tensor) -> Tensor:
        """As `step`, with one kernel for all parts."""
        gradients = [self.bank.grad[segment] for segment in self.bank.segments]
        norms = torch.stack(torch._foreach_norm(gradients))
        table = [
            (k, rate * ratio, spec.weight_decay, 1 - BETA_1 ** (steps + 1), 1 - BETA_2 ** (steps + 1))
            for k, (spec, rate, steps, parts) in enumerate(
                zip(self.bank.specs, learning_rates, self.steps, self._parts, strict=True)
            )
            for _, ratio in parts
        ]
        columns = torch.tensor(table, dtype=torch.float32).T.contiguous().to(norms.device, non_blocking=True)
        clips = (
            self._clip_factors(norms)[columns[0].long()]
            if self.max_grad_norm
            else torch.ones_like(columns[0])
        )
        rates, decays, first, second = columns[1:].unbind()
        settings = fused.PartSettings(rates, decays, first, second, clips)
        fused.adamw(
            self.bank.flat,
            self.bank.grad,
            self.exp_avg,
            self.exp_avg_sq,
            part_of,
            settings,
            (BETA_1, BETA_2),
            EPS,
        )
        return norms

    def _clip_factors(self, norms: Tensor) -> Tensor:
        """(adapters,) factors that limit gradients of these norms, as torch's clip_grad_norm_."""
        return (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)

    def _clip(self) -> Tensor:
        """Clip each adapter's gradient; return the norms before clipping, (adapters,)."""
        gradients = [self.bank.grad[segment] for segment in self.bank.segments]
        norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
        if self.max_grad_norm:
            for factor, gradient in zip(self._clip_factors(norms), gradients, strict=True):
                gradient.mul_(factor)
        return norms


def _parts(bank: Bank, adapter: int) -> Iterator[tuple[slice, float]]:
    """The parts of `flat` that hold an adapter, each with its factor on the learning rate."""
    ratios = [
        (bank.specs[adapter].lora_plus_ratio if name.endswith("lora_B") else 1.0, tensor)
        for name, tensor in bank.tensors[adapter].items()
    ]
    for ratio, members in groupby(ratios, key=lambda pair: pair[0]):
        tensors = [tensor for _, tensor in members]
        start, last = tensors[0].storage_offset(), tensors[-1]
        yield slice(start, last.storage_offset() + last.numel()), ratio
