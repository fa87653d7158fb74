"""Estimate the memory that training needs, from a model's shape.

The peak memory of the whole process on a CPU is a sum::

    process                         Python, torch, the tokenizer, compiled kernels
  + weights                         embeddings float32, linear layers twice from the first adapted layer on
  + 1.4 * (kept + working)          activations of all layers for the backward pass, and one layer's workspace
  + 20 bytes per trained parameter  the value, its gradient, two Adam moments, a copy

The factor 1.4 and the process size are fitted to measured runs (`bench/memory.py`, docs/records). The
estimate is between 5 % below and 35 % above the peaks of those runs, and above the peaks of held-out runs.
A GPU needs less: it stores weights in one layout and holds neither Python nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankwise import hardware
from rankwise.models.config import ModelConfig
from rankwise.nn.bank import AdapterSpec, tensor_shapes
from rankwise.nn.batch import MAX_BUCKET_SCORES

PROCESS_BYTES = 650_000_000
"""Memory of Python, torch, the tokenizer and the compiled kernels, within the command line's kernel limit."""
KERNEL_BYTES = 1_000_000_000
"""Additional memory of compiled kernels without that limit, as when rankwise is used as a library. After 20
to 40 steps, 0.5 to 1.1 GB were measured (docs/log.md)."""
HOLES = 1.4
"""Allocator overhead: bytes held per byte needed, as freed blocks rarely fit the next allocation."""
BUCKET_SHARE = 1.25
"""Rows of attention's length buckets per token of a packed batch, for short texts."""
BUCKET_STEP = 8
"""Maximum padding of a text in its length bucket, for short texts."""


def expected_memory(
    bank: Sequence[AdapterSpec],
    config: ModelConfig,
    batch: int,
    length: float,
    number_bytes: int = 2,
    base_dropout: bool = True,
) -> int:
    """Peak memory of the whole process during training on a CPU, in bytes.

    The estimate includes compiled kernels as limited by this process's environment
    (`hardware.limits_kernels`).

    Args:
        bank: the adapters that train together.
        config: the base model's shape.
        batch: texts per adapter and step.
        length: mean tokens per text in the longest batch.
        number_bytes: bytes per number in matrix products; 2 for bfloat16.
        base_dropout: whether the base model's own dropout is active.
    """
    texts = batch * len(bank)
    # The adapter that reaches lowest; of those, the one with the most target modules.
    widest = max(
        bank,
        key=lambda spec: (
            -config.layer_of(spec.modules[0]) if spec.modules else -config.layers,
            len(spec.modules),
        ),
    )
    linear = sum(n_in * n_out for n_in, n_out in config.module_shapes().values())
    depth = config.layers - config.layer_of(widest.modules[0]) if widest.modules else 0
    # Embeddings stay float32. The backward pass uses a second copy of linear weights in another layout.
    weights = 4 * (config.parameters() - linear) + number_bytes * linear * (1 + depth / config.layers)
    # In the last layer, the MLP sees only the last token of each text.
    kept = texts * length * max(0.0, depth - 0.5) * _kept(widest, config, length, number_bytes, base_dropout)
    step = kept + _working(config, texts, length, number_bytes)
    trained = sum(trained_parameters(spec, config, classes=2) for spec in bank)
    kernels = 0 if hardware.limits_kernels() else KERNEL_BYTES
    return round(PROCESS_BYTES + kernels + weights + HOLES * step + 5 * 4 * trained)


def trained_parameters(spec: AdapterSpec, config: ModelConfig, classes: int) -> int:
    """Trainable parameters of an adapter: its low-rank factors and its score head."""
    shapes = tensor_shapes(spec, config.module_shapes(), config.d_model, classes)
    return sum(map(math.prod, shapes.values()))


def _kept(
    spec: AdapterSpec, config: ModelConfig, length: float, number_bytes: int, base_dropout: bool
) -> float:
    """Bytes per token that a layer keeps for the backward pass."""
    layer, shapes = config.layer_memory(), config.layer_shapes()
    last = f"{config.layer_name.format(config.layers - 1)}."
    adapted = [module.removeprefix(last) for module in spec.modules if module.startswith(last)]
    read = {layer.same_input.get(module, module): shapes[module][0] for module in adapted}
    masks = layer.masks if base_dropout else 0
    if spec.dropout:
        masks += sum(shapes[module][0] for module in adapted)
    # In the precision of matrix products: adapter inputs, heads padded to their length buckets, the
    # activation's inputs, and attention weights.
    numbers = sum(read.values()) + BUCKET_SHARE * layer.heads + layer.activation
    weight = number_bytes + (layer.attention_masks if base_dropout else 0)
    scores = config.heads * (length + BUCKET_STEP) * weight
    return layer.residuals * 4 * config.d_model + masks + number_bytes * numbers + scores


def _working(config: ModelConfig, texts: int, length: float, number_bytes: int) -> float:
    """Bytes of one layer's temporary workspace, in addition to what it keeps."""
    layer = config.layer_memory()
    token = 4 * 4 * config.d_model + 3 * number_bytes * max(layer.widest, layer.heads)
    pairs = min(texts * (length + BUCKET_STEP) ** 2, MAX_BUCKET_SCORES)
    return texts * length * token + (3 * 4 + 2 * number_bytes) * config.heads * pairs
