"""Stage 2: a recipe -> adapters, banks, steps, parameter table, expected memory.

A plan needs no weights and no network for the known bases: the arithmetic of a model's shape is
enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rankwise.errors import UsageError
from rankwise.nn.families import Config, parse_config, trunk_class
from rankwise.nn.llama import LlamaConfig
from rankwise.nn.lora import AdapterSpec, layer_of, match_sites, tensor_shapes
from rankwise.recipe import Recipe


@dataclass(frozen=True)
class Row:
    """One adapter of the plan."""

    rank: int
    seed: int
    trainable_params: int
    total_params: int  # as PEFT's print_trainable_parameters counts them
    trainable_percent: float  # of total_params
    merged_params: int  # of the classifier once the adapter is merged
    bank: int  # which pass of the sweep trains it, from 1


@dataclass(frozen=True)
class Plan:
    """What a sweep will do."""

    base: str
    classes: int
    rows: tuple[Row, ...]
    banks: tuple[tuple[AdapterSpec, ...], ...]
    steps: int | None  # optimiser steps of each adapter; None while the data is unknown
    tokens: int | None  # tokens that each adapter is trained on
    memory_bytes: int  # expected peak of the largest bank, weights included

    def to_json(self) -> list[dict[str, Any]]:
        """One object a row, as `rankwise plan --json` prints them."""
        shared = {"steps": self.steps, "tokens": self.tokens, "memory_bytes": self.memory_bytes}
        return [asdict(row) | shared for row in self.rows]


def adapters(recipe: Recipe, sites: Sequence[str], default_targets: Sequence[str]) -> list[AdapterSpec]:
    """Every adapter of a recipe, ranks within seeds.

    Raises:
        UsageError: a target of the recipe names no linear site, or its sites are in lower layers only.
    """
    chosen = match_sites(sites, recipe.targets or default_targets)
    if recipe.last_layers:
        layers = 1 + max(map(layer_of, sites))
        chosen = tuple(site for site in chosen if layer_of(site) >= layers - recipe.last_layers)
    return [
        AdapterSpec(
            rank=rank,
            alpha=recipe.alpha_of(rank),
            scale=recipe.scale(rank),
            seed=seed,
            dropout=recipe.lora_dropout if rank else 0.0,
            sites=chosen if rank else (),
        )
        for seed in recipe.seeds
        for rank in recipe.ranks
    ]


def make(
    recipe: Recipe,
    config_json: Mapping[str, Any],
    *,
    has_pad_token: bool,
    classes: int,
    texts: int | None = None,
    tokens_per_text: float | None = None,
    memory_bytes: int | None = None,
) -> Plan:
    """The plan of a recipe.

    Args:
        recipe: what to train.
        config_json: the base model's config.json.
        has_pad_token: False where PEFT's users must add a pad token, whose row PEFT's total counts.
        classes: number of labels.
        texts: training texts, where known (else the recipe's `train_texts`).
        tokens_per_text: their mean length, where known (else the recipe's).
        memory_bytes: what one bank may take, weights included; None for no limit.

    Raises:
        ModelError: the base model is not supported.
        UsageError: the recipe does not fit the base model.
    """
    config = parse_config(config_json)
    if recipe.max_length > config.max_positions:
        raise UsageError(
            f"max_length {recipe.max_length} is more than the {config.max_positions} positions of {recipe.base}",
            hint=f"give --max-length {config.max_positions} or less",
        )
    shapes = config.site_shapes()
    specs = adapters(recipe, list(shapes), trunk_class(config).default_targets)
    texts = texts or recipe.train_texts
    tokens_per_text = tokens_per_text or recipe.tokens_per_text
    per_step = recipe.batch_size * (tokens_per_text or min(recipe.max_length, 128))
    banks = _split(specs, config, per_step, memory_bytes)
    numbers = {spec.name: number for number, bank in enumerate(banks, 1) for spec in bank}
    head, pad = classes * config.d_model, 0 if has_pad_token else config.d_model
    rows = []
    for spec in specs:
        trainable = sum(math.prod(s) for s in tensor_shapes(spec, shapes, config.d_model, classes).values())
        # PEFT keeps the original head beside the trained copy, and counts both.
        total = config.parameters() + pad + head + trainable
        percent, merged = 100 * trainable / total, config.parameters() + head
        rows.append(Row(spec.rank, spec.seed, trainable, total, percent, merged, numbers[spec.name]))
    return Plan(
        base=recipe.base,
        classes=classes,
        rows=tuple(rows),
        banks=banks,
        steps=None if texts is None else recipe.epochs * math.ceil(texts / recipe.batch_size),
        tokens=round(recipe.epochs * texts * tokens_per_text) if texts and tokens_per_text else None,
        memory_bytes=max(expected_memory(bank, config, per_step) for bank in banks),
    )


def expected_memory(bank: Sequence[AdapterSpec], config: Config, tokens_per_step: float) -> int:
    """Bytes at the peak of a training step: weights, activations kept for the backward pass, optimiser.

    Args:
        bank: the adapters that train together.
        config: the base model's shape.
        tokens_per_step: tokens of one adapter in a step.
    """
    d, ff = config.d_model, config.d_ff
    weights = 2 * config.parameters() + 2 * (config.vocab_size * d)  # bfloat16, the embeddings float32
    gated = isinstance(config, LlamaConfig)
    # What a layer keeps for one token: float32 residuals and norms, then bfloat16 inputs, q, k and v
    # (twice, as stream and as blocks), attention output, the MLP's hidden values.
    kept = 2 * 4 * d + 2 * (2 * d + 8 * d + (3 if gated else 2) * ff)
    adapters = sum(spec.rank > 0 for spec in bank)
    trained = sum(
        math.prod(s) for spec in bank for s in tensor_shapes(spec, config.site_shapes(), d, 2).values()
    )
    working = 16 * max(ff, 3 * d) * tokens_per_step * len(bank)
    return round(weights + config.layers * kept * tokens_per_step * adapters + working + 5 * 4 * trained)


def _split(
    specs: Sequence[AdapterSpec], config: Config, tokens_per_step: float, memory_bytes: int | None
) -> tuple[tuple[AdapterSpec, ...], ...]:
    """Banks that fit the memory. Heads alone go together: their bank needs no backward pass."""
    banks: list[list[AdapterSpec]] = []
    for group in ([s for s in specs if not s.rank], [s for s in specs if s.rank]):
        bank: list[AdapterSpec] = []
        for spec in group:
            fits = (
                memory_bytes is None
                or expected_memory([*bank, spec], config, tokens_per_step) <= memory_bytes
            )
            if bank and not fits:
                banks.append(bank)
                bank = []
            bank.append(spec)
        if bank:
            banks.append(bank)
    return tuple(tuple(bank) for bank in banks)
