"""Gradient times input: how much each token of a text contributes to a probability, in one backward pass.

    effect of token i  =  sum over d of  embedding[i, d] * dp / dembedding[i, d]

To first order, it is what the probability p loses if the embedding of the token becomes zero (Shrikumar et
al. 2016, arXiv 1605.01713).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.backbone import Backbone, Hook
from rankwise.nn.batch import Ids
from rankwise.nn.ragged.batch import pack


def gradient_times_input(
    backbone: Backbone, head: Tensor, ids: Ids, temperature: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The probabilities of one text, and the effect of each of its tokens on the largest.

    Args:
        backbone: the model, with its adapter merged.
        head: (classes, d_model) float32, the score head.
        ids: (tokens,) int64.
        temperature: divides the logits.

    Returns:
        (classes,) probabilities, and (tokens,) effects.
    """
    packed, hook = pack([[ids]], head.device), Hook()
    with torch.no_grad():
        x = backbone.embed(packed, hook)  # (tokens, d_model)
    start = x.detach().requires_grad_()
    with torch.enable_grad():
        x = start
        for i in range(backbone.depth):
            x = backbone.layer(i, x, packed, hook)
        logits = backbone.normed(x) @ head.detach().T  # (1, classes)
        probabilities = (logits.double()[0] / temperature).softmax(0)
        (gradient,) = torch.autograd.grad(probabilities.max(), start)  # (tokens, d_model)
    effects = (gradient * backbone.tokens[packed.ids]).sum(1)
    return probabilities.detach().cpu().numpy(), effects.double().cpu().numpy()
