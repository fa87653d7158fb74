"""AdamW for a bank (Loshchilov and Hutter 2019, arXiv 1711.05101), with per-adapter gradient clipping.

Every adapter has its own learning rate, weight decay, number of steps and, with LoRA+, learning rate of B.
Parameters with the same learning rate and weight decay are updated in one call. For three adapters, the last
with a LoRA+ ratio of 16::

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

    @torch.no_grad()
    def step(self, learning_rates: Sequence[float]) -> Tensor:
        """Update the parameters from the bank's gradients, then zero the gradients.

        Args:
            learning_rates: each adapter's learning rate in this step.

        Returns:
            (adapters,) float32, each adapter's gradient norm before clipping.
        """
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

    def _clip(self) -> Tensor:
        """Clip each adapter's gradient; return the norms before clipping, (adapters,)."""
        gradients = [self.bank.grad[segment] for segment in self.bank.segments]
        norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
        if self.max_grad_norm:
            factors = (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
            for factor, gradient in zip(factors, gradients, strict=True):
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
