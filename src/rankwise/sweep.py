"""The main job: a recipe in, a run folder out. Plan, train, evaluate, write."""

from __future__ import annotations

import platform
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from rankwise import bases, data, hardware, outcomes, plan, references, resume, signals
from rankwise.bank_run import AdapterState, BankRun, Setting, Split, Trained
from rankwise.errors import ResourceError, TrainingError
from rankwise.listener import Listener
from rankwise.predict import check_ids, load_trunk
from rankwise.recipe import Recipe
from rankwise.report import build
from rankwise.report import data as data_report
from rankwise.store import adapter as adapters
from rankwise.store import checkpoint, files, outcome
from rankwise.store.checkpoint import BankPlan, Checkpoint, JobState
from rankwise.store.outcome import Outcome
from rankwise.store.run import AdapterResult, Diverged, Reference, Results, RunFolder, Timing, slug
from rankwise.tokens import Tokenizer

STAGES = ("data", "base", "tokens", "load", "train", "evaluate", "references", "write", "total")
MEMORY_SHARE = 0.6
"""Part of the free memory that a bank may take where the recipe names no limit."""
CHECKPOINT_MINUTES = 10.0
"""Minutes between two checkpoints; there is one after every epoch besides."""


def sweep(
    recipe: Recipe,
    folder: Path | str | None = None,
    listener: Listener | None = None,
    *,
    resume: bool = False,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    checkpoint_steps: int | None = None,
) -> Results:
    """Train every rank and seed of a recipe, evaluate them, and write a run folder.

    Args:
        recipe: what to train.
        folder: where to write; by default `runs/DATA-BASE-TIME`.
        listener: told of progress.
        resume: go on with the run in `folder`, which `recipe` may extend by ranks and seeds. What is
            finished is not trained again; what was begun ends in the same bits as if it had never
            stopped (on the CPU, with the same number of threads).
        checkpoint_minutes: minutes between two checkpoints; there is one after every epoch besides.
        checkpoint_steps: steps between two checkpoints, where they shall be counted too.

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
    job = _Job(recipe, RunFolder(folder or default_folder(recipe)), listener or Listener())
    job.resumed, job.save_seconds, job.save_steps = resume, 60 * checkpoint_minutes, checkpoint_steps
    try:
        return job.run()
    except KeyboardInterrupt:
        job.say_interrupted()
        raise
    except (RuntimeError, MemoryError) as error:
        if not hardware.is_out_of_memory(error):
            raise
    raise ResourceError("out of memory", hint="close other programs, or take a smaller base")


def default_folder(recipe: Recipe) -> Path:
    """`runs/DATA-BASE-TIME`, in UTC."""
    name = f"{slug(Path(recipe.data).stem)}-{slug(Path(recipe.base).name)}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    return Path("runs") / name


class _Job:
    """One sweep, stage by stage."""

    resumed = False
    save_seconds = 60 * CHECKPOINT_MINUTES
    save_steps: int | None = None

    def __init__(self, recipe: Recipe, run: RunFolder, listener: Listener) -> None:
        self.recipe, self.folder, self.listener = recipe, run, listener
        self.saved: Checkpoint | None = None  # the last state that was saved
        self.began = self.saved_at = self.lap = time.perf_counter()
        self.banks: list[BankPlan] = []
        self.outcomes: dict[str, Outcome] = {}  # finished adapters
        self.states: dict[str, AdapterState] = {}  # those that were begun, as they were last saved
        self.diverged: list[Diverged] = []
        self.references: list[Reference] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)  # stage -> wall seconds
        self.train_seconds: defaultdict[str, float] = defaultdict(float)  # adapter -> wall seconds
        self.trained_tokens = 0

    def run(self) -> Results:
        """Every stage in turn."""
        with files.locked(self.folder.path):
            with self.timed("total"):
                if results := self._open():
                    return results
                self._read()
                self._prepare()
                self._start()
                self._train()
                with self.timed("references"):
                    self.references = self._references()
                with self.timed("write"):
                    self._write_predictions()
            return self._write_results()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the block's seconds for a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A timed stage that the listener hears of, of no known length."""
        self.listener.begin(name, None)
        with self.timed(name):
            yield
        self.listener.end()

    def _open(self) -> Results | None:
        """What the folder holds: nothing, a run to go on with, or a complete one, whose results are given."""
        if not self.resumed:
            if not files.is_free(self.folder.path):
                raise resume.refusal(self.folder)
            return None
        self.saved, complaints = checkpoint.load_last(self.folder.checkpoint)
        for complaint in complaints:
            self.listener.note(complaint)
        begun = resume.stored_recipe(self.folder, self.saved.state if self.saved else None)
        self.recipe = resume.merge(begun, self.recipe, self.folder.path)
        if self.folder.is_complete():
            results = self.folder.read_results()
            if resume.wanted(self.recipe) <= resume.reached(results):
                self.listener.note(f"{self.folder.path} is complete: nothing is left to train")
                return results
            self.saved = Checkpoint(resume.from_results(self.folder, begun, results))
        elif complaints and self.saved is None:
            self.listener.note("no whole checkpoint is left: adapters that are not finished begin anew")
        return None

    def _read(self) -> None:
        """Data and base, checked; texts as token ids."""
        with self.stage("data"):
            self.dataset = data.load(self.recipe)
        for note in self.dataset.notes:
            self.listener.note(note)
        with self.stage("base"):
            self.base = bases.find(self.recipe.base)
            self.config = files.read_object(self.base.folder / "config.json")
            self.tokenizer = Tokenizer.load(self.base.folder)
        with self.stage("tokens"):
            every = (self.dataset.train, self.dataset.validation, self.dataset.test)
            self.splits = {split.name: self._tokenize(split) for split in every if split is not None}

    def _tokenize(self, split: data.Split) -> Split:
        ids = self.tokenizer(split.texts, self.recipe.max_length)
        return Split(split, ids, np.array(split.labels, dtype=np.int64))

    def _prepare(self) -> None:
        """Plan, and the frozen trunk that every bank shares."""
        texts = self.splits["train"].ids
        device = hardware.device(self.recipe.device)
        self.precision = hardware.dtype(self.recipe.precision, device)
        limit = self.recipe.memory_gb
        decided = self.saved.state.banks if self.saved else []
        self.plan = plan.make(
            self.recipe,
            self.config,
            has_pad_token=self.tokenizer.has_pad_token,
            classes=len(self.dataset.labels),
            texts=len(texts),
            tokens_per_text=float(np.mean([len(ids) for ids in texts])),
            memory_bytes=int(limit * 1e9 if limit else MEMORY_SHARE * hardware.free_memory(device)),
            number_bytes=self.precision.itemsize,
            decided=[bank.adapters for bank in decided],
        )
        self.specs = {spec.name: spec for bank in self.plan.banks for spec in bank}
        with self.stage("load"):
            trunk = load_trunk(self.base, self.precision, device)
        for split in self.splits.values():
            check_ids(split.ids, trunk)
        labels, history = self.dataset.labels, self.folder.history
        self.setting = Setting(self.recipe, trunk, self.splits, labels, self.listener, history, device)

    def _start(self) -> None:
        """The run folder, and the first checkpoint in it; or what there is already of a run."""
        self.fingerprint = resume.fingerprint(
            {name: (split.ids, split.targets) for name, split in self.splits.items()}, self.base.folder
        )
        files.remove_litter(self.folder.path)
        if self.saved:
            self._check_same(self.saved.state)
            self._restore(self.saved)
            self._add_times(self.saved.state)
        planned = [[spec.name for spec in bank] for bank in self.plan.banks]
        self.banks += [BankPlan(adapters=names) for names in planned[len(self.banks) :]]
        sizes = {split: len(self.splits[split].ids) for split in self.setting.evaluated()}
        for name in self.specs:
            found = outcome.load(self.folder, name, self.fingerprint, sizes, len(self.dataset.labels))
            if found:
                self.outcomes[name] = found
        if self.saved is None:
            self._forget_unfinished()
        files.write_text(self.folder.recipe, self.recipe.to_toml())
        data_report.write(self.folder, self.dataset, self.recipe.max_length, self.tokenizer.lengths)
        self._save()

    def _check_same(self, state: JobState) -> None:
        """Refuse other data or another base; say what else may change the last digits."""
        if state.fingerprint:
            resume.require_same(self.fingerprint, state.fingerprint, self.folder.path)
        if changed := resume.changes(state.environment, self._environment()):
            self.listener.note(f"not as when this run was begun: {changed}; the last digits may differ")

    def _train(self) -> None:
        """Every bank that is not finished; one that does not fit the memory in smaller parts."""
        number = 1
        while number <= len(self.banks):
            try:
                self._train_bank(number)
                number += 1
                continue
            except (RuntimeError, MemoryError) as error:
                if not hardware.is_out_of_memory(error):
                    raise
            # Beyond the except clause, where the error no longer holds on to the step's tensors.
            self._relieve(number)
        if not self.outcomes:
            raise TrainingError(
                "no adapter is left: " + "; ".join(f"{each.name} {each.reason}" for each in self.diverged),
                hint="a lower --learning-rate or --precision float32 usually helps",
            )

    def _train_bank(self, number: int) -> None:
        bank = self.banks[number - 1]
        gone = {each.name for each in self.diverged}
        specs = [self.specs[name] for name in bank.adapters if name not in gone]
        if all(spec.name in self.outcomes for spec in specs):
            return
        title = f"train {number}/{len(self.banks)}" if len(self.banks) > 1 else "train"
        run = BankRun(
            self.setting,
            title,
            number,
            specs,
            self.states,
            parts=bank.parts,
            diverged=self.diverged,
            on_saveable=self._on_saveable,
        )
        self.lap, self.saved_at = time.perf_counter(), time.perf_counter()
        try:
            trained = run.run()
        except KeyboardInterrupt:
            if run.settled:
                self._save(run)
            raise
        self._count(run)
        self._keep(trained)

    def _on_saveable(self, run: BankRun, epoch: bool) -> None:
        due = time.perf_counter() - self.saved_at >= self.save_seconds
        if epoch or due or (self.save_steps and run.steps % self.save_steps == 0):
            self._save(run)

    def _save(self, run: BankRun | None = None) -> None:
        """Write a checkpoint. The bank in training must be between two steps."""
        with signals.held():
            now = time.perf_counter()
            if run:
                self._count(run)
                self.states |= run.states()
            gone = {each.name for each in self.diverged}
            self.states = {name: state for name, state in self.states.items() if name not in gone}
            files.sync(self.folder.history)
            self.saved = Checkpoint(
                JobState(
                    recipe=self.recipe.model_dump(mode="json"),
                    fingerprint=self.fingerprint,
                    environment=self._environment(),
                    banks=self.banks,
                    progress={name: state.progress() for name, state in self.states.items()},
                    diverged=self.diverged,
                    history_bytes=files.size(self.folder.history),
                    trained_tokens=self.trained_tokens,
                    seconds=self.seconds | {"total": self.seconds["total"] + now - self.began},
                    train_seconds=dict(self.train_seconds),
                ).model_copy(deep=True),
                {
                    f"{name}/{what}": tensor
                    for name, state in self.states.items()
                    for what, tensor in state.tensors().items()
                },
            )
            checkpoint.save(self.folder.checkpoint, self.saved)
            self.saved_at = time.perf_counter()

    def _restore(self, saved: Checkpoint) -> None:
        """Be where a checkpoint was saved."""
        state = saved.state.model_copy(deep=True)
        self.banks, self.diverged, self.states = state.banks, state.diverged, {}
        for name, progress in state.progress.items():
            mine = {
                key.removeprefix(f"{name}/"): tensor
                for key, tensor in saved.tensors.items()
                if key.startswith(f"{name}/")
            }
            self.states[name] = AdapterState.read(progress, mine)
        files.truncate(self.folder.history, state.history_bytes)

    def _add_times(self, state: JobState) -> None:
        """What was spent before a run was resumed."""
        self.trained_tokens += state.trained_tokens
        for stage, seconds in state.seconds.items():
            self.seconds[stage] += seconds
        for name, seconds in state.train_seconds.items():
            self.train_seconds[name] += seconds

    def _forget_unfinished(self) -> None:
        """Leave the lines of finished adapters in history.jsonl, where no checkpoint says how long it was."""
        history = self.folder.history
        if history.exists():
            lines = history.read_text("utf-8").splitlines(keepends=True)
            kept = [line for line in lines if resume.is_line_of(line, self.outcomes)]
            files.write_text(history, "".join(kept))

    def _count(self, run: BankRun) -> None:
        """Add what a bank has spent since it was last counted."""
        now = time.perf_counter()
        training = now - self.lap - run.evaluating
        self.seconds["train"] += training
        self.seconds["evaluate"] += run.evaluating
        for name in run.names:
            self.train_seconds[name] += training / len(run.names)
        self.trained_tokens += run.tokens
        self.lap, run.evaluating, run.tokens = now, 0.0, 0

    def _keep(self, trained: Mapping[str, Trained]) -> None:
        """Put finished adapters into the run folder: the adapter, then its logits, then a checkpoint."""
        with self.timed("write"):
            for name, each in trained.items():
                files.remove(self.folder.adapters / name)  # of a bank that did not come to its end
                saved = adapters.SavedAdapter(
                    each.spec, each.state, self.dataset.labels, self.base.name, self.recipe.max_length
                )
                adapters.save(self.folder.adapters / name, saved, self.config, self.tokenizer.files())
                self.outcomes[name] = Outcome(name, each.epoch, each.train_loss, each.logits)
                outcome.save(self.folder, self.outcomes[name], self.fingerprint)
        self.states = {name: state for name, state in self.states.items() if name not in trained}
        self._save()

    def _relieve(self, number: int) -> None:
        """Halve a bank that did not fit the memory, or a lone adapter's batch; go back to what was saved."""
        assert self.saved is not None
        self._restore(self.saved)
        if self.setting.device.type == "cuda":
            torch.cuda.empty_cache()
        bank = self.banks[number - 1]
        gone = {each.name for each in self.diverged}
        names = [name for name in bank.adapters if name not in gone]
        if len(names) > 1:
            half = (len(names) + 1) // 2
            first = [name for name in bank.adapters if name not in names[half:]]
            self.banks[number - 1 : number] = [
                BankPlan(adapters=first, parts=bank.parts),
                BankPlan(adapters=names[half:], parts=bank.parts),
            ]
            done = f"the bank of {len(names)} adapters is split into {half} and {len(names) - half}"
        elif bank.parts < min(self.recipe.batch_size, len(self.splits["train"].ids)):
            bank.parts = min(2 * bank.parts, self.recipe.batch_size)
            done = f"batches of {self.recipe.batch_size} are computed in {bank.parts} parts"
        else:
            raise ResourceError(
                f"out of memory with one adapter and one text of {self.recipe.max_length} tokens at a time",
                hint="in a new run give a smaller --max-length, or a smaller --base",
            )
        self.listener.note(f"out of memory: {done}; a smaller --memory-gb would have done so from the start")
        self._save()

    def say_interrupted(self) -> None:
        """What is saved of a sweep that a signal ends, and how to go on."""
        if self.folder.is_begun():
            self.listener.note(f"saved; go on with: rankwise sweep --resume {self.folder.path}")
        else:
            self.listener.note("nothing was trained yet, so there is nothing to save")

    def _finished(self) -> list[Outcome]:
        """What became of the adapters that were trained to the end, in the plan's order."""
        names = [f"r{row.rank}-s{row.seed}" for row in self.plan.rows]
        return [self.outcomes[name] for name in names if name in self.outcomes]

    def _references(self) -> list[Reference]:
        """The reference rows, on the splits that the adapters are measured on."""
        rows = []
        setting = self.setting
        for each in references.answers(
            self.recipe, setting.trunk, self.splits, len(setting.labels), self.listener
        ):
            found = {
                split: setting.metrics(split, logits, each.probabilistic).model_dump()
                for split, logits in each.logits.items()
            }
            rows.append(Reference(name=each.name, validation=found["validation"], test=found.get("test")))
        return rows

    def _write_predictions(self) -> None:
        files.write_text(self.folder.predictions, outcomes.predictions_csv(self.setting, self._finished()))

    def _write_results(self) -> Results:
        """Figures and tables; without a checkpoint beside them the run is complete."""
        results = self._results()
        files.write_text(self.folder.timing, self._timing().model_dump_json(indent=1) + "\n")
        files.write_text(self.folder.results, results.model_dump_json(indent=1) + "\n")
        build.write(self.folder)
        files.remove(self.folder.checkpoint)
        return results

    def _environment(self) -> dict[str, str]:
        device, precision = str(self.setting.device), str(self.precision).removeprefix("torch.")
        return resume.environment(_versions(), device, precision, hardware.threads())

    def _results(self) -> Results:
        return Results(
            rankwise=version("rankwise"),
            base=self.base.name,
            labels=list(self.dataset.labels),
            texts={name: len(split.ids) for name, split in self.splits.items()},
            notes=list(self.dataset.notes),
            device=str(self.setting.device),
            precision=str(self.precision).removeprefix("torch."),
            threads=hardware.threads(),
            versions=_versions(),
            fingerprint=self.fingerprint,
            adapters=[self._row(each) for each in self._finished()],
            references=self.references,
            diverged=self.diverged,
        )

    def _row(self, outcome: Outcome) -> AdapterResult:
        (bank,) = (n for n, each in enumerate(self.banks, 1) if outcome.name in each.adapters)
        spec, folder = self.specs[outcome.name], self.folder.adapters / outcome.name
        (planned,) = (row for row in self.plan.rows if (row.rank, row.seed) == (spec.rank, spec.seed))
        return outcomes.row(self.setting, planned, spec, outcome, bank, folder)

    def _timing(self) -> Timing:
        training = self.seconds["train"]
        return Timing(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds={stage: round(self.seconds[stage], 3) for stage in STAGES},
            train_seconds={each.name: round(self.train_seconds[each.name], 3) for each in self._finished()},
            tokens_per_second=self.trained_tokens / training if training else 0.0,
        )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__}
