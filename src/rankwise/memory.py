"""What training takes of memory, from a model's shape.

The peak of the whole process on a CPU, as a sum::

    process                         Python, torch, the tokenizer, compiled products
  + weights                         embeddings float32, linear layers twice from the first adapted layer on
  + 1.4 * (kept + working)          what all layers keep for the backward pass, and what one computes with
  + 20 bytes a trained number       itself, its gradient, two moments of Adam, a copy

The 1.4 and the process are fitted to measured runs (`bench/memory.py`, docs/records). The estimate lies
between 5 % below and 35 % above them and above others that nothing was fitted to. A GPU needs less, as it
keeps weights in one layout and neither Python nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankwise import hardware
from rankwise.models.config import ModelConfig
from rankwise.nn.bank import AdapterSpec, tensor_shapes
from rankwise.nn.batch import MAX_BUCKET_SCORES

PROCESS_BYTES = 650_000_000
"""What Python, torch, the tokenizer and the compiled products take that the command line lets be kept."""
KERNEL_BYTES = 1_000_000_000
"""What compiled products take beyond that where nothing limits them, as in a program of the user's own: 0.5
to 1.1 GB more were measured after 20 to 40 steps (docs/log.md)."""
HOLES = 1.4
"""What a process holds for each byte that a step needs: a freed block seldom has the size asked for next."""
BUCKET_SHARE = 1.25
"""Rows of attention's length buckets for each token of a packed batch, at the lengths of short texts."""
BUCKET_STEP = 8
"""By how much a length bucket is wider than a text is long, at most, at the lengths of short texts."""


def expected_memory(
    bank: Sequence[AdapterSpec],
    config: ModelConfig,
    batch: int,
    length: float,
    number_bytes: int = 2,
    base_dropout: bool = True,
) -> int:
    """Bytes of the whole process at the peak of training on a CPU.

    Compiled products are counted as this process's environment limits them: a program that uses rankwise
    without the limits of the command line needs more (`hardware.limits_kernels`).

    Args:
        bank: the adapters that train together.
        config: the base model's shape.
        batch: texts of one adapter in a step.
        length: their mean tokens in the longest batch.
        number_bytes: bytes of a number in matrix products; 2 for bfloat16.
        base_dropout: whether the base model's own dropout is active.
    """
    texts, widest = batch * len(bank), max(bank, key=lambda spec: len(spec.modules))
    linear = sum(n_in * n_out for n_in, n_out in config.module_shapes().values())
    depth = config.layers - config.layer_of(widest.modules[0]) if widest.modules else 0
    # Embeddings stay float32. Linear weights have a layout of their own for the backward pass.
    weights = 4 * (config.parameters() - linear) + number_bytes * linear * (1 + depth / config.layers)
    # Of the last layer's tokens only each text's last one goes on to the MLP.
    kept = texts * length * max(0.0, depth - 0.5) * _kept(widest, config, length, number_bytes, base_dropout)
    step = kept + _working(config, texts, length, number_bytes)
    trained = sum(trained_parameters(spec, config, classes=2) for spec in bank)
    kernels = 0 if hardware.limits_kernels() else KERNEL_BYTES
    return round(PROCESS_BYTES + kernels + weights + HOLES * step + 5 * 4 * trained)


def trained_parameters(spec: AdapterSpec, config: ModelConfig, classes: int) -> int:
    """Numbers that an adapter trains: its factors and its score head."""
    shapes = tensor_shapes(spec, config.module_shapes(), config.d_model, classes)
    return sum(map(math.prod, shapes.values()))


def _kept(
    spec: AdapterSpec, config: ModelConfig, length: float, number_bytes: int, base_dropout: bool
) -> float:
    """Bytes that a layer keeps of a token for the backward pass."""
    layer, shapes = config.layer_memory(), config.layer_shapes()
    last = f"{config.layer_name.format(config.layers - 1)}."
    adapted = [module.removeprefix(last) for module in spec.modules if module.startswith(last)]
    read = {layer.same_input.get(module, module): shapes[module][0] for module in adapted}
    masks = layer.masks if base_dropout else 0
    if spec.dropout:
        masks += sum(shapes[module][0] for module in adapted)
    # In the precision of matrix products: what adapters read, the heads with what fills up their length
    # buckets, what the activation needs, and attention's weights.
    numbers = sum(read.values()) + BUCKET_SHARE * layer.heads + layer.activation
    weight = number_bytes + (layer.attention_masks if base_dropout else 0)
    scores = config.heads * (length + BUCKET_STEP) * weight
    return layer.residuals * 4 * config.d_model + masks + number_bytes * numbers + scores


def _working(config: ModelConfig, texts: int, length: float, number_bytes: int) -> float:
    """Bytes of what one layer computes with, beside what it keeps."""
    layer = config.layer_memory()
    token = 4 * 4 * config.d_model + 3 * number_bytes * max(layer.widest, layer.heads)
    pairs = min(texts * (length + BUCKET_STEP) ** 2, MAX_BUCKET_SCORES)
    return texts * length * token + (3 * 4 + 2 * number_bytes) * config.heads * pairs
