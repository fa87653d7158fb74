"""The `search` command: tries settings on short schedules, trains the best ones in full, and keeps the best.

`rankwise.searching` decides what to train next and which trial is best. This module trains the trials in one
bank, whose places are filled again as soon as they are free, and writes the run folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path

from rankwise import hardware, searching
from rankwise import plan as planning
from rankwise.commands.bank import TrainBanks, TrainedBank, Training, train_banks, workers_here, workers_of
from rankwise.commands.locate import anchored
from rankwise.commands.material import Material, precision_name, read_material, require_same_inputs, versions
from rankwise.commands.results import measure
from rankwise.commands.stored import at_hand, with_stored_data
from rankwise.commands.sweep import (
    CHECKPOINT_MINUTES,
    default_folder,
    evaluate,
    explained,
    keep,
    open_journal,
)
from rankwise.errors import TrainingError, UsageError, option
from rankwise.models.registry import family_of
from rankwise.nn.bank import AdapterSpec
from rankwise.progress.choice import shown
from rankwise.recipe import Recipe
from rankwise.report import build
from rankwise.report import search as report
from rankwise.schema import SearchResults, Timing, Trial
from rankwise.searching import MOST_PLACES, Attempt, Search
from rankwise.store import files
from rankwise.store.run_folder import RunFolder
from rankwise.training import outcome as outcomes
from rankwise.training import resume as resuming
from rankwise.training import signals
from rankwise.training.callbacks import Callback, Callbacks
from rankwise.training.checkpoint import BankPlan, Checkpoint, SearchPlan, SweepState
from rankwise.training.journal import Clock, Journal, SaveEvery
from rankwise.training.outcome import Outcome
from rankwise.training.parallel import require_one
from rankwise.training.state import Kept
from rankwise.training.trainer import Trainer


def search(
    recipe: Recipe,
    folder: PathLike[str] | str | None = None,
    callback: Callback | None = None,
    *,
    trials: int | None = None,
    places: int | None = None,
    resume: bool = False,
    train: TrainBanks = train_banks,
) -> SearchResults:
    """Search the ranks, learning rates and varied settings of a recipe, and write a run folder.

    Trials train for a ninth of the schedule; the best third of them is trained for a third of it, and the
    best third of those in full (asynchronous successive halving; Li et al. 2020, arXiv 1810.05934). The best
    trial has the lowest log loss on validation. The test split is only used for the best, at the end.

    Args:
        recipe: what to search. All trials have its first seed.
        folder: output folder; by default `runs/DATA-BASE-TIME`.
        callback: notified of progress; by default, the progress is shown in a notebook and in IPython.
        trials: number of random draws of settings; by default, every combination is tried.
        places: number of adapters that train at once; by default, as many as fit in memory, at most 16. The
            places decide on the order of results, and so on what is promoted.
        resume: resume the search in `folder`. On the CPU, with the same number of threads, it ends
            bit-identical to an uninterrupted one.
        train: trains the banks, as for `sweep`. With another way than the default, trials are trained rung by
            rung instead of in places, and `places` is not used.

    Returns:
        The contents of search.json.

    Raises:
        UsageError: there is nothing to search, the schedule is too short, the folder is in use, or there is
            no matching search to resume.
        DataError: the data cannot be used.
        ModelError: the base model cannot be used.
        Unreachable: data or base must be downloaded, and the Hub does not answer.
        TrainingError: every trial has diverged.
        ResourceError: out of memory or disk space.
    """
    require_one("search")
    run = RunFolder(default_folder(recipe) if folder is None else Path(folder))
    with (
        shown(callback) as callback,
        explained("search", run, callback),
        files.locked(run.path),
        hardware.own_torch(),
    ):
        if resume:
            if trials is not None or places is not None:
                raise UsageError("a resumed search keeps its trials and places", hint="leave them out")
            results = _resume(recipe, run, callback, train)
        else:
            _require_log_loss(recipe)
            searching.candidates(recipe, trials)
            searching.places(places, MOST_PLACES)
            if not files.is_free(run.path):
                raise resuming.refusal(run)
            results = _search(recipe, run, callback, trials, places, None, train, train is not train_banks)
        callback.finished(run.path)
        return results


def _require_log_loss(recipe: Recipe) -> None:
    """Raise a UsageError if trials are to be compared by another metric."""
    if recipe.train.metric not in (None, "log-loss"):
        raise UsageError(
            f"metric {recipe.train.metric}: a search compares its trials by log loss",
            hint=f"leave {option('metric')} out; a sweep chooses learning rates, epochs and ranks by it",
        )


def _resume(recipe: Recipe, run: RunFolder, callback: Callback, train: TrainBanks) -> SearchResults:
    """Resume a search. If it is complete, only compare its inputs and return its results."""
    saved, complaints = resuming.load(run)
    for complaint in complaints:
        callback.note(complaint)
    run.require_begun()
    if complaints and saved is None and not run.search.exists():
        raise UsageError(
            f"{run.path}: no intact checkpoint is left", hint=f"give another {resuming.OUT} for a new search"
        )
    resuming.require_kind(run, saved.state if saved else None, "search")
    before = anchored(resuming.stored_recipe(run, saved.state if saved else None))
    before, recipe = at_hand(before, recipe, run)
    resuming.require_unchanged(before, anchored(recipe), run.path, resuming.MOVED)
    if saved and saved.state.search:
        plan = saved.state.search
        if train is not train_banks and not plan.in_waves:
            callback.note(
                "this search fills free places, so it goes on in this process and not on the cluster"
            )
        return _search(recipe, run, callback, plan.trials, plan.places, saved, train, plan.in_waves)
    results = run.read_search()
    state = SweepState(
        recipe=before.model_dump(mode="json"), fingerprint=results.fingerprint, environment={}, banks=[]
    )
    require_same_inputs(_as_sweep(recipe), run, state, callback)
    callback.note(f"{run.path} is complete: nothing is left to train")
    return results


def _search(
    recipe: Recipe,
    run: RunFolder,
    callback: Callback,
    trials: int | None,
    places: int | None,
    saved: Checkpoint | None,
    train: TrainBanks,
    in_waves: bool,
) -> SearchResults:
    """Run every stage in order."""
    clock = Clock()
    plain = _as_sweep(recipe)
    material = read_material(
        plain, run, callback, clock, saved, workers_of(train), workers_here(train) if in_waves else 1
    )
    recipe = anchored(recipe)
    material = with_stored_data(replace(material, recipe=recipe))
    recipe = material.recipe
    found = _planned(material, trials, places)
    if len(recipe.train.seeds) > 1:
        callback.note(f"all trials have seed {recipe.train.seeds[0]}; the other seeds are for a sweep")
    every = SaveEvery(60 * CHECKPOINT_MINUTES)
    plan = SearchPlan(trials=trials, places=found.places, in_waves=in_waves)
    journal = open_journal(material, callback, clock, every, saved, plan)
    if saved is None and not in_waves:
        first = [attempt.name for attempt in searching.next_attempts(found, [], [])]
        journal.state.trial_banks = [BankPlan(adapters=first)]
    files.write_text(run.recipe, recipe.to_toml())
    journal.save()

    stage = _Stage(found, _specs(found.attempts.values(), material), material, journal, callback)
    if plan.in_waves and stage.outcome is None:
        _in_waves(stage, train, material, journal, stage.progress())
    train_banks(stage.training(), lambda name: stage.outcome is not None, material, journal, stage.progress())
    if stage.outcome is None:
        raise TrainingError(
            "the loss of every trial became infinite or NaN",
            hint=f"lower {option('learning_rates')} or {option('precision', 'float32')} usually help",
        )
    results = _results(stage, stage.outcome)
    files.write_text(run.timing, _timing(journal).model_dump_json(indent=1) + "\n")
    files.write_text(run.search, results.model_dump_json(indent=1) + "\n")
    build.rebuild(run)
    files.remove(run.checkpoint)  # a run with results and no checkpoint is complete
    return results


def _as_sweep(recipe: Recipe) -> Recipe:
    """The recipe to read data and base with: a sweep with tuning would hold texts out of train."""
    return recipe.replace(tune=False, learning_rates=None, vary={})


def _planned(material: Material, trials: int | None, places: int | None) -> Search:
    """The trials of a search, and how many of them train at once."""
    recipe = material.recipe
    candidates = searching.candidates(recipe, trials)
    shares = searching.shares(recipe, _steps_per_epoch(material))
    full = [Attempt(candidate, len(shares), 1.0) for candidate in candidates]
    largest = max(_specs(full, material).values(), key=lambda spec: (spec.rank, len(spec.modules)))
    copies = [replace(largest, name=str(i)) for i in range(MOST_PLACES)]
    fitting = len(material.split(copies)[0])
    return Search(candidates, shares, searching.places(places, fitting), recipe.tune.finalists)


def _specs(attempts: Iterable[Attempt], material: Material) -> dict[str, AdapterSpec]:
    """Name -> adapter of each attempt."""
    recipe, modules = material.recipe, list(material.backbone.modules())
    targets = family_of(material.config).default_targets
    return {
        each.name: planning.adapter(
            recipe,
            each.candidate.rank,
            recipe.train.seeds[0],
            modules,
            targets,
            each.candidate.setting,
            each.name,
            each.share,
        )
        for each in attempts
    }


def _steps_per_epoch(material: Material) -> int:
    return material.recipe.train.steps_per_epoch(len(material.splits["train"]))


class _Stage:
    """The training of a search: one bank, whose places are filled again when adapters leave."""

    def __init__(
        self,
        found: Search,
        specs: dict[str, AdapterSpec],
        material: Material,
        journal: Journal,
        callback: Callback,
    ) -> None:
        self.search, self.specs = found, specs
        self.material, self.journal, self.callback = material, journal, callback
        self.outcome = self._stored()
        """The best trial, evaluated and saved; None until the search has ended."""

    def _stored(self) -> Outcome | None:
        """The outcome of a search that was stopped after its last step, if it is intact."""
        best = searching.best(self.search, self.journal.trials)
        material = self.material
        banks = [bank.adapters for bank in self.journal.state.trial_banks]
        if best is None or banks != [[best.name]]:
            return None
        sizes = {name: len(split) for name, split in material.evaluated.items()}
        return outcomes.load(
            material.run, best.name, material.fingerprint, sizes, len(material.corpus.labels)
        )

    @property
    def title(self) -> str:
        """The displayed name of the stage."""
        return f"search: {len(self.search.candidates)} trials"

    def progress(self) -> Callback:
        """The callback, which is told how many attempts have finished."""
        return _Progress(self.callback, self.title, self.search, self.journal)

    def training(self) -> Training:
        """The training of the bank."""
        return Training(
            stage="search",
            specs=self.specs,
            data=self.material.training_data,
            settings=self.material.recipe.train,
            title=lambda number: self.title,
            finish=self.finish,
            refill=self.refill,
        )

    def refill(self, trainer: Trainer) -> None:
        """Record what has finished or diverged, and start what is next in the free places."""
        journal = self.journal
        with signals.held():
            kept = trainer.kept()
            self.record({name: kept[name] for name in trainer.finished})
            ended = {trial.name for trial in journal.trials}
            training = [spec.name for spec in trainer.specs if spec.name not in ended]
            new = [self.specs[each.name] for each in self._next(training)]
            best = searching.best(self.search, journal.trials)
            best_names = [best.name] if best else []  # its weights are those that are saved in the end
            gone = {spec.name for spec in trainer.specs} & ended - set(best_names)
            trainer.drop(gone)
            if new:
                trainer.add(new)
            journal.state.trial_banks[0].adapters = [*best_names, *training, *(spec.name for spec in new)]
            for name in gone:
                journal.adapters.pop(name, None)

    def _next(self, training: Sequence[str]) -> list[Attempt]:
        """What to start now. After memory ran out, there are fewer places than at first."""
        plan = self.journal.state.search
        now = replace(self.search, places=plan.places) if plan else self.search
        return searching.next_attempts(now, self.journal.trials, training)

    def training_of_waves(self) -> Training:
        """The training of the banks of a rung. The state of the best attempt stays in the journal."""

        def is_best(name: str) -> bool:
            best = searching.best(self.search, self.journal.trials)
            return best is not None and best.name == name

        return replace(
            self.training(),
            finish=lambda trainer: self.record(trainer.kept()),
            refill=lambda trainer: None,
            keeps=is_best,
        )

    def record(self, kept: Mapping[str, Kept]) -> None:
        """Add attempts that have finished, with their snapshots, and those that have diverged."""
        journal, data = self.journal, self.material.training_data
        known = {trial.name for trial in journal.trials}
        for name, snapshot in kept.items():
            if name not in known:
                logits = snapshot.logits
                found = data.task.metrics("validation", data.validation_targets, logits, data.labels)
                journal.trials.append(self._trial(name, log_loss=found.log_loss, accuracy=found.accuracy))
        for lost in journal.diverged:
            if lost.name not in known:
                journal.trials.append(self._trial(lost.name, diverged=lost.step))

    def _trial(
        self,
        name: str,
        log_loss: float | None = None,
        accuracy: float | None = None,
        diverged: int | None = None,
    ) -> Trial:
        attempt = self.search.attempts[name]
        return Trial(
            name=name,
            rank=attempt.candidate.rank,
            rung=attempt.rung,
            settings=dict(attempt.candidate.setting),
            epochs=self.specs[name].epochs,
            log_loss=log_loss,
            accuracy=accuracy,
            diverged=diverged,
        )

    def finish(self, trainer: TrainedBank) -> None:
        """Evaluate the best trial on test, which is not used before, and save its adapter."""
        for outcome in evaluate(trainer, self.material, self.journal.clock, self.callback):
            keep(trainer, outcome, self.material)
            self.outcome = outcome


def _in_waves(
    stage: _Stage, train: TrainBanks, material: Material, journal: Journal, callback: Callback
) -> None:
    """Train the attempts rung by rung, each rung in as many banks as there is room for.

    A rung begins when the one below it has ended (Jamieson and Talwalkar 2016, arXiv 1502.07943), so the
    result does not depend on how many banks train at once, or in which order they end.
    """
    found = replace(stage.search, places=len(stage.search.attempts))
    while attempts := searching.next_attempts(found, journal.trials, []):
        names = [each.name for each in attempts]
        planned = [name for bank in journal.state.trial_banks for name in bank.adapters]
        if not set(planned) >= set(names):  # not the rest of a wave that was interrupted
            banks = material.split([stage.specs[name] for name in names], workers_of(train))
            journal.state.trial_banks = [BankPlan(adapters=[spec.name for spec in bank]) for bank in banks]
        ended = partial(_has_ended, stage, set(names))
        train(stage.training_of_waves(), ended, material, journal, callback)
        stage.record({})
    best = searching.best(found, journal.trials)
    journal.adapters = {name: state for name, state in journal.adapters.items() if best and name == best.name}
    journal.state.trial_banks = [BankPlan(adapters=[best.name])] if best else []
    journal.save()


def _has_ended(stage: _Stage, wave: Set[str], name: str) -> bool:
    """Whether an attempt is not part of a wave, or has finished or diverged."""
    return name not in wave or any(trial.name == name for trial in stage.journal.trials)


class _Progress(Callbacks):
    """Counts finished attempts instead of the steps of the longest schedule, which change all the time."""

    def __init__(self, callback: Callback, title: str, found: Search, journal: Journal) -> None:
        super().__init__(callback)
        self._title, self._expected, self._journal = title, found.expected, journal
        self._ranks = {name: attempt.candidate.rank for name, attempt in found.attempts.items()}
        self._stage = ""

    def bank(self, purpose: str, ranks: Mapping[str, int]) -> None:
        """Announce all attempts, as most of them enter the bank later."""
        super().bank(purpose, self._ranks)

    def begin(self, stage: str, total: int | None) -> None:
        """Start a stage."""
        self._stage = stage
        super().begin(stage, self._expected if stage == self._title else total)

    def advance(self, units: int) -> None:
        """Advance a stage other than the training of the trials."""
        if self._stage != self._title:
            super().advance(units)

    def step(self, adapters: Sequence[str], number: int, steps: int, losses: Sequence[float]) -> None:
        """Forward the losses of a step with the number of attempts that have finished."""
        ended = len(self._journal.trials)
        super().step(adapters, min(ended, self._expected), self._expected, losses)


def _results(stage: _Stage, outcome: Outcome) -> SearchResults:
    """The contents of search.json."""
    material, found, recipe = stage.material, stage.search, stage.material.recipe
    labels, plan = list(material.corpus.labels), stage.journal.state.search
    trials = searching.best_first(found, stage.journal.trials)
    measured = measure(outcome.logits, material.evaluated, labels, material.task)
    best = found.attempts[outcome.name].candidate
    return SearchResults(
        rankwise=version("rankwise"),
        base=material.base.name,
        task=material.task.name,
        data=recipe.data.name,
        labels=labels,
        texts={name: len(split) for name, split in material.splits.items()},
        notes=material.notes,
        device=str(material.device),
        precision=precision_name(material.precision),
        threads=hardware.threads(),
        versions=versions(),
        fingerprint=material.fingerprint,
        seed=recipe.train.seeds[0],
        draws=plan.trials if plan else None,
        places=plan.places if plan else found.places,
        shares=list(found.shares),
        steps=recipe.train.epochs * _steps_per_epoch(material),
        searched=searching.searched(found.candidates),
        trials=trials,
        importances=report.importances(trials, len(labels)),
        best=outcome.name,
        command=report.sweep_command(recipe, best.rank, best.setting),
        validation=measured["validation"],
        test=measured.get("test"),
    )


def _timing(journal: Journal) -> Timing:
    """The contents of timing.json."""
    seconds = journal.clock.reading()
    training = seconds.get("search", 0.0)
    return Timing(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds={stage: round(taken, 3) for stage, taken in seconds.items()},
        train_seconds={},
        tokens_per_second=journal.state.trained_tokens / training if training else 0.0,
    )
