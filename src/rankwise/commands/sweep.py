"""The `sweep` command: from a recipe to a run folder.

The stages, in order: data, base, plan, tuning, training bank by bank, baselines, cuts, results, report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path

import numpy as np

from rankwise import hardware, schema
from rankwise.commands.bank import TrainBanks, TrainedBank, Training, train_banks, workers_here, workers_of
from rankwise.commands.baselines import all_baselines
from rankwise.commands.cut_ranks import evaluated_cuts
from rankwise.commands.follow import follow, require_same
from rankwise.commands.locate import anchored
from rankwise.commands.material import Material, read_material, require_same_inputs, stage
from rankwise.commands.results import predictions_csv, sweep_results, sweep_timing
from rankwise.commands.run_results import Results
from rankwise.commands.stored import at_hand, with_stored_data
from rankwise.commands.tune import tune, with_tuned_plan
from rankwise.data.audit import write as write_data_report
from rankwise.errors import Note, ResourceError, TrainingError, Unreachable, option
from rankwise.models import peft_format
from rankwise.progress.choice import shown
from rankwise.recipe import Recipe
from rankwise.report import build
from rankwise.schema import Diverged
from rankwise.stats.calibration import usable_temperature
from rankwise.store import files
from rankwise.store.run_folder import RunFolder, slug
from rankwise.training import outcome as outcomes
from rankwise.training import resume as resuming
from rankwise.training.callbacks import Callback
from rankwise.training.checkpoint import BankPlan, Checkpoint, SearchPlan, SweepState
from rankwise.training.journal import Clock, Journal, SaveEvery
from rankwise.training.outcome import Outcome
from rankwise.training.parallel import Group, PeerLost, joined

CHECKPOINT_MINUTES = 10.0
"""Minutes between checkpoints; one is also saved after every epoch."""


def sweep(
    recipe: Recipe,
    folder: PathLike[str] | str | None = None,
    callback: Callback | None = None,
    *,
    resume: bool = False,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    checkpoint_steps: int | None = None,
    train: TrainBanks = train_banks,
) -> Results:
    """Train every rank and seed of a recipe, evaluate them, and write a run folder.

    Data in memory is stored in the run folder, as Parquet files in `data`, so that the run can be resumed.

    Processes that torchrun or accelerate has started together train every bank together. Process 0 writes the
    run folder; in the others, `folder`, `callback` and `resume` are not used.

    Args:
        recipe: what to train.
        folder: output folder; by default `runs/DATA-BASE-TIME`.
        callback: notified of progress; by default, the progress is shown in a notebook and in IPython.
        resume: resume the run in `folder`, to which `recipe` may add ranks and seeds. Finished adapters
            are not trained again. On the CPU, with the same number of threads, interrupted ones end
            bit-identical to those of an uninterrupted run.
        checkpoint_minutes: minutes between checkpoints; one is also saved after every epoch.
        checkpoint_steps: if given, also save a checkpoint every so many steps.
        train: trains the banks; by default in this process, and `rankwise.cluster.banks.Cluster` on a Ray
            cluster.

    Returns:
        The contents of results.json, with the verdict and the recommended adapter.

    Raises:
        UsageError: the folder is in use, the recipe does not fit the model, or there is no matching run
            to resume.
        DataError: the data cannot be used.
        ModelError: the base model cannot be used.
        Unreachable: data or base must be downloaded, and the Hub does not answer.
        TrainingError: every adapter has diverged, or one has and the recipe sets `on_nan = "stop"`.
        ResourceError: out of memory or disk space.
    """
    every = SaveEvery(60 * checkpoint_minutes, checkpoint_steps)
    with joined() as group, hardware.own_torch():
        if group.share.process:
            return Results.of(follow(group), folder or Path())
        run = RunFolder(default_folder(recipe) if folder is None else Path(folder))
        with (
            shown(callback) as callback,
            explained("sweep", run, callback),
            files.locked(run.path),
        ):
            if not resume and not files.is_free(run.path):
                raise resuming.refusal(run)
            session = _Session(run, callback, every, group, train)
            found = _resume(recipe, session) if resume else _sweep(recipe, session, None)
            group.tell(found)
            callback.finished(run.path)
            return Results.of(found, run.path)


def default_folder(recipe: Recipe) -> Path:
    """A new empty folder `runs/DATA-BASE-TIME`, in UTC, with a number if that name is taken."""
    data_name, base_name = slug(Path(recipe.data.name).stem), slug(Path(recipe.base).name)
    return files.claim_folder(Path("runs") / f"{data_name}-{base_name}-{datetime.now(UTC):%Y%m%d-%H%M%S}")


@contextmanager
def explained(verb: str, run: RunFolder, callback: Callback) -> Iterator[None]:
    """Report what an interrupted command has saved, and turn out-of-memory errors into ResourceError."""
    try:
        yield
    except KeyboardInterrupt:
        if run.is_begun():
            callback.note(Note(f"saved; go on with: {resuming.again(verb, run)}"))
        else:
            callback.note("nothing was trained yet, so there is nothing to save")
        raise
    except PeerLost as error:
        again = f"saved; go on with: {resuming.again(verb, run)}"
        hint = again if run.is_begun() else "its own messages say why"
        raise Unreachable(str(error), hint=hint) from None
    except (RuntimeError, MemoryError) as error:
        if not hardware.is_out_of_memory(error):
            raise
        raise ResourceError(
            "out of memory", hint="close other programs, or use a smaller base model"
        ) from None


@dataclass(frozen=True)
class _Session:
    """What a sweep has besides its recipe."""

    run: RunFolder
    callback: Callback
    every: SaveEvery
    group: Group  # the processes that train each bank
    train: TrainBanks


def _resume(recipe: Recipe, session: _Session) -> schema.Results:
    """Resume a run. If it is complete and not extended, only compare its inputs and return its results."""
    run, callback = session.run, session.callback
    saved, complaints = resuming.load(run)
    for complaint in complaints:
        callback.note(complaint)
    resuming.require_kind(run, saved.state if saved else None, "sweep")
    before = anchored(resuming.stored_recipe(run, saved.state if saved else None))
    before, recipe = at_hand(before, recipe, run)
    recipe = resuming.merge(before, anchored(recipe), run.path)
    if run.is_complete():
        results = run.read_results()
        saved = Checkpoint(resuming.from_results(run, before, results))
        if resuming.wanted(recipe) <= resuming.reached(results):
            require_same_inputs(recipe, run, saved.state, callback)
            callback.note(f"{run.path} is complete: nothing is left to train")
            return results
    elif complaints and saved is None:
        callback.note("no intact checkpoint is left: unfinished adapters start over")
    return _sweep(recipe, session, saved)


def _sweep(recipe: Recipe, session: _Session, saved: Checkpoint | None) -> schema.Results:
    """Run every stage in order."""
    run, callback, group = session.run, session.callback, session.group
    clock = Clock()
    group.tell(recipe)
    train = session.train
    read = read_material(recipe, run, callback, clock, saved, workers_of(train), workers_here(train))
    require_same(group, read)
    material = with_stored_data(replace(read, group=group))
    recipe = material.recipe
    journal = open_journal(material, callback, clock, session.every, saved)
    finished = _finished(material)
    if saved is None:
        journal.forget(finished)
    files.write_text(run.recipe, recipe.to_toml())
    longest = material.tokenizer.longest(recipe.train.max_length, material.window_stride)
    write_data_report(run, material.corpus, recipe.train.max_length, material.tokenizer.lengths, longest)
    journal.save()

    tuning = tune(material, journal, callback, train)
    material = with_tuned_plan(tuning, material, journal)
    train(_final(material, journal, finished, callback), finished.__contains__, material, journal, callback)
    if not any(name in finished for name in material.plan.names):
        raise _nothing_left([adapter for adapter in journal.diverged if adapter.name in material.plan.names])

    with stage("baselines", callback, clock):
        baselines = all_baselines(material, finished)
    trained = [finished[name] for name in material.plan.names if name in finished]
    cuts = evaluated_cuts(material, trained, callback, clock)
    with clock.timed("write"):
        labels, evaluated = material.corpus.labels, material.evaluated
        files.write_text(
            run.predictions, predictions_csv(evaluated, labels, trained, baselines, cuts, material.task)
        )
    results = sweep_results(material, journal, trained, baselines, tuning, cuts)
    files.write_text(run.timing, sweep_timing(journal, results).model_dump_json(indent=1) + "\n")
    files.write_text(run.results, results.model_dump_json(indent=1) + "\n")
    build.rebuild(run)
    files.remove(run.checkpoint)  # a run with results and no checkpoint is complete
    return results


def open_journal(
    material: Material,
    callback: Callback,
    clock: Clock,
    every: SaveEvery,
    saved: Checkpoint | None,
    search: SearchPlan | None = None,
) -> Journal:
    """The journal of a new or resumed run, including the banks that the plan of a sweep adds."""
    run, environment = material.run, material.environment()
    planned = (
        [] if search else [BankPlan(adapters=[each.name for each in bank]) for bank in material.plan.banks]
    )
    files.remove_litter(run.path)
    if saved and saved.state.fingerprint:
        resuming.require_same(material.fingerprint, saved.state.fingerprint, run.path)
    state = SweepState(
        recipe=material.recipe.model_dump(mode="json"),
        fingerprint=material.fingerprint,
        environment=environment,
        banks=planned,
        search=search,
    )
    if saved is None:
        return Journal(run, state, {}, clock, every)
    if changed := resuming.changes(saved.state.environment, environment):
        callback.note(f"the environment of this run has changed: {changed}")
    if files.size(run.history) < saved.state.history_bytes:
        callback.note(f"{run.history}: some recorded lines are missing")
    files.truncate(run.history, saved.state.history_bytes)
    settled = resuming.settled(saved.state, material.recipe, run)
    state = saved.state.model_copy(
        update={
            "recipe": state.recipe,
            "fingerprint": state.fingerprint,
            "environment": environment,
            "banks": settled + planned[len(settled) :],
        }
    )
    return Journal(run, state, dict(saved.adapters), clock, every)


def _finished(material: Material) -> dict[str, Outcome]:
    """The finished, intact adapters that are already in the run folder."""
    sizes = {name: len(split) for name, split in material.evaluated.items()}
    classes = len(material.corpus.labels)
    found = {
        name: outcomes.load(material.run, name, material.fingerprint, sizes, classes)
        for name in material.specs
    }
    return {name: outcome for name, outcome in found.items() if outcome}


def _final(
    material: Material, journal: Journal, finished: dict[str, Outcome], callback: Callback
) -> Training:
    """The training of the adapters that are the sweep's results."""

    def finish(trainer: TrainedBank) -> None:
        trained = evaluate(trainer, material, journal.clock, callback)
        with journal.clock.timed("write"):
            for outcome in trained:
                keep(trainer, outcome, material)
                finished[outcome.name] = outcome

    return Training(
        stage="train",
        specs=material.specs,
        data=material.training_data,
        settings=material.recipe.train,
        title=lambda number: _title(number, material, journal),
        finish=finish,
    )


