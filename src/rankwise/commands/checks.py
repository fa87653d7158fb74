"""What the end of a sweep needs, checked before it trains."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from rankwise.errors import ModelError, ResourceError, UsageError, either
from rankwise.memory import trained_parameters
from rankwise.models import peft_format
from rankwise.models.peft_format import SavedAdapter
from rankwise.models.registry import parse_config
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.bank import HEAD, AdapterSpec
from rankwise.plan import Plan
from rankwise.recipe import Recipe, did_you_mean
from rankwise.store import files
from rankwise.training import checkpoint

LIBRARIES = {
    "peft": "adapters are written with it",
    "sklearn.svm": "the baselines need it",
    "matplotlib.figure": "the report needs it",
}
"""Modules that are first used when training is over, and what for."""
STATES = 4
"""Values in a checkpoint for each parameter in training: itself, its two averages, and its kept value."""


def require_libraries() -> None:
    """Check that the libraries that the end of a run needs can be imported.

    Raises:
        UsageError: one of them cannot.
    """
    for name, purpose in LIBRARIES.items():
        require_library(name, purpose)


def require_library(name: str, purpose: str) -> None:
    """Check that a module can be imported.

    Args:
        name: the module.
        purpose: what it is for, as the end of a sentence.

    Raises:
        UsageError: it cannot.
    """
    try:
        import_module(name)
    except Exception as error:  # broken installations raise all kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        package = name.partition(".")[0]
        hint = f"{sys.executable} -m pip install --force-reinstall {package}"
        if sys.flags.optimize > 1:
            reason = "it needs docstrings, which this Python has removed"
            hint = "unset PYTHONOPTIMIZE, or omit -OO"
        raise UsageError(f"{package} cannot be imported, and {purpose}: {reason}", hint=hint) from error


def require_room(folder: Path, plan: Plan, config_json: dict[str, Any]) -> None:
    """Check that the disk has room for the adapters of a run and for its checkpoints.

    Args:
        folder: folder of the run, which exists.
        plan: what is to be trained.
        config_json: the base model's config.json.

    Raises:
        ResourceError: it does not.
    """
    config = parse_config(config_json)
    sizes = [
        [4 * trained_parameters(spec, config, plan.classes) for spec in bank] for bank in plan.banks if bank
    ]
    adapters = sum(map(sum, sizes))
    checkpoints = checkpoint.NEWEST * STATES * max(map(sum, sizes))
    if (free := files.free_bytes(folder)) < adapters + checkpoints:
        raise ResourceError(
            f"{folder}: {free / 1e6:,.0f} MB are free, but the adapters need {adapters / 1e6:,.0f} MB "
            f"and the checkpoints {checkpoints / 1e6:,.0f} MB",
            hint=f"free disk space, or choose {either('another --out', 'a folder')} on another disk",
        )


def rehearse(
    folder: Path,
    specs: Sequence[AdapterSpec],
    adapter: SavedAdapter,
    config: dict[str, Any],
    tokenizer: Tokenizer,
) -> None:
    """Write an untrained adapter of each rank and load it again, so that a trained one is not lost.

    Args:
        folder: folder of the run, which exists.
        specs: the adapters that are to be trained.
        adapter: everything that they have in common: labels, base and maximum length.
        config: the base model's config.json.
        tokenizer: the tokenizer, whose files are copied into adapter folders.

    Raises:
        ModelError: such an adapter could not be loaded.
        ResourceError: it cannot be written.
    """
    shapes = parse_config(config).module_shapes()
    head = torch.zeros(len(adapter.labels), parse_config(config).d_model)
    for spec in {(each.rank, each.alpha, each.scale): each for each in specs}.values():
        state = {HEAD: head}
        for module in spec.modules[:1]:
            n_in, n_out = shapes[module]
            state[f"{module}.lora_A"] = torch.zeros(spec.rank, n_in)
            state[f"{module}.lora_B"] = torch.zeros(n_out, spec.rank)
        with files.temporary_folder(folder) as place:
            saved = peft_format.with_state(adapter, spec, state)
            peft_format.save(place, saved, config, tokenizer.files(), tokenizer.as_json())
            try:
                peft_format.load(place)
            except ModelError as error:
                what = error.message.removeprefix(f"{place}/")
                raise ModelError(f"adapter {spec.name} could not be loaded again: {what}") from None


def require_weighted_labels(recipe: Recipe, labels: Sequence[str]) -> None:
    """Check that the labels with weights of their own are labels of the data.

    Raises:
        UsageError: one is not.
    """
    given = recipe.train.class_weights
    unknown = [label for label in given if label not in labels] if isinstance(given, dict) else []
    if unknown:
        raise UsageError(
            f"class_weights: no text has the label {unknown[0]!r}{did_you_mean(unknown[0], labels)}",
            hint=f"the labels are {', '.join(labels)}",
        )
