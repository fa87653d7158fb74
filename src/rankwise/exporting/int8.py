"""Matrix products in int8, with ONNX Runtime's operator for weights in blocks.

Every 32 numbers of a weight along its input share a scale. When the model runs, ONNX Runtime quantizes its
input in the same blocks, token by token. With a single scale for the whole input, as in its dynamic
quantization, one large number, which language models have in some tokens, leaves few levels to all others.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rankwise.exporting.graph import Graph

DOMAIN = "com.microsoft"
BLOCK = 32
"""Numbers that share a scale."""
ZERO = 128
"""The operator stores numbers from -127 to 127 as bytes with this offset."""
INPUT_IN_INT8 = 4
"""The operator's `accuracy_level` at which inputs are quantized, too."""


def product(graph: Graph, x: str, weight: Tensor, name: str) -> str:
    """The product of x (..., in) and a weight (in, out) float32.

    Args:
        graph: the graph to add it to.
        x: name of the input.
        weight: the weight.
        name: name of the weight.
    """
    numbers, scales = quantized(weight)
    stored = graph.constant(numbers, name), graph.constant(scales, f"{name} scales")
    return graph.node(
        "MatMulNBits",
        x,
        *stored,
        domain=DOMAIN,
        K=weight.shape[0],
        N=weight.shape[1],
        bits=8,
        block_size=BLOCK,
        accuracy_level=INPUT_IN_INT8,
    )


def quantized(weight: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(out, blocks, 32) bytes and (out * blocks,) scales of a weight (in, out); the last block is padded."""
    rows = F.pad(weight.T, (0, -len(weight) % BLOCK)).reshape(weight.shape[1], -1, BLOCK)
    scales = rows.abs().amax(-1) / 127  # (out, blocks)
    numbers = (rows / torch.where(scales == 0, 1.0, scales)[..., None]).round() + ZERO
    return numbers.to(torch.uint8).numpy(), scales.flatten().numpy()
