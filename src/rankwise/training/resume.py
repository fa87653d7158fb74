"""Going on with a run: whether recipe, data and base are still its own, and what it has already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwise.errors import UsageError
from rankwise.nn.batch import Ids
from rankwise.recipe import Recipe
from rankwise.schema import Results
from rankwise.store import files
from rankwise.store.run_folder import RunFolder
from rankwise.training import checkpoint
from rankwise.training.checkpoint import BankPlan, JobState

CHANGEABLE = ("ranks", "seeds", "on_nan", "memory_gb")
"""Settings that may be others when a run goes on: they leave alone what was trained."""


def merge(begun: Recipe, given: Recipe, where: Path) -> Recipe:
    """The recipe to go on with: the run's own, with the ranks and seeds that were added.

    Args:
        begun: what the run was begun with.
        given: what is asked for now. Ranks and seeds that it leaves out stay in the run.
        where: the run, for the message.

    Raises:
        UsageError: another setting is not the run's.
    """
    before, now = begun.flat(), given.flat()
    for name, old in before.items():
        new = now[name]
        if name not in CHANGEABLE and new != old:
            raise UsageError(
                f"{where}: {name} is {old!r} in this run, and {new!r} was asked for",
                hint=f"--resume takes other values of {', '.join(CHANGEABLE)} only; "
                "give another --out for a new run",
            )
    ranks, seeds = _union(begun.lora.ranks, given.lora.ranks), _union(begun.train.seeds, given.train.seeds)
    if list(begun.lora.ranks) == sorted(begun.lora.ranks):
        ranks = tuple(sorted(ranks))
    return given.replace(ranks=ranks, seeds=seeds)


def _union(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
    """The first seed stays first, since it cuts the validation split."""
    return (*old, *(each for each in new if each not in old))


def fingerprint(splits: Mapping[str, tuple[Sequence[Ids], NDArray[np.int64]]], base: Path) -> dict[str, str]:
    """SHA-256 of each split's token ids and labels, and of the base's weights files.

    Args:
        splits: name -> token ids of each text, label ids (texts,).
        base: the folder of the base model.
    """
    found = {}
    for name, (texts, labels) in splits.items():
        digest = hashlib.sha256(np.array([len(labels), *map(len, texts)], dtype="<i8").tobytes())
        for ids in (*texts, labels):
            digest.update(np.ascontiguousarray(ids, dtype="<i8").tobytes())
        found[name] = digest.hexdigest()
    weights = [f"{path.name} {files.sha256(path)}" for path in sorted(base.glob("*.safetensors"))]
    return found | {"base": hashlib.sha256("\n".join(weights).encode()).hexdigest()}


def require_same(found: Mapping[str, str], begun: Mapping[str, str], where: Path) -> None:
    """Check that data and base are those that a run was begun with.

    Raises:
        UsageError: one is not, or is missing.
    """
    for name in sorted(begun.keys() | found.keys()):
        if found.get(name) != begun.get(name):
            what = "the base model's weights are" if name == "base" else f"the {name} split is"
            raise UsageError(
                f"{where}: {what} not what this run was begun with",
                hint="bring it back as it was, or give another --out to begin anew",
            )


def wanted(recipe: Recipe) -> set[str]:
    """Names of the adapters that a recipe asks for."""
    return {f"r{rank}-s{seed}" for rank in recipe.lora.ranks for seed in recipe.train.seeds}


def reached(results: Results) -> set[str]:
    """Names of the adapters that a complete run has trained, those that were dropped included."""
    return {row.name for row in results.adapters} | {each.name for each in results.diverged}


def is_line_of(line: str, names: Container[str]) -> bool:
    """Whether a line of history.jsonl is of these adapters alone."""
    try:
        return all(name in names for name in json.loads(line)["adapters"])
    except (ValueError, KeyError, TypeError):
        return False


def from_results(run: RunFolder, recipe: Recipe, results: Results) -> JobState:
    """The state of a run that was complete, to be extended.

    Args:
        run: its folder.
        recipe: what it was begun with.
        results: its results.json.
    """
    timing = run.read_timing()
    banks: dict[int, list[str]] = {}
    for row in results.adapters:
        banks.setdefault(row.bank, []).append(row.name)
    banks.setdefault(1, []).extend(each.name for each in results.diverged)
    return JobState(
        recipe=recipe.model_dump(mode="json"),
        fingerprint=results.fingerprint,
        environment=environment(results.versions, results.device, results.precision, results.threads),
        banks=[BankPlan(adapters=banks.get(number, [])) for number in range(1, 1 + max(banks))],
        diverged=results.diverged,
        history_bytes=files.size(run.history),
        trained_tokens=round(timing.tokens_per_second * timing.seconds["train"]),
        seconds=timing.seconds,
        train_seconds=timing.train_seconds,
    )


def environment(versions: Mapping[str, str], device: str, precision: str, threads: int) -> dict[str, str]:
    """What may change the last digits of a result though the recipe is the same."""
    return dict(versions) | {"device": device, "precision": precision, "threads": str(threads)}


def changes(begun: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs between two environments, as `torch 2.10 -> 2.11`; empty where nothing does."""
    return ", ".join(
        f"{name} {begun.get(name)} -> {now.get(name)}"
        for name in sorted(begun.keys() | now.keys())
        if begun.get(name) != now.get(name)
    )


def refusal(run: RunFolder) -> UsageError:
    """Why a sweep cannot begin in a folder that holds something, and how to go on."""
    again = f"rankwise sweep --resume {run.path}"
    if not run.is_begun():
        return UsageError(f"{run.path}: is there already", hint="choose another name, or remove it")
    if run.is_complete():
        return UsageError(
            f"{run.path}: holds a finished sweep",
            hint=f"{again} prints its table, with --ranks or --seeds it trains more; or choose another --out",
        )
    found, _ = checkpoint.load_last(run.checkpoint)
    return UsageError(
        f"{run.path}: holds a sweep that did not end{_how_far(found.state) if found else ''}",
        hint=f"{again} goes on with it; or choose another --out",
    )


def _how_far(state: JobState) -> str:
    begun = {name: each.steps for name, each in state.progress.items() if each.steps}
    if not begun:
        return ""
    return f", saved with {', '.join(begun)} at step {max(begun.values()):,}"


def stored_recipe(run: RunFolder, state: JobState | None) -> Recipe:
    """The recipe that a run was begun with: its checkpoint's, else its recipe.toml.

    Raises:
        UsageError: there is no run, or its recipe cannot be read.
    """
    run.require_begun()
    values: dict[str, Any] | None = state.recipe if state else None
    return Recipe(str(run.checkpoint), **values) if values else Recipe.load(run.recipe)
