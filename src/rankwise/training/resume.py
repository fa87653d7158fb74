"""Resuming a run: checks that recipe, data and base match, and finds what is already trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rankwise.errors import UsageError, either, option
from rankwise.recipe import Recipe
from rankwise.schema import Results
from rankwise.store import files
from rankwise.store.run_folder import RunFolder, command
from rankwise.training import checkpoint
from rankwise.training.checkpoint import BankPlan, Checkpoint, SweepState
from rankwise.training.data import EncodedSplit

MOVED = ("base", "data", "validation", "test", "device", "memory_gb", "bank_size")
"""Settings of a machine: its devices and memory, and paths, whose content is compared (`fingerprint`)."""
CHANGEABLE = ("ranks", "seeds", "on_nan", *MOVED)
"""Settings that may change on resume, because they do not affect the adapters trained so far."""
OUT = either("--out", "folder")
"""The argument that names a run folder."""
SHOWS = either("prints its table", "returns its results")
"""What a resumed command does if nothing is left to train."""


def merge(before: Recipe, given: Recipe, where: Path) -> Recipe:
    """Merge a run's recipe with the recipe given on resume, which may add ranks and seeds.

    Args:
        before: the recipe that the run was started with.
        given: the recipe given now. Ranks and seeds that it omits stay in the run.
        where: path of the run, for the error message.

    Raises:
        UsageError: a setting that must not change differs.
    """
    require_unchanged(before, given, where, CHANGEABLE)
    ranks, seeds = _union(before.lora.ranks, given.lora.ranks), _union(before.train.seeds, given.train.seeds)
    if list(before.lora.ranks) == sorted(before.lora.ranks):
        ranks = tuple(sorted(ranks))
    return given.replace(ranks=ranks, seeds=seeds)


def require_unchanged(before: Recipe, given: Recipe, where: Path, changeable: Sequence[str]) -> None:
    """Check that a recipe given on resume is the run's own, but for some settings.

    Raises:
        UsageError: another setting differs.
    """
    now = given.flat()
    for name, old in before.flat().items():
        new = now[name]
        if name not in changeable and new != old:
            raise UsageError(
                f"{where}: {name} is {old!r} in this run, and {new!r} was asked for",
                hint=f"a resumed run takes other values of {', '.join(changeable)} only; "
                f"give another {OUT} for a new run",
            )


def _union(old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
    """The first seed stays first, because it determines the validation split."""
    return (*old, *(value for value in new if value not in old))


def fingerprint(
    splits: Mapping[str, EncodedSplit],
    labels: Sequence[str],
    config: Path,
    weights_sha256: str,
    tokenizer: Sequence[Path],
) -> dict[str, str]:
    """SHA-256 hashes of the inputs that determine a run's results besides its recipe.

    Args:
        splits: name -> split.
        labels: class names in the model's order.
        config: the base model's config.json.
        weights_sha256: digest of the base model's weights.
        tokenizer: the tokenizer's files, which are copied into the adapters' folders.

    Returns:
        For each split, the hash of its token ids and labels; for `labels`, of the class names; for `base`,
        of its config.json and weights; for `tokenizer`, of its files.
    """
    hashes = {}
    for name, split in splits.items():
        digest = hashlib.sha256(np.array([len(split), *map(len, split.ids)], dtype="<i8").tobytes())
        for ids in (*split.ids, split.targets):
            digest.update(np.ascontiguousarray(ids, dtype="<i8").tobytes())
        hashes[name] = digest.hexdigest()
    return hashes | {
        "labels": _hash(json.dumps(list(labels))),
        "base": _hash(f"{files.sha256(config)} {weights_sha256}"),
        "tokenizer": _hash("\n".join(f"{path.name} {files.sha256(path)}" for path in tokenizer)),
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def require_same(found: Mapping[str, str], before: Mapping[str, str], where: Path) -> None:
    """Check that data and base are the ones that a run was started with.

    Raises:
        UsageError: an input differs or is missing.
    """
    named = {
        "base": "the base model is",
        "labels": "the label names, or their order, are",
        "tokenizer": "the tokenizer's files are",
    }
    for name in sorted(before.keys() | found.keys()):
        if found.get(name) != before.get(name):
            what = named.get(name, f"the {name} split is")
            raise UsageError(
                f"{where}: {what} not what this run was started with",
                hint=f"restore the original, or give another {OUT} for a new run",
            )


def wanted(recipe: Recipe) -> set[str]:
    """Names of the adapters that a recipe specifies."""
    return {f"r{rank}-s{seed}" for rank in recipe.lora.ranks for seed in recipe.train.seeds}


def reached(results: Results) -> set[str]:
    """Names of the adapters that a complete run has trained, including those that were dropped."""
    return {row.name for row in results.adapters} | {dropped.name for dropped in results.diverged}


def from_results(run: RunFolder, recipe: Recipe, results: Results) -> SweepState:
    """The sweep state of a complete run that is to be extended.

    Args:
        run: folder of the run.
        recipe: the recipe that it was started with.
        results: its results.json.
    """
    timing = run.read_timing()
    banks: dict[int, list[str]] = {}
    for row in results.adapters:
        banks.setdefault(row.bank, []).append(row.name)
    banks.setdefault(1, []).extend(dropped.name for dropped in results.diverged)
    return SweepState(
        recipe=recipe.model_dump(mode="json"),
        fingerprint=results.fingerprint,
        environment=environment(results.versions, results.device, results.precision, results.threads),
        banks=[BankPlan(adapters=banks.get(number, [])) for number in range(1, 1 + max(banks))],
        diverged=results.diverged,
        trials=results.tuning.trials if results.tuning else [],
        history_bytes=files.size(run.history),
        trained_tokens=round(
            timing.tokens_per_second * (timing.seconds.get("tune", 0.0) + timing.seconds["train"])
        ),
        seconds=timing.seconds,
        train_seconds=timing.train_seconds,
    )


def settled(state: SweepState, recipe: Recipe, run: RunFolder) -> list[BankPlan]:
    """The banks of a run that stay as they are when it is resumed.

    On the same machine these are all of them, so that the result is bit-identical. If the settings of the
    machine have changed, the banks after the last one that has started are planned again.

    Args:
        state: the last checkpoint's.
        recipe: the one given on resume.
        run: folder of the run, with its finished adapters.
    """
    if state.recipe.get("machine") == recipe.machine.model_dump(mode="json"):
        return state.banks
    finished = {path.name for path in run.adapters.iterdir()} if run.adapters.is_dir() else set()
    started = finished | state.progress.keys() | {adapter.name for adapter in state.diverged}
    numbers = [number for number, bank in enumerate(state.banks, 1) if started.intersection(bank.adapters)]
    return state.banks[: max(numbers, default=0)]


def environment(
    versions: Mapping[str, str], device: str, precision: str, threads: int, processes: int = 1
) -> dict[str, str]:
    """What may change the last digits of a result even with the same recipe."""
    found = dict(versions) | {"device": device, "precision": precision, "threads": str(threads)}
    return found | ({"processes": str(processes)} if processes > 1 else {})


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The differences between two environments and what they mean; empty if there are none.

    >>> changes({"torch": "2.10"}, {"torch": "2.11"})
    'torch 2.10 -> 2.11; the last digits may differ'
    """
    before, now = ({"processes": "1"} | dict(each) for each in (before, now))
    changed = ", ".join(
        f"{name} {before.get(name)} -> {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    )
    kinds = [environment.get("device", "").partition(":")[0] for environment in (before, now)]
    if "cuda" in kinds and kinds[0] != kinds[1]:
        return f"{changed}; dropout is drawn in another way there, so the results may differ"
    return changed and f"{changed}; the last digits may differ"


def kind(run: RunFolder, state: SweepState | None) -> Literal["sweep", "search"]:
    """What was started in a folder; `state` is that of its last checkpoint."""
    return "search" if run.search.exists() or (state and state.search) else "sweep"


def require_kind(run: RunFolder, state: SweepState | None, wanted: Literal["sweep", "search"]) -> None:
    """Check that a folder holds what is to be resumed.

    Raises:
        UsageError: it contains a search instead of a sweep, or the other way round.
    """
    if (found := kind(run, state)) != wanted:
        raise UsageError(
            f"{run.path}: contains a {found}, not a {wanted}",
            hint=f"{again(found, run)} resumes it",
        )


def refusal(run: RunFolder) -> UsageError:
    """The error for starting a sweep or a search in a folder that is not empty."""
    if not run.is_begun():
        return UsageError(f"{run.path}: already exists", hint="choose another name, or remove it")
    found, _ = checkpoint.load_last(run.checkpoint)
    state = found.state if found else None
    resumed = again(kind(run, state), run)
    if run.search.exists() and not run.checkpoint.exists():
        return UsageError(
            f"{run.path}: contains a finished search",
            hint=f"{resumed} {SHOWS}; or choose another {OUT}",
        )
    if run.is_complete():
        return UsageError(
            f"{run.path}: contains a finished sweep",
            hint=f"{resumed} {SHOWS}, with other {option('ranks')} or {option('seeds')} it trains more; "
            f"or choose another {OUT}",
        )
    is_search = kind(run, state) == "search"
    what = "contains an unfinished search" if is_search else "contains an unfinished sweep"
    return UsageError(
        f"{run.path}: {what}{_how_far(state) if state else ''}",
        hint=f"{resumed} resumes it; or choose another {OUT}",
    )


def again(verb: str, run: RunFolder) -> str:
    """The command that resumes a run, for an error or a `Note`."""
    return either(command(verb, "--resume", run.path), f"{verb}(recipe, {str(run.path)!r}, resume=True)")


def _how_far(state: SweepState) -> str:
    steps = {name: adapter.steps for name, adapter in state.progress.items() if adapter.steps}
    if not steps:
        return ""
    return f", saved with {', '.join(steps)} at step {max(steps.values()):,}"


def load(run: RunFolder) -> tuple[Checkpoint | None, list[str]]:
    """The run's newest intact checkpoint, and a message for each newer, damaged one."""
    return checkpoint.load_last(run.checkpoint)


def stored_recipe(run: RunFolder, state: SweepState | None) -> Recipe:
    """The recipe that a run was started with, from its checkpoint or else from recipe.toml.

    Raises:
        UsageError: there is no run, or its recipe cannot be read.
    """
    run.require_begun()
    values: dict[str, Any] | None = state.recipe if state else None
    return Recipe(str(run.checkpoint), **values) if values else Recipe.load(run.recipe)


def called(name: str) -> str:
    """What a part of a fingerprint is called.

    >>> called("base"), called("train")
    ('base model', 'train split')
    """
    words = {"base": "base model", "labels": "list of labels", "tokenizer": "tokenizer"}
    return words.get(name, f"{name} split")
