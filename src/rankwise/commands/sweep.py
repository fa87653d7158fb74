"""The main job: a recipe in, a run folder out. Plan, train, evaluate, write."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from rankwise import hardware, plan
from rankwise.commands import baselines as baselines
from rankwise.data import audit as data_report
from rankwise.data import load as data
from rankwise.errors import ResourceError, TrainingError
from rankwise.models import base as bases
from rankwise.models import peft_format as adapters
from rankwise.models.base import check_ids, load_backbone
from rankwise.models.tokenizer import Tokenizer
from rankwise.recipe import Recipe
from rankwise.report import build
from rankwise.schema import AdapterResult, Baseline, Results, Timing
from rankwise.store import files
from rankwise.store.run_folder import RunFolder, slug
from rankwise.training import checkpoint, outcome, outcomes, resume
from rankwise.training.bank_run import BankRun, EncodedSplit, Setting, Trained
from rankwise.training.callbacks import Callback
from rankwise.training.checkpoint import BankPlan, Checkpoint
from rankwise.training.outcome import Outcome
from rankwise.training.progress import Progress

STAGES = ("data", "base", "tokens", "load", "train", "evaluate", "baselines", "write", "total")
MEMORY_SHARE = 0.6
"""Part of the free memory that a bank may take where the recipe names no limit."""
CHECKPOINT_MINUTES = 10.0
"""Minutes between two checkpoints; there is one after every epoch besides."""


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
    run = RunFolder(folder or default_folder(recipe))
    job = _Job(recipe, run, callback or Callback(), Progress(run, 60 * checkpoint_minutes, checkpoint_steps))
    try:
        return job.run(resume)
    except KeyboardInterrupt:
        job.say_interrupted()
        raise
    except (RuntimeError, MemoryError) as error:
        if not hardware.is_out_of_memory(error):
            raise
    raise ResourceError("out of memory", hint="close other programs, or take a smaller base")


def default_folder(recipe: Recipe) -> Path:
    """`runs/DATA-BASE-TIME`, in UTC."""
    name = f"{slug(Path(recipe.data.source).stem)}-{slug(Path(recipe.base).name)}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    return Path("runs") / name


class _Job:
    """One sweep, stage by stage."""

    def __init__(self, recipe: Recipe, run: RunFolder, callback: Callback, progress: Progress) -> None:
        self.recipe, self.folder, self.callback, self.progress = recipe, run, callback, progress
        self.outcomes: dict[str, Outcome] = {}  # finished adapters
        self.baselines: list[Baseline] = []

    def run(self, resumed: bool) -> Results:
        """Every stage in turn."""
        with files.locked(self.folder.path):
            with self.progress.timed("total"):
                if resumed and (results := self._take_up()):
                    return results
                if not (resumed or files.is_free(self.folder.path)):
                    raise resume.refusal(self.folder)
                self._read()
                self._prepare()
                self._start()
                self._train()
                with self.progress.timed("baselines"):
                    self.baselines = self._baselines()
                with self.progress.timed("write"):
                    self._write_predictions()
            return self._write_results()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A timed stage that the callback hears of, of no known length."""
        self.callback.begin(name, None)
        with self.progress.timed(name):
            yield
        self.callback.end()

    def _take_up(self) -> Results | None:
        """Find the run to go on with; if it is complete, its results."""
        saved, complaints = checkpoint.load_last(self.folder.checkpoint)
        for complaint in complaints:
            self.callback.note(complaint)
        begun = resume.stored_recipe(self.folder, saved.state if saved else None)
        self.recipe = resume.merge(begun, self.recipe, self.folder.path)
        if self.folder.is_complete():
            results = self.folder.read_results()
            if resume.wanted(self.recipe) <= resume.reached(results):
                self.callback.note(f"{self.folder.path} is complete: nothing is left to train")
                return results
            saved = Checkpoint(resume.from_results(self.folder, begun, results))
        elif complaints and saved is None:
            self.callback.note("no whole checkpoint is left: adapters that are not finished begin anew")
        self.progress.saved = saved
        return None

    def _read(self) -> None:
        """Data and base, checked; texts as token ids."""
        with self.stage("data"):
            self.dataset = data.load(self.recipe)
        for note in self.dataset.notes:
            self.callback.note(note)
        with self.stage("base"):
            self.base = bases.find(self.recipe.base)
            self.config = files.read_object(self.base.folder / "config.json")
            self.tokenizer = Tokenizer.load(self.base.folder)
        with self.stage("tokens"):
            every = (self.dataset.train, self.dataset.validation, self.dataset.test)
            self.splits = {split.name: self._tokenize(split) for split in every if split is not None}

    def _tokenize(self, split: data.Split) -> EncodedSplit:
        ids = self.tokenizer(split.texts, self.recipe.train.max_length)
        return EncodedSplit(split, ids, np.array(split.labels, dtype=np.int64))

    def _prepare(self) -> None:
        """Plan, and the frozen backbone that every bank shares."""
        texts = self.splits["train"].ids
        device = hardware.device(self.recipe.machine.device)
        self.precision = hardware.dtype(self.recipe.machine.precision, device)
        limit = self.recipe.machine.memory_gb
        saved = self.progress.saved
        decided = saved.state.banks if saved else []
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
            backbone = load_backbone(self.base, self.precision, device)
        for split in self.splits.values():
            check_ids(split.ids, backbone)
        labels, history = self.dataset.labels, self.folder.history
        self.setting = Setting(self.recipe, backbone, self.splits, labels, self.callback, history, device)

    def _start(self) -> None:
        """The run folder and the first checkpoint in it, or what there is already of a run."""
        self.fingerprint = resume.fingerprint(
            {name: (split.ids, split.targets) for name, split in self.splits.items()}, self.base.folder
        )
        files.remove_litter(self.folder.path)
        begun = self.progress.saved is not None
        for note in self.progress.begin(self.recipe, self.fingerprint, self._environment()):
            self.callback.note(note)
        self.progress.banks += [
            BankPlan(adapters=[spec.name for spec in bank])
            for bank in self.plan.banks[len(self.progress.banks) :]
        ]
        self._find_finished()
        if not begun:
            self.progress.forget(self.outcomes)
        files.write_text(self.folder.recipe, self.recipe.to_toml())
        data_report.write(self.folder, self.dataset, self.recipe.train.max_length, self.tokenizer.lengths)
        self.progress.save()

    def _find_finished(self) -> None:
        """The adapters that the folder holds already."""
        sizes = {split: len(self.splits[split].ids) for split in self.setting.evaluated()}
        for name in self.specs:
            found = outcome.load(self.folder, name, self.fingerprint, sizes, len(self.dataset.labels))
            if found:
                self.outcomes[name] = found

    def _train(self) -> None:
        """Every bank that is not finished; one that does not fit the memory in smaller parts."""
        number = 1
        while number <= len(self.progress.banks):
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
            gone = ", ".join(f"{each.name} at step {each.step}" for each in self.progress.diverged)
            raise TrainingError(
                f"no adapter is left: {gone}; the first had {self.progress.diverged[0].reason}",
                hint="a lower --learning-rate or --precision float32 usually helps",
            )

    def _train_bank(self, number: int) -> None:
        specs = [self.specs[name] for name in self.progress.names(number)]
        if all(spec.name in self.outcomes for spec in specs):
            return
        banks = self.progress.banks
        run = BankRun(
            self.setting,
            f"train {number}/{len(banks)}" if len(banks) > 1 else "train",
            number,
            specs,
            self.progress.states,
            micro_batches=banks[number - 1].micro_batches,
            diverged=self.progress.diverged,
            on_saveable=self.progress.on_saveable,
        )
        self.progress.start_clock()
        try:
            trained = run.run()
        except KeyboardInterrupt:
            if run.settled:
                self.progress.save(run)
            raise
        self.progress.count(run)
        self._keep(trained)

    def _keep(self, trained: Mapping[str, Trained]) -> None:
        """Put finished adapters into the run folder: the adapter, then its logits, then a checkpoint."""
        with self.progress.timed("write"):
            for name, each in trained.items():
                files.remove(self.folder.adapters / name)  # of a bank that did not come to its end
                saved = adapters.SavedAdapter(
                    each.spec, each.state, self.dataset.labels, self.base.name, self.recipe.train.max_length
                )
                adapters.save(self.folder.adapters / name, saved, self.config, self.tokenizer.files())
                self.outcomes[name] = Outcome(name, each.epoch, each.train_loss, each.logits)
                outcome.save(self.folder, self.outcomes[name], self.fingerprint)
                self.progress.states.pop(name, None)
        self.progress.save()

    def _relieve(self, number: int) -> None:
        """Train a bank that did not fit the memory in smaller parts."""
        if self.setting.device.type == "cuda":
            torch.cuda.empty_cache()
        texts = min(self.recipe.train.batch_size, len(self.splits["train"].ids))
        done = self.progress.relieve(number, texts)
        if done is None:
            raise ResourceError(
                f"out of memory with one adapter and one text of {self.recipe.train.max_length} tokens at a time",
                hint="in a new run give a smaller --max-length, or a smaller --base",
            )
        self.callback.note(f"out of memory: {done}; a smaller --memory-gb would have done so from the start")

    def say_interrupted(self) -> None:
        """What is saved of a sweep that a signal ends, and how to go on."""
        if self.folder.is_begun():
            self.callback.note(f"saved; go on with: rankwise sweep --resume {self.folder.path}")
        else:
            self.callback.note("nothing was trained yet, so there is nothing to save")

    def _finished(self) -> list[Outcome]:
        """What became of the adapters that were trained to the end, in the plan's order."""
        names = [f"r{row.rank}-s{row.seed}" for row in self.plan.rows]
        return [self.outcomes[name] for name in names if name in self.outcomes]

    def _baselines(self) -> list[Baseline]:
        """The baselines, on the splits that the adapters are measured on."""
        rows = []
        setting = self.setting
        for each in baselines.answers(
            self.recipe, setting.backbone, self.splits, len(setting.labels), self.callback
        ):
            found = {
                split: setting.metrics(split, logits, each.probabilistic).model_dump()
                for split, logits in each.logits.items()
            }
            rows.append(Baseline(name=each.name, validation=found["validation"], test=found.get("test")))
        return rows

    def _write_predictions(self) -> None:
        files.write_text(self.folder.predictions, outcomes.predictions_csv(self.setting, self._finished()))

    def _write_results(self) -> Results:
        """Figures and tables; without a checkpoint beside them the run is complete."""
        results = self._results()
        files.write_text(self.folder.timing, self._timing().model_dump_json(indent=1) + "\n")
        files.write_text(self.folder.results, results.model_dump_json(indent=1) + "\n")
        build.rebuild(self.folder)
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
            baselines=self.baselines,
            diverged=self.progress.diverged,
        )

    def _row(self, outcome: Outcome) -> AdapterResult:
        (bank,) = (n for n, each in enumerate(self.progress.banks, 1) if outcome.name in each.adapters)
        spec, folder = self.specs[outcome.name], self.folder.adapters / outcome.name
        (planned,) = (row for row in self.plan.rows if (row.rank, row.seed) == (spec.rank, spec.seed))
        return outcomes.row(self.setting, planned, spec, outcome, bank, folder)

    def _timing(self) -> Timing:
        seconds, training = self.progress.seconds, self.progress.seconds["train"]
        names = [each.name for each in self._finished()]
        return Timing(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds={stage: round(seconds[stage], 3) for stage in STAGES},
            train_seconds={name: round(self.progress.train_seconds[name], 3) for name in names},
            tokens_per_second=self.progress.trained_tokens / training if training else 0.0,
        )


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__}
