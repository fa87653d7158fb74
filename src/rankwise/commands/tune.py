"""The tuning stage of a sweep: each rank's settings, chosen by log loss on texts that are taken from train.

`rankwise.tuning` decides which trials to train and which settings win. This module trains the trials, all
ranks in one bank, and records them in the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import sem

from rankwise import plan as planning
from rankwise import tuning
from rankwise.commands.bank import TrainBanks, TrainedBank, Training, train_banks, workers_of
from rankwise.commands.material import Material
from rankwise.errors import TrainingError, option
from rankwise.models.registry import family_of
from rankwise.nn.bank import AdapterSpec
from rankwise.plan import tuned_ranks
from rankwise.schema import MetricName, Trial, TunedRank, Tuning
from rankwise.training.callbacks import Callback
from rankwise.training.checkpoint import BankPlan
from rankwise.training.data import hold_out
from rankwise.training.journal import Journal
from rankwise.training.trainer import TrainingData
from rankwise.tuning import PlannedTrial, tuning_size


def tune(
    material: Material, journal: Journal, callback: Callback, train: TrainBanks = train_banks
) -> Tuning | None:
    """Choose the settings of every rank of the recipe; None if tuning is off.

    Trials that the journal already holds are not trained again.

    Raises:
        UsageError: there are too few training texts, or the short schedule has too few steps.
        TrainingError: every trial of a rank has diverged.
        ResourceError: even one adapter with one text at a time does not fit into memory.
    """
    ranks = tuned_ranks(material.recipe)
    if not ranks:
        return None
    data = tuning_data(material)
    per_epoch = material.recipe.train.steps_per_epoch(len(data.targets))
    share = tuning.share_of(material.recipe, tuning.fewest_epochs(material.recipe) * per_epoch)
    while trials := tuning.next_trials(material.recipe, ranks, journal.trials, share):
        _train_rung(trials, data, material, journal, callback, train)
    chosen = tuning.chosen(ranks, journal.trials)
    _check_finite(chosen, journal.trials)
    for each in chosen:
        if each.at_edge:
            callback.note(f"rank {each.rank}: the best learning rate is at the edge of those tried")
    return Tuning(
        texts=len(data.validation_targets),
        train_texts=len(data.targets),
        seed=tuning.SEED,
        metric=material.recipe.train.metric or "log-loss",
        varied=list(tuning.varied(material.recipe)),
        trials=journal.trials,
        chosen=chosen,
    )


def tuning_data(material: Material) -> TrainingData:
    """The texts that trials train on, and as validation texts those that they are judged by."""
    train = material.splits["train"]
    strata = np.array(material.task.strata(train.source.labels))
    size = tuning_size(material.recipe, len(train), len(np.unique(strata[strata >= 0])))
    kept, held = hold_out(strata, size, tuning.SEED)
    return material.to_train(*(train.pick(texts) for texts in (kept, held)))


def _train_rung(
    trials: Sequence[PlannedTrial],
    data: TrainingData,
    material: Material,
    journal: Journal,
    callback: Callback,
    train: TrainBanks,
) -> None:
    """Train trials of one rung and record their results."""
    specs = {trial.name: spec_of(trial, material) for trial in trials}
    planned = {name for bank in journal.state.trial_banks for name in bank.adapters}
    if not planned >= specs.keys():  # not the rest of a rung that was interrupted
        banks = material.split(list(specs.values()), workers_of(train))
        journal.state.trial_banks = [BankPlan(adapters=[spec.name for spec in bank]) for bank in banks]
    by_name = {trial.name: trial for trial in trials}

    def finish(trainer: TrainedBank) -> None:
        for name, kept in trainer.kept().items():
            _record(by_name[name], kept.logits, None, data, material, journal)

    def is_done(name: str) -> bool:
        return name not in by_name or any(trial.name == name for trial in journal.trials)

    training = Training(
        stage="tune",
        specs=specs,
        data=data,
        settings=material.recipe.train.model_copy(update={"keep": "last"}),
        title=lambda number: _title(trials, number, journal),
        finish=finish,
        validated_on="tuning texts",
    )
    train(training, is_done, material, journal, callback)
    for lost in journal.diverged:
        if lost.name in by_name:
            _record(by_name[lost.name], None, lost.step, data, material, journal)
    journal.state.trial_banks = []
    journal.save()


def _record(
    planned: PlannedTrial,
    logits: NDArray[np.float32] | None,
    diverged: int | None,
    data: TrainingData,
    material: Material,
    journal: Journal,
) -> None:
    """Add the result of a trial to the journal."""
    if any(trial.name == planned.name for trial in journal.trials):
        return
    metric = material.recipe.train.metric or "log-loss"
    measured = {} if logits is None else _measured(logits, data, metric)
    journal.trials.append(
        Trial(
            name=planned.name,
            rank=planned.rank,
            rung=planned.rung,
            settings=dict(planned.setting),
            epochs=spec_of(planned, material).epochs,
            metric=metric,
            diverged=diverged,
            added=planned.added,
            **{"log_loss": None, "accuracy": None} | measured,
        )
    )


def _measured(logits: NDArray[np.float32], data: TrainingData, metric: MetricName) -> dict[str, float | None]:
    """The metrics of a trial, and the standard errors of those that trials may be compared by."""
    targets, task, classes = data.validation_targets, data.task, len(data.labels)
    found = task.metrics("tuning", targets, logits, data.labels)
    # With logit adjustment, the adjusted logits are those that the loss makes probabilities of.
    scores = logits if data.adjustment is None else logits + data.adjustment
    losses = task.text_log_losses(targets, scores)
    predicted = task.judged({"validation": logits}, targets)["validation"].predicted
    values: dict[str, Callable[[], NDArray[np.float64]]] = {
        "accuracy": lambda: task.correct(predicted, targets).astype(np.float64),
        "macro-f1": lambda: task.macro_f1_pseudo_values(predicted[None], targets, classes)[0],
    }
    return {
        "log_loss": found.log_loss if data.adjustment is None else float(losses.mean()),
        "log_loss_error": float(sem(losses)),
        "accuracy": found.accuracy,
        "macro_f1": found.macro_f1,
        "metric_error": float(sem(values[metric]())) if metric in values else None,
    }


def spec_of(trial: PlannedTrial, material: Material) -> AdapterSpec:
    """The adapter that a trial trains."""
    modules, targets = list(material.backbone.modules()), family_of(material.config).default_targets
    return planning.adapter(
        material.recipe, trial.rank, tuning.SEED, modules, targets, trial.setting, trial.name, trial.share
    )


def _title(trials: Sequence[PlannedTrial], number: int, journal: Journal) -> str:
    """Such as `tune: 20 trials`, or `tune: 20 trials 1/2`."""
    banks = len(journal.state.trial_banks)
    return f"tune: {len(trials)} trial{'s' * (len(trials) > 1)}" + (f" {number}/{banks}" if banks > 1 else "")


def _check_finite(chosen: Sequence[TunedRank], trials: Sequence[Trial]) -> None:
    losses = {trial.name: trial.loss for trial in trials}
    lost = [each for each in chosen if losses[each.trial] is None]
    if lost:
        ranks = ", ".join(str(each.rank) for each in lost)
        raise TrainingError(
            f"rank{'s' * (len(lost) > 1)} {ranks}: the loss became infinite or NaN at every learning rate "
            f"tried, the lowest being {lost[0].settings['learning_rate']:g}",
            hint=f"lower {option('learning_rates')} or {option('precision', 'float32')} usually help",
        )


def with_tuned_plan(found: Tuning | None, material: Material, journal: Journal) -> Material:
    """The same material with the plan of the settings that were chosen."""
    if found is None:
        return material
    tuned = {each.rank: each.settings for each in found.chosen}
    decided = [bank.adapters for bank in journal.banks]
    return replace(material, plan=material.planned(tuned=tuned, decided=decided))
