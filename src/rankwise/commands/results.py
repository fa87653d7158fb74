"""The final outputs of a sweep: results.json, timing.json and predictions.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankwise import hardware
from rankwise.commands import baselines as baseline_models
from rankwise.commands.cut_ranks import EvaluatedCut
from rankwise.commands.material import Material, precision_name, versions
from rankwise.data.writers import csv_line
from rankwise.models.peft_format import WEIGHTS, stored_temperature
from rankwise.nn.bank import AdapterSpec
from rankwise.plan import PlannedAdapter, own_settings
from rankwise.schema import AdapterResult, Baseline, CutResult, Metrics, Results, Timing, Tuning
from rankwise.tasks.single import SINGLE
from rankwise.tasks.task import Decisions, Task
from rankwise.training.data import EncodedSplit
from rankwise.training.journal import Journal
from rankwise.training.outcome import Outcome

Splits = Mapping[str, EncodedSplit]
"""The evaluated splits: validation, and test if there is one."""
Logits = Mapping[str, NDArray[np.float32]]
"""Evaluated split -> (texts, classes)."""


def predictions_csv(
    splits: Splits,
    labels: Sequence[str],
    outcomes: Sequence[Outcome],
    baselines: Mapping[str, Logits],
    cuts: Sequence[EvaluatedCut] = (),
    task: Task = SINGLE,
) -> str:
    """For every evaluated text, the label and probability of each adapter, then the label of the others.

    Cells that a spreadsheet could read as formulas are made safe; `data.writers.plain` restores them.
    """
    of_cuts = {cut.adapter.spec.name: cut.logits for cut in cuts}
    others = {name: decide(logits, splits, task) for name, logits in (dict(baselines) | of_cuts).items()}
    decided = [decide(outcome.logits, splits, task) for outcome in outcomes]
    columns = [column for outcome in outcomes for column in (outcome.name, f"{outcome.name} probability")]
    lines = [csv_line(["split", "source", "text", "label", *columns, *others], safe=True)]
    for name, split in splits.items():
        found = [of_adapter[name].predicted for of_adapter in decided]
        sure = [
            task.confidence(outcome.logits[name], predicted)
            for outcome, predicted in zip(outcomes, found, strict=True)
        ]
        places = split.source.places or [""] * len(split)
        for i, (place, text) in enumerate(zip(places, split.source.texts, strict=True)):
            pairs = zip(found, sure, strict=True)
            cells = [cell for said, p in pairs for cell in (task.cell(said[i], labels), f"{p[i]:.4f}")]
            cells += [task.cell(of_other[name].predicted[i], labels) for of_other in others.values()]
            lines.append(
                csv_line([name, place, text, task.cell(split.targets[i], labels), *cells], safe=True)
            )
    return "".join(lines)


def decide(logits: Logits, splits: Splits, task: Task) -> dict[str, Decisions]:
    """Evaluated split -> the decisions of a classifier with these logits."""
    return task.judged({name: logits[name] for name in splits}, splits["validation"].targets)


def adapter_result(
    planned: PlannedAdapter,
    spec: AdapterSpec,
    outcome: Outcome,
    measured: Mapping[str, Metrics],
    *,
    settings: Mapping[str, Any],
    bank: int,
    folder: Path,
) -> AdapterResult:
    """An adapter's row of results.json.

    Args:
        planned: its row of the plan.
        spec: the adapter.
        outcome: its training outcome.
        measured: split -> metrics.
        settings: its settings, by name in the recipe.
        bank: number of the bank that trained it, from 1.
        folder: folder of the adapter.
    """
    return AdapterResult(
        alpha=spec.alpha,
        scale=spec.scale,
        settings=dict(settings),
        adapter_bytes=(folder / WEIGHTS).stat().st_size,
        train_loss=outcome.train_loss,
        kept_epoch=outcome.kept_epoch,
        temperature=stored_temperature(folder),
        validation=measured["validation"],
        test=measured.get("test"),
        **asdict(planned) | {"bank": bank},
    )


def baseline(
    name: str,
    logits: Logits,
    splits: Splits,
    labels: Sequence[str],
    task: Task = SINGLE,
    *,
    probabilistic: bool = True,
) -> Baseline:
    """A baseline's row of results.json, from its logits on each evaluated split, (texts, classes)."""
    measured = measure(logits, splits, labels, task, probabilistic=probabilistic)
    return Baseline(name=name, validation=measured["validation"], test=measured.get("test"))


