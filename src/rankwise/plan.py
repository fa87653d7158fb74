"""Stage 2: plan a recipe's adapters, banks, steps, parameter counts and expected memory.

Planning for the built-in base models needs neither weights nor a network: the config's shapes are
enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import mean
from typing import Any

from rankwise import tuning
from rankwise.errors import UsageError, option
from rankwise.memory import expected_memory, trained_parameters
from rankwise.models.config import ModelConfig
from rankwise.models.registry import family_of, parse_config
from rankwise.nn.bank import AdapterSpec, layer_of, match_modules
from rankwise.recipe import VARIABLE, Recipe

PROBE = "linear-probe"
"""Name of the linear probe among a run's adapters."""
SPREAD = 2.4
"""Relative excess of an epoch's longest batch over the mean length, for batches of one text. It shrinks
with the square root of the batch size. Measured on dair-ai/emotion (docs/log.md)."""


@dataclass(frozen=True)
class PlannedAdapter:
    """One adapter of the plan."""

    name: str
    rank: int
    seed: int
    trainable_params: int
    total_params: int  # as PEFT's print_trainable_parameters counts them
    trainable_percent: float  # of total_params
    merged_params: int  # parameters of the classifier after merging the adapter
    bank: int  # index of the bank that trains it, from 1


@dataclass(frozen=True)
class PlannedTuning:
    """What tuning will cost. Further trials may be added, to bracket the best learning rate of each rank."""

    trials: int  # of all ranks, and of the linear probe if it is a baseline
    texts: int | None  # held out of train to judge the trials; None while the data is unknown
    tokens: int | None  # training tokens of all trials; None while the data is unknown
    share: float  # of the tokens that the whole sweep trains on, from 0 to 1


@dataclass(frozen=True)
class Plan:
    """What a sweep will do."""

    base: str
    classes: int
    rows: tuple[PlannedAdapter, ...]
    banks: tuple[tuple[AdapterSpec, ...], ...]
    steps: int | None  # optimizer steps of each adapter, at most; None while the data is unknown
    tokens: int | None  # training tokens of each adapter, at most; None while the data is unknown
    memory_bytes: int  # expected peak of the largest bank, including weights
    probe: AdapterSpec | None = None  # the linear probe if it is a baseline; it has no row
    tuning: PlannedTuning | None = None  # None: every rank uses the recipe's settings
    epochs: tuple[int, ...] = ()  # the numbers of epochs that tuning chooses from, or the recipe's

    @property
    def names(self) -> list[str]:
        """The adapters' names, in row order."""
        return [row.name for row in self.rows]

    def fewest(self, most: int) -> int:
        """The steps or tokens of an adapter with the fewest epochs; `most` are those of the most epochs."""
        return round(most * min(self.epochs) / max(self.epochs)) if self.epochs else most

    def to_json(self) -> list[dict[str, Any]]:
        """One object per row, as printed by `rankwise plan --json`."""
        shared = {
            "steps": self.steps,
            "tokens": self.tokens,
            "memory_bytes": self.memory_bytes,
            "tuning": asdict(self.tuning) if self.tuning else None,
        }
        return [asdict(row) | shared for row in self.rows]


Settings = Mapping[str, Any]
"""Settings that differ from the recipe's, by name, such as those that tuning has chosen for a rank."""


def adapters(
    recipe: Recipe,
    modules: Sequence[str],
    default_targets: Sequence[str],
    tuned: Mapping[int, Settings] | None = None,
) -> list[AdapterSpec]:
    """All adapters of a recipe, ordered by seed, then rank.

    Args:
        recipe: what to train.
        modules: the backbone's linear layers, in order.
        default_targets: the family's targets if the recipe sets none.
        tuned: rank -> settings chosen for it.

    Raises:
        UsageError: a target matches no linear layer, or none within `last_layers`.
    """
    return [
        adapter(recipe, rank, seed, modules, default_targets, (tuned or {}).get(rank, {}))
        for seed in recipe.train.seeds
        for rank in recipe.lora.ranks
    ]


def adapter(
    recipe: Recipe,
    rank: int,
    seed: int,
    modules: Sequence[str],
    default_targets: Sequence[str],
    settings: Settings,
    name: str = "",
    share: float = 1.0,
) -> AdapterSpec:
    """One adapter of a recipe.

    Args:
        recipe: what to train.
        rank: its rank; 0 is a linear probe.
        seed: its seed.
        modules: the backbone's linear layers, in order.
        default_targets: the family's targets if the recipe sets none.
        settings: settings that replace the recipe's.
        name: its name (default: `rRANK-sSEED`).
        share: length of its schedule as a share of the recipe's.
    """
    recipe = _own(recipe, settings)
    return AdapterSpec(
        rank=rank,
        alpha=recipe.lora.alpha_of(rank),
        scale=recipe.lora.scale(rank),
        seed=seed,
        dropout=recipe.lora.lora_dropout if rank else 0.0,
        modules=_targets(recipe, modules, default_targets) if rank else (),
        name=name,
        learning_rate=recipe.train.learning_rate,
        weight_decay=recipe.train.weight_decay,
        lora_plus_ratio=recipe.train.lora_plus_ratio if rank else 1.0,
        epochs=recipe.train.epochs * share,
        share=share,
    )


