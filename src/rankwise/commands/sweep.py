"""`rankwise sweep`: a recipe in, a run folder out.

Read it from the top: data, base, plan, training bank by bank, baselines, results, report.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankwise import hardware
from rankwise.commands import baselines as baseline_models
from rankwise.commands.results import adapter_result, baseline, measure, predictions_csv
from rankwise.data import load as data
from rankwise.data.audit import write as write_data_report
from rankwise.errors import ResourceError, TrainingError
from rankwise.models import base as models
from rankwise.models import peft_format
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import AdapterSpec
from rankwise.plan import Plan
from rankwise.plan import make as make_plan
from rankwise.recipe import Recipe
from rankwise.report import build
from rankwise.schema import Diverged, Results, Timing
from rankwise.store import files
from rankwise.store.run_folder import RunFolder, command, slug
from rankwise.training import outcome as outcomes
from rankwise.training import resume as resuming
from rankwise.training.callbacks import Callback
from rankwise.training.checkpoint import BankPlan, Checkpoint, SweepState
from rankwise.training.data import EncodedSplit, balanced_weights
from rankwise.training.journal import Clock, Journal, SaveEvery
from rankwise.training.outcome import Outcome
from rankwise.training.trainer import Failure, Trainer, TrainingData

STAGES = ("data", "base", "tokens", "load", "train", "evaluate", "baselines", "write", "total")
MEMORY_SHARE = 0.6
"""Part of the free memory that a bank may take where the recipe names no limit."""
CHECKPOINT_MINUTES = 10.0
"""Minutes between two checkpoints; there is one after every epoch as well."""


def sweep(
    recipe: Recipe,
    folder: Path | str | None = None,
    callback: Callback | None = None,
    *,
    resume: bool = False,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    checkpoint_steps: int | None = None,
) -> Results:
    """Train every rank and seed of a recipe, evaluate them, and write a run folder.

    Args:
        recipe: what to train.
        folder: where to write; by default `runs/DATA-BASE-TIME`.
        callback: told of progress.
        resume: go on with the run in `folder`, which `recipe` may extend by ranks and seeds. What is
            finished is not trained again; what was interrupted ends bit-identical to a run that never
            stopped (on the CPU, with the same number of threads).
        checkpoint_minutes: minutes between two checkpoints; there is one after every epoch as well.
        checkpoint_steps: steps between two checkpoints, to save by number of steps too.

    Returns:
        What results.json holds.

    Raises:
        UsageError: the folder is in use, the recipe does not fit the model, or there is no run, or
            another one, to resume.
        DataError: the data cannot be used.
        ModelError: the base model cannot be used.
        Unreachable: data or base must be fetched and the Hub does not answer.
        TrainingError: no adapter is left whose loss is a number, or the recipe wants to stop at the first.
        ResourceError: memory or disk is full.
    """
    run, every = (
        RunFolder(folder or default_folder(recipe)),
        SaveEvery(60 * checkpoint_minutes, checkpoint_steps),
    )
    callback = callback or Callback()
    with _explained(run, callback), files.locked(run.path):
        if resume:
            return _resume(recipe, run, callback, every)
        if not files.is_free(run.path):
            raise resuming.refusal(run)
        return _sweep(recipe, run, callback, every, None)


def default_folder(recipe: Recipe) -> Path:
    """`runs/DATA-BASE-TIME`, in UTC."""
    data_name, base_name = slug(Path(recipe.data.source).stem), slug(Path(recipe.base).name)
    return Path("runs") / f"{data_name}-{base_name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


@contextmanager
def _explained(run: RunFolder, callback: Callback) -> Iterator[None]:
    """Say what an interrupted sweep has saved, and what running out of memory means."""
    try:
        yield
    except KeyboardInterrupt:
        if run.is_begun():
            callback.note(f"saved; go on with: {command('sweep', '--resume', run.path)}")
        else:
            callback.note("nothing was trained yet, so there is nothing to save")
        raise
    except (RuntimeError, MemoryError) as error:
        if not hardware.is_out_of_memory(error):
            raise
        raise ResourceError("out of memory", hint="close other programs, or take a smaller base") from None


def _resume(recipe: Recipe, run: RunFolder, callback: Callback, every: SaveEvery) -> Results:
    """Go on with a run; one that is complete, and is not extended, only gives its results."""
    saved, complaints = resuming.load(run)
    for complaint in complaints:
        callback.note(complaint)
    before = resuming.stored_recipe(run, saved.state if saved else None)
    recipe = resuming.merge(before, recipe, run.path)
    if run.is_complete():
        results = run.read_results()
        if resuming.wanted(recipe) <= resuming.reached(results):
            callback.note(f"{run.path} is complete: nothing is left to train")
            return results
        saved = Checkpoint(resuming.from_results(run, before, results))
    elif complaints and saved is None:
        callback.note("no whole checkpoint is left: adapters that are not finished start again")
    return _sweep(recipe, run, callback, every, saved)


@dataclass(frozen=True)
class Material:
    """Everything that a sweep reads before it trains."""

    recipe: Recipe
    run: RunFolder
    corpus: data.Dataset
    splits: dict[str, EncodedSplit]
    base: models.Base
    config: dict[str, Any]  # the base's config.json
    tokenizer: Tokenizer
    backbone: Backbone
    plan: Plan
    device: torch.device
    precision: torch.dtype
    fingerprint: dict[str, str]

    @property
    def evaluated(self) -> dict[str, EncodedSplit]:
        """The splits that finished adapters are evaluated on."""
        return {name: self.splits[name] for name in ("validation", "test") if name in self.splits}

    @property
    def specs(self) -> dict[str, AdapterSpec]:
        """Name -> adapter, the linear probe included."""
        return {spec.name: spec for bank in self.plan.banks for spec in bank}

    @property
    def training_data(self) -> TrainingData:
        """What a trainer needs of the splits."""
        train, validation, labels = self.splits["train"], self.splits["validation"], self.corpus.labels
        balanced = self.recipe.train.class_weights == "balanced"
        weights = balanced_weights(train.targets, len(labels)) if balanced else None
        return TrainingData(train.ids, train.targets, labels, weights, validation.ids, validation.targets)

    def environment(self) -> dict[str, str]:
        """What may change the last digits of a result though the recipe is the same."""
        return resuming.environment(_versions(), str(self.device), _name(self.precision), hardware.threads())


def _sweep(
    recipe: Recipe, run: RunFolder, callback: Callback, every: SaveEvery, saved: Checkpoint | None
) -> Results:
    """Every stage in turn."""
    clock = Clock()
    material = _read(recipe, run, callback, clock, saved)
    journal = _open_journal(material, callback, clock, every, saved)
    finished = _finished(material)
    if saved is None:
        journal.forget(finished)
    files.write_text(run.recipe, recipe.to_toml())
    write_data_report(run, material.corpus, recipe.train.max_length, material.tokenizer.lengths)
    journal.save()

    number = 1
    while number <= len(journal.banks):
        if _train_bank(number, material, journal, finished, callback):
            number += 1
        else:
            _relieve(number, material, journal, callback)
    if not any(name in finished for name in material.plan.names):
        raise _nothing_left([each for each in journal.diverged if each.name in material.plan.names])

    with _stage("baselines", callback, clock):
        baselines = _baselines(material, finished)
    trained = [finished[name] for name in material.plan.names if name in finished]
    with clock.timed("write"):
        labels, evaluated = material.corpus.labels, material.evaluated
        files.write_text(run.predictions, predictions_csv(evaluated, labels, trained, baselines))
    results = _results(material, journal, trained, baselines)
    files.write_text(run.timing, _timing(journal, results).model_dump_json(indent=1) + "\n")
    files.write_text(run.results, results.model_dump_json(indent=1) + "\n")
    build.rebuild(run)
    files.remove(run.checkpoint)  # without a checkpoint beside its results a run is complete
    return results


@contextmanager
def _stage(name: str, callback: Callback, clock: Clock) -> Iterator[None]:
    """A timed stage of no known length."""
    callback.begin(name, None)
    with clock.timed(name):
        yield
    callback.end()


def _read(
    recipe: Recipe, run: RunFolder, callback: Callback, clock: Clock, saved: Checkpoint | None
) -> Material:
    """Data and base, checked; texts as token ids; the plan; the frozen backbone that all banks share."""
    with _stage("data", callback, clock):
        corpus = data.load(recipe)
    for note in corpus.notes:
        callback.note(note)
    with _stage("base", callback, clock):
        base = models.find(recipe.base)
        config = files.read_object(base.folder / "config.json")
        tokenizer = Tokenizer.load(base.folder)
    with _stage("tokens", callback, clock):
        max_length = recipe.train.max_length
        splits = {split.name: EncodedSplit.encode(split, tokenizer, max_length) for split in corpus.splits}
    device = hardware.device(recipe.machine.device)
    precision = hardware.dtype(recipe.machine.precision, device)
    limit = recipe.machine.memory_gb
    plan = make_plan(
        recipe,
        config,
        has_pad_token=tokenizer.has_pad_token,
        classes=len(corpus.labels),
        texts=len(splits["train"]),
        tokens_per_text=float(np.mean([len(ids) for ids in splits["train"].ids])),
        memory_bytes=int(limit * 1e9 if limit else MEMORY_SHARE * hardware.free_memory(device)),
        number_bytes=precision.itemsize,
        decided=[bank.adapters for bank in saved.state.banks] if saved else [],
    )
    with _stage("load", callback, clock):
        backbone = models.load_backbone(base, precision, device)
    for split in splits.values():
        models.check_ids(split.ids, backbone)
    fingerprint = resuming.fingerprint(splits, corpus.labels, base.folder)
    return Material(
        recipe, run, corpus, splits, base, config, tokenizer, backbone, plan, device, precision, fingerprint
    )


def _open_journal(
    material: Material, callback: Callback, clock: Clock, every: SaveEvery, saved: Checkpoint | None
) -> Journal:
    """The journal of a new run, or of one that goes on, with the banks that the plan adds."""
    run, environment = material.run, material.environment()
    planned = [BankPlan(adapters=[spec.name for spec in bank]) for bank in material.plan.banks]
    files.remove_litter(run.path)
    if saved and saved.state.fingerprint:
        resuming.require_same(material.fingerprint, saved.state.fingerprint, run.path)
    state = SweepState(
        recipe=material.recipe.model_dump(mode="json"),
        fingerprint=material.fingerprint,
        environment=environment,
        banks=planned,
    )
    if saved is None:
        return Journal(run, state, {}, clock, every)
    if changed := resuming.changes(saved.state.environment, environment):
        callback.note(f"not as when this run was started: {changed}; the last digits may differ")
    if files.size(run.history) < saved.state.history_bytes:
        callback.note(f"{run.history}: lines that were written are missing")
    files.truncate(run.history, saved.state.history_bytes)
    state = saved.state.model_copy(
        update={
            "recipe": state.recipe,
            "fingerprint": state.fingerprint,
            "environment": environment,
            "banks": saved.state.banks + planned[len(saved.state.banks) :],
        }
    )
    return Journal(run, state, dict(saved.adapters), clock, every)


def _finished(material: Material) -> dict[str, Outcome]:
    """The adapters that the run folder holds already, finished and undamaged."""
    sizes = {name: len(split) for name, split in material.evaluated.items()}
    classes = len(material.corpus.labels)
    found = {
        name: outcomes.load(material.run, name, material.fingerprint, sizes, classes)
        for name in material.specs
    }
    return {name: outcome for name, outcome in found.items() if outcome}


def _train_bank(
    number: int, material: Material, journal: Journal, finished: dict[str, Outcome], callback: Callback
) -> bool:
    """Train a bank that is not finished yet; False where it does not fit the memory."""
    bank = journal.banks[number - 1]
    specs = [material.specs[name] for name in journal.names(bank)]
    if all(spec.name in finished for spec in specs):
        return True
    try:
        trainer = Trainer(
            material.backbone,
            specs,
            material.training_data,
            material.recipe.train,
            saved=journal.adapters,
            micro_batches=bank.micro_batches,
            record=lambda event: journal.record(number, event),
        )
        _train(trainer, material, journal, callback, f"train {number}/{len(journal.banks)}")
        trained = _evaluate(trainer, material, journal.clock, callback)
    except (RuntimeError, MemoryError) as error:
        if not hardware.is_out_of_memory(error):
            raise
        return False
    with journal.clock.timed("write"):
        for outcome in trained:
            _keep(trainer, outcome, material)
            journal.adapters.pop(outcome.name, None)
            finished[outcome.name] = outcome
    journal.save()
    return True


def _train(trainer: Trainer, material: Material, journal: Journal, callback: Callback, title: str) -> None:
    """Train a bank to its end; an interruption saves it."""
    title = "train" if len(journal.banks) == 1 else title
    callback.begin(title, trainer.steps)
    callback.advance(trainer.step_number)
    try:
        while not trainer.done:
            if trainer.validation_due:
                callback.begin("validation", len(material.splits["validation"]))
                with journal.clock.timed("evaluate"):
                    validation = trainer.validate(callback.advance)
                callback.end()
                callback.validation(validation)
                journal.save(trainer)
                callback.begin(title, trainer.steps)
                callback.advance(trainer.step_number)
                continue
            start = time.perf_counter()
            with journal.clock.timed("train"):
                step = trainer.step()
            journal.count(step, time.perf_counter() - start)
            callback.step(step.adapters, step.number, step.steps, step.losses)
            if step.failures:
                _drop(step.failures, material, journal, callback)
            if step.failures or journal.is_due(trainer):
                journal.save(trainer)
    except KeyboardInterrupt:
        if trainer.settled:
            journal.save(trainer)
        raise
    callback.end()


def _drop(failures: Sequence[Failure], material: Material, journal: Journal, callback: Callback) -> None:
    """Note the adapters that are no longer numbers; or stop, where the recipe says so."""
    if material.recipe.train.on_nan == "stop":
        raise TrainingError(
            "\n".join(f"step {each.step}: adapter {each.spec.name} has {each.reason}" for each in failures),
            hint="a lower --learning-rate or --precision float32 usually helps; "
            "--on-nan drop goes on without the adapter",
        )
    for failure in failures:
        spec, step, reason = failure.spec, failure.step, failure.reason
        journal.diverged.append(
            Diverged(name=spec.name, rank=spec.rank, seed=spec.seed, step=step, reason=reason)
        )
        callback.note(f"step {step}: adapter {spec.name} is dropped: {reason}")


def _evaluate(trainer: Trainer, material: Material, clock: Clock, callback: Callback) -> list[Outcome]:
    """What became of each adapter of a trained bank, with test logits where there is a test split."""
    kept, state = trainer.kept(), trainer.state()
    logits = {name: {"validation": each.logits} for name, each in kept.items()}
    if "test" in material.splits and kept:
        test = material.splits["test"]
        callback.begin("test", len(test))
        with clock.timed("evaluate"):
            for name, found in trainer.kept_logits(test.ids, callback.advance).items():
                logits[name]["test"] = found
        callback.end()
    return [
        Outcome(name, kept[name].epoch, float(np.mean(state[name].losses)), logits[name])
        for name in trainer.names
    ]


def _keep(trainer: Trainer, outcome: Outcome, material: Material) -> None:
    """Put a finished adapter into the run folder: the adapter, then its logits."""
    folder = material.run.adapters / outcome.name
    files.remove(folder)  # of a bank that did not come to its end
    saved = peft_format.SavedAdapter(
        material.specs[outcome.name],
        trainer.kept()[outcome.name].tensors,
        material.corpus.labels,
        material.base.name,
        material.recipe.train.max_length,
    )
    peft_format.save(folder, saved, material.config, material.tokenizer.files())
    outcomes.save(material.run, outcome, material.fingerprint)


def _relieve(number: int, material: Material, journal: Journal, callback: Callback) -> None:
    """Make a bank that does not fit the memory smaller.

    Raises:
        ResourceError: one adapter with one text at a time does not fit either.
    """
    if material.device.type == "cuda":
        torch.cuda.empty_cache()
    settings = material.recipe.train
    done = journal.relieve(number, min(settings.batch_size, len(material.splits["train"])))
    if done is None:
        raise ResourceError(
            f"out of memory with one adapter and one text of {settings.max_length} tokens at a time",
            hint="in a new run give a smaller --max-length, or a smaller --base",
        )
    callback.note(f"out of memory: {done}; a smaller --memory-gb would have done so from the start")


def _nothing_left(diverged: Sequence[Diverged]) -> TrainingError:
    gone = ", ".join(f"{each.name} at step {each.step}" for each in diverged)
    return TrainingError(
        f"no adapter is left: {gone}; the first had {diverged[0].reason}",
        hint="a lower --learning-rate or --precision float32 usually helps",
    )


def _baselines(material: Material, finished: Mapping[str, Outcome]) -> dict[str, baseline_models.Logits]:
    """Baseline -> its logits on each evaluated split."""
    if not material.recipe.train.baselines:
        return {}
    train, splits, labels = material.splits["train"], material.evaluated, material.corpus.labels
    first = next(iter(material.specs.values()))
    rows = {
        "majority class": baseline_models.majority(train, splits, len(labels)),
        baseline_models.SVM: baseline_models.linear_svm(train, splits, len(labels)),
        "untrained head": baseline_models.untrained_head(material.backbone, first, splits, len(labels)),
    }
    probe = material.plan.probe
    if probe and probe.name in finished:
        rows["rank 0"] = finished[probe.name].logits
    return rows


def _results(
    material: Material,
    journal: Journal,
    trained: Sequence[Outcome],
    baselines: Mapping[str, baseline_models.Logits],
) -> Results:
    planned = dict(zip(material.plan.names, material.plan.rows, strict=True))
    probe = material.plan.probe
    return Results(
        rankwise=version("rankwise"),
        base=material.base.name,
        labels=list(material.corpus.labels),
        texts={name: len(split) for name, split in material.splits.items()},
        notes=list(material.corpus.notes),
        device=str(material.device),
        precision=_name(material.precision),
        threads=hardware.threads(),
        versions=_versions(),
        fingerprint=material.fingerprint,
        adapters=[
            adapter_result(
                planned[outcome.name],
                material.specs[outcome.name],
                outcome,
                measure(outcome.logits, material.evaluated, material.corpus.labels),
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
                probabilistic=name != baseline_models.SVM,
            )
            for name, logits in baselines.items()
        ],
        diverged=[each for each in journal.diverged if not probe or each.name != probe.name],
    )


def _timing(journal: Journal, results: Results) -> Timing:
    seconds, training = journal.clock.reading(), journal.clock.seconds.get("train", 0.0)
    by_adapter = journal.state.train_seconds
    return Timing(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds={stage: round(seconds.get(stage, 0.0), 3) for stage in STAGES},
        train_seconds={row.name: round(by_adapter.get(row.name, 0.0), 3) for row in results.adapters},
        tokens_per_second=journal.state.trained_tokens / training if training else 0.0,
    )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__}


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")