def cut_result(cut: EvaluatedCut, splits: Splits, labels: Sequence[str], task: Task) -> CutResult:
    """A cut adapter's row of results.json."""
    measured, adapter = measure(cut.logits, splits, labels, task), cut.adapter
    return CutResult(
        name=adapter.spec.name,
        from_rank=adapter.from_rank,
        rank=adapter.spec.rank,
        seed=adapter.spec.seed,
        kept=adapter.kept,
        validation=measured["validation"],
        test=measured.get("test"),
    )


def measure(
    logits: Logits,
    splits: Splits,
    labels: Sequence[str],
    task: Task = SINGLE,
    *,
    probabilistic: bool = True,
) -> dict[str, Metrics]:
    """Split -> metrics of a classifier's logits, (texts, classes)."""
    decided = decide(logits, splits, task)
    return {
        name: task.metrics(
            name, split.targets, logits[name], labels, decided[name], probabilistic=probabilistic
        )
        for name, split in splits.items()
    }


STAGES = ("data", "base", "tokens", "load", "tune", "train", "evaluate", "baselines", "write", "total")


def sweep_results(
    material: Material,
    journal: Journal,
    trained: Sequence[Outcome],
    baselines: Mapping[str, Logits],
    tuning: Tuning | None,
    cuts: Sequence[EvaluatedCut] = (),
) -> Results:
    """The contents of results.json."""
    planned = dict(zip(material.plan.names, material.plan.rows, strict=True))
    tuned = {each.rank: each.settings for each in tuning.chosen} if tuning else {}
    return Results(
        rankwise=version("rankwise"),
        base=material.base.name,
        task=material.task.name,
        labels=list(material.corpus.labels),
        texts={name: len(split) for name, split in material.splits.items()},
        notes=material.notes,
        device=str(material.device),
        precision=precision_name(material.precision),
        threads=hardware.threads(),
        versions=versions(),
        windowed=material.windowed,
        fingerprint=material.fingerprint,
        adapters=[
            adapter_result(
                planned[outcome.name],
                material.specs[outcome.name],
                outcome,
                measure(outcome.logits, material.evaluated, material.corpus.labels, material.task),
                settings=own_settings(material.recipe, tuned.get(planned[outcome.name].rank, {})),
                bank=journal.bank_of(outcome.name),
                folder=material.run.adapters / outcome.name,
            )
            for outcome in trained
        ],
        baselines=[
            baseline(
                name,
                logits,
                material.evaluated,
                material.corpus.labels,
                material.task,
                probabilistic=name != baseline_models.SVM,
            )
            for name, logits in baselines.items()
        ],
        cuts=[cut_result(cut, material.evaluated, material.corpus.labels, material.task) for cut in cuts],
        diverged=[dropped for dropped in journal.diverged if dropped.name in planned],
        tuning=tuning,
    )


def sweep_timing(journal: Journal, results: Results) -> Timing:
    """The contents of timing.json."""
    seconds = journal.clock.reading()
    training = seconds.get("tune", 0.0) + seconds.get("train", 0.0)
    by_adapter = journal.state.train_seconds
    return Timing(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds={stage: round(seconds.get(stage, 0.0), 3) for stage in STAGES},
        train_seconds={row.name: round(by_adapter.get(row.name, 0.0), 3) for row in results.adapters},
        tokens_per_second=journal.state.trained_tokens / training if training else 0.0,
    )
