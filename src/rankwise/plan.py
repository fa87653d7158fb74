"""Stage 2: a recipe -> adapters, banks, steps, parameter table, expected memory.

A plan needs no weights and no network for the known bases: the arithmetic of a model's shape is
enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rankwise.errors import UsageError
from rankwise.nn.families import Config, parse_config, trunk_class
from rankwise.nn.llama import LlamaConfig
from rankwise.nn.lora import AdapterSpec, layer_of, match_sites, tensor_shapes
from rankwise.recipe import Recipe

PROCESS_BYTES = 500_000_000
"""What Python, torch and the tokenizer take before there is a model."""
BLOCK_SHARE = 1.25
"""Rows of attention's blocks for each token of a stream, at the lengths of short texts."""


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

    Args:
        recipe: what to train.
        sites: the trunk's linear sites, in order.
        default_targets: what the family adapts where the recipe does not say.

    Raises:
        UsageError: a target names no linear site, or none in the last layers that were asked for.
    """
    chosen = match_sites(sites, recipe.targets or default_targets)
    if recipe.last_layers:
        first = 1 + layer_of(sites[-1]) - recipe.last_layers
        chosen = tuple(site for site in chosen if layer_of(site) >= first)
        if not chosen:
            raise UsageError(f"last_layers: no target lies in the last {recipe.last_layers} layers")
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
    number_bytes: int = 2,
    decided: Sequence[Sequence[str]] = (),
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
        number_bytes: bytes of a number in matrix products; 2 for bfloat16.
        decided: adapters' names, bank by bank, where a run goes on: those banks come first and stay as
            they are, and what the recipe has besides is split into further ones.

    Raises:
        ModelError: the base model is not supported.
        UsageError: the recipe does not fit the base model.
    """
    config = parse_config(config_json)
    if recipe.max_length > config.max_positions:
        raise UsageError(
            f"max_length {recipe.max_length}: {recipe.base} has {config.max_positions} positions",
            hint=f"give --max-length {config.max_positions} or less",
        )
    specs = adapters(recipe, list(config.site_shapes()), trunk_class(config).default_targets)
    texts, tokens_per_text = texts or recipe.train_texts, tokens_per_text or recipe.tokens_per_text
    step_tokens = recipe.batch_size * (tokens_per_text or recipe.max_length)
    estimate = partial(expected_memory, config=config, step_tokens=step_tokens, number_bytes=number_bytes)
    by_name = {spec.name: spec for spec in specs}
    old = tuple(tuple(by_name[name] for name in bank) for bank in decided)
    new = [spec for spec in specs if not any(spec in bank for bank in old)]
    banks = old + _split(new, estimate, memory_bytes)
    return Plan(
        base=recipe.base,
        classes=classes,
        rows=tuple(_rows(banks, specs, config, classes, has_pad_token)),
        banks=banks,
        steps=recipe.epochs * math.ceil(texts / recipe.batch_size) if texts else None,
        tokens=round(recipe.epochs * texts * tokens_per_text) if texts and tokens_per_text else None,
        memory_bytes=max(map(estimate, filter(None, banks))),
    )


def _rows(
    banks: Sequence[Sequence[AdapterSpec]],
    specs: Sequence[AdapterSpec],
    config: Config,
    classes: int,
    has_pad_token: bool,
) -> Iterator[Row]:
    numbers = {spec: number for number, bank in enumerate(banks, 1) for spec in bank}
    head = classes * config.d_model
    for spec in specs:
        trainable = trained_parameters(spec, config, classes)
        # PEFT counts the head twice, the original and the trained copy, and the row of an added pad token.
        total = config.parameters() + (0 if has_pad_token else config.d_model) + head + trainable
        merged = config.parameters() + head
        yield Row(spec.rank, spec.seed, trainable, total, 100 * trainable / total, merged, numbers[spec])


def trained_parameters(spec: AdapterSpec, config: Config, classes: int) -> int:
    """Numbers that an adapter trains: its factors and its score head."""
    shapes = tensor_shapes(spec, config.site_shapes(), config.d_model, classes)
    return sum(map(math.prod, shapes.values()))


def expected_memory(
    bank: Sequence[AdapterSpec], config: Config, step_tokens: float, number_bytes: int = 2
) -> int:
    """Bytes of the whole process at the peak of a training step on a CPU.

    From the model's shape, held against one measured step (docs/log.md); a GPU needs less, as it keeps
    weights in one layout and neither Python nor torch.

    Args:
        bank: the adapters that train together.
        config: the base model's shape.
        step_tokens: tokens of one adapter in a step.
        number_bytes: bytes of a number in matrix products; 2 for bfloat16.
    """
    d, ff, rows = config.d_model, config.d_ff, step_tokens * len(bank)
    linear = sum(n_in * n_out for n_in, n_out in config.site_shapes().values())
    depth = max((config.layers - layer_of(spec.sites[0]) for spec in bank if spec.sites), default=0)
    # Embeddings stay float32. Linear weights have a layout of their own for the backward pass.
    embeddings = 4 * (config.parameters() - linear)
    weights = number_bytes * linear * (1 + depth / config.layers) + embeddings
    # For one token a layer keeps two float32 residuals, the bytes of its dropout masks, and in the
    # trunk's precision: two normed inputs, what attention gives, q, k and v with what fills up their
    # blocks, and what the MLP's activation needs.
    hidden = 3 if isinstance(config, LlamaConfig) else 2
    kept = 2 * 4 * d + 3 * d + number_bytes * (3 * d + BLOCK_SHARE * 3 * d + hidden * ff)
    working = 4 * 4 * max(ff, 3 * d)
    trained = sum(trained_parameters(spec, config, classes=2) for spec in bank)
    return round(PROCESS_BYTES + weights + rows * (depth * kept + working) + 5 * 4 * trained)


def _split(
    specs: Sequence[AdapterSpec],
    estimate: Callable[[Sequence[AdapterSpec]], int],
    memory_bytes: int | None,
) -> tuple[tuple[AdapterSpec, ...], ...]:
    """Banks that fit the memory. Heads alone go together: their bank needs no backward pass."""
    banks: list[list[AdapterSpec]] = []
    for group in ([s for s in specs if not s.rank], [s for s in specs if s.rank]):
        full = True
        for spec in group:
            if memory_bytes is not None and not full:
                full = estimate([*banks[-1], spec]) > memory_bytes
            if full:
                banks.append([])
            banks[-1].append(spec)
            full = False
    return tuple(tuple(bank) for bank in banks)