def own_settings(recipe: Recipe, settings: Settings) -> dict[str, Any]:
    """The value of every setting that may differ between adapters, by name.

    >>> own_settings(Recipe(), {"alpha": 32.0})["alpha"]
    32.0
    """
    values = _own(recipe, settings).flat()
    return {name: values[name] for name in ("learning_rate", *VARIABLE)}


def _own(recipe: Recipe, settings: Settings) -> Recipe:
    """The recipe of one adapter, whose settings replace the recipe's."""
    return recipe.replace(tune=False, learning_rates=None, vary={}, **settings)


def _targets(recipe: Recipe, modules: Sequence[str], default_targets: Sequence[str]) -> tuple[str, ...]:
    """Full names of the target modules."""
    chosen = match_modules(modules, recipe.lora.targets or default_targets)
    if recipe.lora.last_layers:
        first = 1 + layer_of(modules[-1]) - recipe.lora.last_layers
        chosen = tuple(module for module in chosen if layer_of(module) >= first)
        if not chosen:
            raise UsageError(f"last_layers: no target lies in the last {recipe.lora.last_layers} layers")
    return chosen


def probe_of(recipe: Recipe, settings: Settings | None = None) -> AdapterSpec | None:
    """The linear probe (a trained head on the frozen base), or None if it is not a baseline."""
    if not recipe.train.baselines or 0 in recipe.lora.ranks:
        return None
    return adapter(recipe, 0, recipe.train.seeds[0], (), (), settings or {}, PROBE)


def tuned_ranks(recipe: Recipe) -> list[int]:
    """The ranks whose settings are chosen by trials, including 0 if the linear probe is a baseline."""
    if not recipe.tune.enabled:
        return []
    return [*([0] if probe_of(recipe) else []), *recipe.lora.ranks]


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
    workers: int = 1,
    decided: Sequence[Sequence[str]] = (),
    tuned: Mapping[int, Settings] | None = None,
) -> Plan:
    """The plan of a recipe.

    Args:
        recipe: what to train.
        config_json: the base model's config.json.
        has_pad_token: False if PEFT users must add a pad token, whose embedding PEFT's total includes.
        classes: number of labels.
        texts: number of training texts, if known.
        tokens_per_text: mean length of the training texts, if known.
        memory_bytes: memory limit of a bank, including weights; None for no limit.
        number_bytes: bytes per number in matrix products; 2 for bfloat16.
        workers: number of banks that train at the same time.
        decided: adapter names of each existing bank when a run is resumed. These banks come first and
            are not changed; the remaining adapters are split into further banks.
        tuned: rank -> settings that tuning has chosen.

    Raises:
        ModelError: the base model is not supported.
        UsageError: the recipe does not fit the base model.
    """
    config = parse_config(config_json)
    if recipe.train.max_length > config.max_positions:
        raise UsageError(
            f"max_length {recipe.train.max_length}: {recipe.base} has {config.max_positions} positions",
            hint=f"use {option('max_length', config.max_positions)} or less",
        )
    default_targets = family_of(config_json).default_targets
    _check_layers(recipe, config)
    specs = adapters(recipe, list(config.module_shapes()), default_targets, tuned)
    estimate = _estimate(recipe, config, tokens_per_text, number_bytes)
    probe = probe_of(recipe, (tuned or {}).get(0))
    by_name = {spec.name: spec for spec in (*specs, *((probe,) if probe else ()))}
    old = tuple(tuple(by_name[name] for name in bank) for bank in decided)
    new = [spec for spec in specs if not any(spec in bank for bank in old)]
    epochs = epochs_of(recipe)
    banks = old + _split(new, estimate, memory_bytes, recipe.machine.bank_size, workers)
    if probe and not any(probe in bank for bank in banks):
        banks = (*banks, (probe,))
    return Plan(
        base=recipe.base,
        classes=classes,
        rows=tuple(_rows(banks, specs, config, classes, has_pad_token)),
        banks=banks,
        steps=max(epochs) * recipe.train.steps_per_epoch(texts) if texts else None,
        tokens=round(max(epochs) * texts * tokens_per_text) if texts and tokens_per_text else None,
        memory_bytes=max(map(estimate, filter(None, banks))),
        probe=probe,
        tuning=_tuning(recipe, texts, classes, tokens_per_text),
        epochs=epochs,
    )


