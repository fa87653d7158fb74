"""AdamW for a bank (Loshchilov and Hutter 2019, arXiv 1711.05101), with per-adapter gradient clipping."""

from __future__ import annotations

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

    Args:
        bank: the bank to train.
        weight_decay: decoupled weight decay.
        max_grad_norm: maximum norm of an adapter's gradient; 0 for no clipping.

    Attributes:
        exp_avg: (parameters,) float32, the moving average of the gradient.
        exp_avg_sq: (parameters,) float32, the moving average of its square.
        steps: updates so far.
    """

    def __init__(self, bank: Bank, weight_decay: float, max_grad_norm: float) -> None:
        self.bank, self.weight_decay, self.max_grad_norm = bank, weight_decay, max_grad_norm
        self.exp_avg = torch.zeros_like(bank.flat)
        self.exp_avg_sq = torch.zeros_like(bank.flat)
        self.steps = 0

    @torch.no_grad()
    def step(self, learning_rate: float) -> Tensor:
        """Update the parameters from the bank's gradients, then zero the gradients.

        Returns:
            (adapters,) float32, each adapter's gradient norm before clipping.
        """
        norms = self._clip()
        adamw(
            [self.bank.flat],
            [self.bank.grad],
            [self.exp_avg],
            [self.exp_avg_sq],
            max_exp_avg_sqs=[],
            state_steps=[torch.tensor(float(self.steps))],
            foreach=True,
            amsgrad=False,
            beta1=BETA_1,
            beta2=BETA_2,
            lr=learning_rate,
            weight_decay=self.weight_decay,
            eps=EPS,
            maximize=False,
        )
        self.steps += 1
        self.bank.grad.zero_()
        return norms

    def _clip(self) -> Tensor:
        """Clip each adapter's gradient; return the norms before clipping, (adapters,)."""
        gradients = [self.bank.grad[segment] for segment in self.bank.segments]
        norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
        if self.max_grad_norm:
            factors = (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
            for factor, gradient in zip(factors, gradients, strict=True):
                gradient.mul_(factor)
        return norms