def _title(number: int, material: Material, journal: Journal) -> str:
    """The displayed name of a bank's training stage: `train`, `train 1/2` or `linear probe`."""
    probe = material.plan.probe
    if probe and probe.name in journal.banks[number - 1].adapters:
        return "linear probe"
    banks = sum(not probe or probe.name not in bank.adapters for bank in journal.banks)
    return "train" if banks == 1 else f"train {number}/{banks}"


def evaluate(trainer: TrainedBank, material: Material, clock: Clock, callback: Callback) -> list[Outcome]:
    """The outcome of each adapter of a trained bank, with test logits if there is a test split."""
    kept, state = trainer.kept(), trainer.state()
    logits = {name: {"validation": snapshot.logits} for name, snapshot in kept.items()}
    if "test" in material.splits and kept:
        test = material.splits["test"]
        callback.begin("test", len(test.ids))
        with clock.timed("evaluate"):
            for name, of_adapter in trainer.kept_logits(test.ids, callback.advance).items():
                logits[name]["test"] = test.mean(of_adapter)
        callback.end()
    return [
        Outcome(name, kept[name].epoch, float(np.mean(state[name].losses)), logits[name]) for name in kept
    ]


def keep(trainer: TrainedBank, outcome: Outcome, material: Material) -> None:
    """Save a finished adapter to the run folder: the adapter with its temperature, then its logits."""
    folder = material.run.adapters / outcome.name
    files.remove(folder)  # left over from a bank that did not finish
    spec = next(spec for spec in trainer.specs if spec.name == outcome.name)
    validation, targets = outcome.logits["validation"], material.splits["validation"].targets
    thresholds = material.task.thresholds(validation, targets)
    saved = material.adapter(spec, trainer.kept()[outcome.name].tensors, thresholds)
    if not material.task.several:
        saved = replace(saved, temperature=usable_temperature(targets, validation))
    tokenizer = material.tokenizer
    peft_format.save(folder, saved, material.config, tokenizer.files(), tokenizer.as_json())
    peft_format.load(folder)  # what cannot be loaded must not count as finished
    outcomes.save(material.run, outcome, material.fingerprint)


def _nothing_left(diverged: Sequence[Diverged]) -> TrainingError:
    dropped = ", ".join(f"{adapter.name} at step {adapter.step}" for adapter in diverged)
    return TrainingError(
        f"no adapter is left: {dropped}; the first had {diverged[0].reason}",
        hint=f"a lower {option('learning_rate')} or {option('precision', 'float32')} usually helps",
    )
