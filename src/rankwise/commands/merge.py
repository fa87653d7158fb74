"""The `merge-runs` command: runs of one recipe, each of some ranks or seeds -> a run as if trained at once.

The merged folder is put together as a run whose adapters are all trained, and then resumed. Baselines, cuts,
results and report are thus made by the same code as those of any sweep::

    A   r1-s1  r1-s2            C   adapters, logits and history of both, and a checkpoint
    B   r4-s1  r4-s2     -->        sweep --resume C
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from rankwise.commands.run_results import Results
from rankwise.commands.sweep import sweep
from rankwise.errors import UsageError, option
from rankwise.plan import PROBE
from rankwise.recipe import Recipe
from rankwise.schema import MergedRun, Timing, Trial
from rankwise.schema import Results as StoredResults
from rankwise.store import files
from rankwise.store.run_folder import RunFolder
from rankwise.training import checkpoint
from rankwise.training import resume as resuming
from rankwise.training.callbacks import Callback
from rankwise.training.checkpoint import BankPlan, Checkpoint, SweepState


@dataclass(frozen=True)
class _Part:
    """A run to merge."""

    run: RunFolder
    recipe: Recipe
    results: StoredResults
    timing: Timing

    @property
    def names(self) -> list[str]:
        """The adapters that it has trained or dropped."""
        return sorted(resuming.reached(self.results))


def merge_runs(
    runs: Sequence[PathLike[str] | str], output: PathLike[str] | str, callback: Callback | None = None
) -> tuple[Results, list[MergedRun]]:
    """Merge finished sweeps that differ in ranks and seeds only.

    Base and data must be at hand, because baselines and cuts are evaluated again.

    Args:
        runs: run folders; the baselines are those of the first one's first seed.
        output: run folder to write.
        callback: notified of progress.

    Returns:
        The results of the merged run, and which adapters came from which run.

    Raises:
        UsageError: fewer than two runs are given, one is not a finished sweep, they have another base, other
            data or another setting, two have the same adapter, a rank lacks a seed that another has, or the
            output exists.
    """
    if len(runs) < 2:
        raise UsageError(
            "at least two runs are needed", hint="name the runs to merge, and the folder to write"
        )
    parts = [_read(RunFolder(Path(run))) for run in runs]
    target = RunFolder(Path(output))
    if not files.is_free(target.path):
        raise UsageError(f"{target.path}: already exists", hint="choose another folder")
    for part in parts[1:]:
        _require_alike(parts[0], part)
    recipe = _merged_recipe(parts)
    merged = [MergedRun(folder=str(part.run.path), adapters=part.names) for part in parts]
    _assemble(target, parts, recipe)
    found = sweep(recipe, target.path, callback, resume=True)
    files.write_json(target.merged, [each.model_dump() for each in merged])
    return found, merged


def _read(run: RunFolder) -> _Part:
    if not run.is_complete():
        hint = f"finish it first: {resuming.again('sweep', run)}"
        raise UsageError(f"{run.path}: not a finished sweep", hint=hint)
    return _Part(run, Recipe.load(run.recipe), run.read_results(), run.read_timing())


def _require_alike(first: _Part, other: _Part) -> None:
    """Check that two runs differ in nothing but ranks and seeds."""
    where = f"{first.run.path} and {other.run.path}"
    ours, theirs = first.recipe.flat(), other.recipe.flat()
    for name, value in ours.items():
        if name not in resuming.CHANGEABLE and theirs[name] != value:
            raise UsageError(
                f"{where} have another recipe: {name} is {value!r} and {theirs[name]!r}",
                hint="only runs that differ in ranks and seeds can be merged",
            )
    before, after = first.results.fingerprint, other.results.fingerprint
    for name in sorted(before.keys() | after.keys()):  # either may have a split that the other lacks
        if before.get(name) != after.get(name):
            raise UsageError(
                f"{where} have another {resuming.called(name)}",
                hint="only runs of the same base and data can be merged",
            )


def _merged_recipe(parts: Sequence[_Part]) -> Recipe:
    """The recipe of all ranks and seeds; raises UsageError if an adapter of it is missing."""
    first = parts[0].recipe
    for part in parts[1:]:
        added = first.replace(ranks=part.recipe.lora.ranks, seeds=part.recipe.train.seeds)
        first = resuming.merge(first, added, part.run.path)
    owners: dict[str, Path] = {}
    for part in parts:
        for name in part.names:
            if name in owners:
                where = f"{owners[name]} and {part.run.path}"
                raise UsageError(f"{name} is in both {where}", hint="give every rank and seed once")
            owners[name] = part.run.path
    if missing := sorted(resuming.wanted(first) - owners.keys()):
        raise UsageError(
            f"the runs together lack {', '.join(missing)}",
            hint="every rank needs the same seeds; train these in a further run",
        )
    return first


def _assemble(target: RunFolder, parts: Sequence[_Part], recipe: Recipe) -> None:
    """Write a run folder in which everything is trained."""
    for part in parts:
        names = [row.name for row in part.results.adapters]
        if part is parts[0]:
            names.append(PROBE)
            _copy(part.run.tables, target.tables)
        for name in names:
            _copy(part.run.adapters / name, target.adapters / name)
            logits = part.run.logits / f"{name}.safetensors"
            if logits.is_file():
                files.copy(logits, target.logits / logits.name)
    states = [resuming.from_results(part.run, part.recipe, part.results) for part in parts]
    files.write_text(target.history, _history(parts, states))
    files.write_text(target.recipe, recipe.to_toml())
    checkpoint.save(target.checkpoint, Checkpoint(_state(target, recipe, parts, states)))


def _copy(source: Path, target: Path) -> None:
    for path in sorted(source.iterdir()) if source.is_dir() else ():
        files.copy(path, target / path.name)


def _state(
    target: RunFolder, recipe: Recipe, parts: Sequence[_Part], states: Sequence[SweepState]
) -> SweepState:
    banks = [BankPlan(adapters=bank.adapters) for state in states for bank in state.banks if bank.adapters]
    return states[0].model_copy(
        update={
            "recipe": recipe.model_dump(mode="json"),
            "banks": banks,
            "diverged": [each for state in states for each in state.diverged],
            "trials": _trials(parts),
            "history_bytes": files.size(target.history),
            "trained_tokens": sum(state.trained_tokens for state in states),
            "seconds": _added([state.seconds for state in states]),
            "train_seconds": _added([state.train_seconds for state in states]),
        }
    )


def _trials(parts: Sequence[_Part]) -> list[Trial]:
    """The trials of each rank, from the first run that has it.

    Raises:
        UsageError: a rank has other settings in another run.
    """
    found: dict[int, tuple[_Part, Mapping[str, object]]] = {}
    trials: list[Trial] = []
    for part in parts:
        if part.results.tuning is None:
            continue
        for chosen in part.results.tuning.chosen:
            if chosen.rank not in found:
                found[chosen.rank] = part, chosen.settings
                trials += [trial for trial in part.results.tuning.trials if trial.rank == chosen.rank]
            elif found[chosen.rank][1] != chosen.settings and chosen.rank:
                other, settings = found[chosen.rank]
                raise UsageError(
                    f"rank {chosen.rank} has {settings} in {other.run.path} and {dict(chosen.settings)} "
                    f"in {part.run.path}",
                    hint=f"train all seeds of a rank in one run, or at a given rate: {option('tune', False)}",
                )
    return trials


def _history(parts: Sequence[_Part], states: Sequence[SweepState]) -> str:
    """The lines of all runs: those of tuning, then bank by bank, then those of the first linear probe."""
    tuning, training, probe = list[str](), list[str](), list[str]()
    before = 0
    banks = sum(bool(bank.adapters) for state in states for bank in state.banks)
    for part, state in zip(parts, states, strict=True):
        numbers = [number for number, bank in enumerate(state.banks, 1) if bank.adapters]
        for line in part.run.history.read_text("utf-8").splitlines():
            value = json.loads(line)
            if value["bank"] == 0:
                tuning.append(line)
            elif value["adapters"] == [PROBE]:
                if part is parts[0]:
                    probe.append(json.dumps(value | {"bank": banks + 1}))
            elif value["bank"] in numbers:
                training.append(json.dumps(value | {"bank": before + 1 + numbers.index(value["bank"])}))
        before += len(numbers)
    return "".join(f"{line}\n" for line in (*tuning, *training, *probe))


def _added(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for seconds in each for name in seconds)
    return {name: sum(seconds.get(name, 0.0) for seconds in each) for name in names}
