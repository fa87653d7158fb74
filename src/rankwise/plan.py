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
from rankwise.memory import expected_memory, trained_parameters
from rankwise.models.config import ModelConfig
from rankwise.models.registry import family_of, parse_config
from rankwise.nn.bank import AdapterSpec, layer_of, match_modules
from rankwise.recipe import Recipe

PROBE = "linear-probe"
"""Name of the linear probe among a run's adapters."""
SPREAD = 2.4
"""The longest batch of an epoch lies this far over the mean, for batches of one text; the root of the
batch size divides it. Measured on dair-ai/emotion (docs/log.md)."""


@dataclass(frozen=True)
class PlannedAdapter:
    """One adapter of the plan."""

    name: str
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
    rows: tuple[PlannedAdapter, ...]
    banks: tuple[tuple[AdapterSpec, ...], ...]
    steps: int | None  # optimizer steps of each adapter; None while the data is unknown
    tokens: int | None  # tokens that each adapter is trained on
    memory_bytes: int  # expected peak of the largest bank, weights included
    probe: AdapterSpec | None = None  # the linear probe, where it is a baseline; it has no row

    @property
    def names(self) -> list[str]:
        """The adapters' names, in the order of the rows."""
        return [row.name for row in self.rows]

    def to_json(self) -> list[dict[str, Any]]:
        """One object a row, as `rankwise plan --json` prints them."""
        shared = {"steps": self.steps, "tokens": self.tokens, "memory_bytes": self.memory_bytes}
        return [asdict(row) | shared for row in self.rows]


def adapters(recipe: Recipe, modules: Sequence[str], default_targets: Sequence[str]) -> list[AdapterSpec]:
    """Every adapter of a recipe, ranks within seeds.

    Args:
        recipe: what to train.
        modules: the backbone's linear layers, in order.
        default_targets: what the family adapts where the recipe does not say.

    Raises:
        UsageError: a target names no linear layer, or none in the last layers that were asked for.
    """
    chosen = match_modules(modules, recipe.lora.targets or default_targets)
    if recipe.lora.last_layers:
        first = 1 + layer_of(modules[-1]) - recipe.lora.last_layers
        chosen = tuple(module for module in chosen if layer_of(module) >= first)
        if not chosen:
            raise UsageError(f"last_layers: no target lies in the last {recipe.lora.last_layers} layers")
    return [
        AdapterSpec(
            rank=rank,
            alpha=recipe.lora.alpha_of(rank),
            scale=recipe.lora.scale(rank),
            seed=seed,
            dropout=recipe.lora.lora_dropout if rank else 0.0,
            modules=chosen if rank else (),
        )
        for seed in recipe.train.seeds
        for rank in recipe.lora.ranks
    ]


def probe_of(recipe: Recipe) -> AdapterSpec | None:
    """The linear probe, a trained head on the frozen base, where the recipe has it as a baseline."""
    if not recipe.train.baselines or 0 in recipe.lora.ranks:
        return None
    alpha, seed = recipe.lora.alpha_of(0), recipe.train.seeds[0]
    return AdapterSpec(rank=0, alpha=alpha, scale=0.0, seed=seed, dropout=0.0, modules=(), name=PROBE)


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
        texts: training texts, where known.
        tokens_per_text: their mean length, where known.
        memory_bytes: what one bank may take, weights included; None for no limit.
        number_bytes: bytes of a number in matrix products; 2 for bfloat16.
        decided: adapters' names, bank by bank, where a run goes on: those banks come first and stay as
            they are, and what the recipe has besides is split into further ones.

    Raises:
        ModelError: the base model is not supported.
        UsageError: the recipe does not fit the base model.
    """
    config = parse_config(config_json)
    if recipe.train.max_length > config.max_positions:
        raise UsageError(
            f"max_length {recipe.train.max_length}: {recipe.base} has {config.max_positions} positions",
            hint=f"give --max-length {config.max_positions} or less",
        )
    specs = adapters(recipe, list(config.module_shapes()), family_of(config_json).default_targets)
    longest = (tokens_per_text or recipe.train.max_length) * (1 + SPREAD / math.sqrt(recipe.train.batch_size))
    length = min(longest, recipe.train.max_length)
    estimate = partial(
        expected_memory,
        config=config,
        batch=recipe.train.batch_size,
        length=length,
        number_bytes=number_bytes,
        base_dropout=recipe.train.base_dropout,
    )
    probe = probe_of(recipe)
    by_name = {spec.name: spec for spec in (*specs, *((probe,) if probe else ()))}
    old = tuple(tuple(by_name[name] for name in bank) for bank in decided)
    new = [spec for spec in specs if not any(spec in bank for bank in old)]
    banks = old + _split(new, estimate, memory_bytes)
    if probe and not any(probe in bank for bank in banks):
        banks = (*banks, (probe,))
    return Plan(
        base=recipe.base,
        classes=classes,
        rows=tuple(_rows(banks, specs, config, classes, has_pad_token)),
        banks=banks,
        steps=recipe.train.epochs * math.ceil(texts / recipe.train.batch_size) if texts else None,
        tokens=round(recipe.train.epochs * texts * tokens_per_text) if texts and tokens_per_text else None,
        memory_bytes=max(map(estimate, filter(None, banks))),
        probe=probe,
    )


def _rows(
    banks: Sequence[Sequence[AdapterSpec]],
    specs: Sequence[AdapterSpec],
    config: ModelConfig,
    classes: int,
    has_pad_token: bool,
) -> Iterator[PlannedAdapter]:
    numbers = {spec: number for number, bank in enumerate(banks, 1) for spec in bank}
    head = classes * config.d_model
    for spec in specs:
        trainable = trained_parameters(spec, config, classes)
        # PEFT counts the head twice, the original and the trained copy, and the row of an added pad token.
        total = config.parameters() + (0 if has_pad_token else config.d_model) + head + trainable
        merged = config.parameters() + head
        share = 100 * trainable / total
        yield PlannedAdapter(spec.name, spec.rank, spec.seed, trainable, total, share, merged, numbers[spec])


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