def epochs_of(recipe: Recipe) -> tuple[int, ...]:
    """The numbers of epochs that tuning chooses from; without that choice, the recipe's."""
    return tuple(recipe.tune.vary.get("epochs", ())) or (recipe.train.epochs,)


def _check_layers(recipe: Recipe, config: ModelConfig) -> None:
    """Refuse to adapt more layers than the model has, which would only adapt all of them."""
    layers = 1 + layer_of(list(config.module_shapes())[-1])
    largest = max([recipe.lora.last_layers or 0, *recipe.tune.vary.get("last_layers", ())])
    if largest > layers:
        raise UsageError(
            f"last_layers {largest}: {recipe.base} has {layers} layers",
            hint=f"use {option('last_layers', layers)} or less; without it, all layers are adapted",
        )


def _tuning(
    recipe: Recipe, texts: int | None, classes: int, tokens_per_text: float | None
) -> PlannedTuning | None:
    """The cost of tuning; it raises UsageError if the data is too small for it."""
    ranks = tuned_ranks(recipe)
    if not ranks:
        return None
    held = tuning.tuning_size(recipe, texts, classes) if texts else None
    left = texts - held if texts and held else None
    steps = tuning.fewest_epochs(recipe) * recipe.train.steps_per_epoch(left) if left else None
    share = tuning.share_of(recipe, steps) if steps else recipe.tune.tuning_share or tuning.SHARE
    trials, length = tuning.cost(recipe, ranks, share)
    tokens = (
        round(length * mean(epochs_of(recipe)) * left * tokens_per_text) if left and tokens_per_text else None
    )
    # Trials train on the texts that are not held out.
    tuned = length * (left / texts if left and texts else 1.0)
    final = len(recipe.train.seeds) * len(recipe.lora.ranks) + (probe_of(recipe) is not None)
    return PlannedTuning(trials, held, tokens, tuned / (tuned + final))


def split_trials(
    specs: Sequence[AdapterSpec],
    recipe: Recipe,
    config_json: Mapping[str, Any],
    tokens_per_text: float,
    memory_bytes: int,
    number_bytes: int,
    workers: int = 1,
) -> tuple[tuple[AdapterSpec, ...], ...]:
    """Split any adapters into banks that fit in memory, at least one for each worker.

    The other arguments are those of `make`.
    """
    estimate = _estimate(recipe, parse_config(config_json), tokens_per_text, number_bytes)
    return _split(specs, estimate, memory_bytes, recipe.machine.bank_size, workers)


def _estimate(
    recipe: Recipe, config: ModelConfig, tokens_per_text: float | None, number_bytes: int
) -> Callable[[Sequence[AdapterSpec]], int]:
    """The expected peak memory of a bank, in bytes."""
    most, batch = recipe.train.max_length, recipe.train.batch_size
    longest = (tokens_per_text or most) * (1 + SPREAD / math.sqrt(batch))
    if recipe.train.windows and longest > most:
        batch = math.ceil(batch * longest / most)
    return partial(
        expected_memory,
        config=config,
        batch=batch,
        length=min(longest, most),
        number_bytes=number_bytes,
        base_dropout=recipe.train.base_dropout,
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
        # PEFT counts the head twice (original and trained copy), plus the embedding of an added pad token.
        total = config.parameters() + (0 if has_pad_token else config.d_model) + head + trainable
        merged = config.parameters() + head
        share = 100 * trainable / total
        yield PlannedAdapter(spec.name, spec.rank, spec.seed, trainable, total, share, merged, numbers[spec])


def _split(
    specs: Sequence[AdapterSpec],
    estimate: Callable[[Sequence[AdapterSpec]], int],
    memory_bytes: int | None,
    most: int | None = None,
    workers: int = 1,
) -> tuple[tuple[AdapterSpec, ...], ...]:
    """Split adapters into banks that fit in memory: at least one for each worker, and at most `most` in each.

    Linear probes (rank 0) form their own banks, which need no backward pass through the backbone. They take
    little time, so workers do not share them. A limit of 8 adapters divides 10 into 5 and 5, so that workers
    finish together.
    """
    banks: list[list[AdapterSpec]] = []
    probes, adapters = ([s for s in specs if bool(s.rank) == adapted] for adapted in (False, True))
    for group, least in ((probes, 1), (adapters, workers)):
        number = max(math.ceil(len(group) / most) if most else 1, min(least, len(group)))
        for i in range(number):
            bank: list[AdapterSpec] = []
            for spec in group[math.ceil(i * len(group) / number) : math.ceil((i + 1) * len(group) / number)]:
                if bank and memory_bytes is not None and estimate([*bank, spec]) > memory_bytes:
                    banks.append(bank)
                    bank = []
                bank.append(spec)
            if bank:
                banks.append(bank)
    return tuple(tuple(bank) for bank in banks)
