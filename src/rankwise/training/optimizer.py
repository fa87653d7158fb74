"""AdamW on a bank (Loshchilov and Hutter 2019, arXiv 1711.05101), with each adapter's gradient clipped."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rankwise.nn.bank import Bank

BETA_1, BETA_2, EPS = 0.9, 0.999, 1e-8


class AdamW:
    """The optimizer of a bank, its state flat as the bank is.

    The update is bit-identical to that of torch.optim.AdamW, which is not used because constructing it
    imports torch's compiler (0.8 s, 75 MB) and its bare function slows a training step down (docs/log.md).

    Every trained tensor is a matrix, so weight decay acts on all of them, as in transformers' Trainer.

    Args:
        bank: what to train.
        weight_decay: decoupled decay.
        max_grad_norm: largest norm of one adapter's gradient; 0 for no clipping.

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
        """Update the parameters from the bank's gradients, and clear these.

        Returns:
            (adapters,) float32, each adapter's gradient norm before clipping.
        """
        self.steps += 1
        norms = self._clip()
        grad, parameters = self.bank.grad, self.bank.flat
        parameters.mul_(1 - learning_rate * self.weight_decay)
        self.exp_avg.lerp_(grad, 1 - BETA_1)
        self.exp_avg_sq.mul_(BETA_2).addcmul_(grad, grad, value=1 - BETA_2)
        root = (self.exp_avg_sq.sqrt() / math.sqrt(1 - BETA_2**self.steps)).add_(EPS)
        parameters.addcdiv_(self.exp_avg, root, value=-learning_rate / (1 - BETA_1**self.steps))
        grad.zero_()
        return norms

    def _clip(self) -> Tensor:
        """Scale down gradients that are too long, adapter by adapter; (adapters,) norms before."""
        gradients = [self.bank.grad[segment] for segment in self.bank.segments]
        norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
        if self.max_grad_norm:
            factors = (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
            for factor, gradient in zip(factors, gradients, strict=True):
                gradient.mul_(factor)
        return norms
