"""The inputs that a sweep reads before training: data, base, plan, and the frozen backbone."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rankwise import hardware, processes
from rankwise.commands import checks
from rankwise.commands.locate import anchored
from rankwise.data import load as data
from rankwise.data.audit import long_texts
from rankwise.errors import DataError, ModelError, ResourceError, Unreachable
from rankwise.models import base as models
from rankwise.models import windows
from rankwise.models.peft_format import SavedAdapter
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import AdapterSpec
from rankwise.plan import Plan, split_trials
from rankwise.plan import make as make_plan
from rankwise.recipe import Recipe
from rankwise.store import files
from rankwise.store.run_folder import RunFolder
from rankwise.tasks.registry import task_of
from rankwise.tasks.task import Targets, Task
from rankwise.training import resume as resuming
from rankwise.training.callbacks import Callback
from rankwise.training.checkpoint import Checkpoint, SweepState
from rankwise.training.data import EncodedSplit
from rankwise.training.journal import Clock
from rankwise.training.parallel import ALONE, Group
from rankwise.training.trainer import TrainingData

MEMORY_SHARE = 0.6
"""Fraction of the free memory available to a bank if the recipe sets no limit."""


@dataclass(frozen=True)
class Material:
    """The inputs that a sweep reads before training."""

    recipe: Recipe
    run: RunFolder
    corpus: data.Dataset
    splits: dict[str, EncodedSplit]
    base: models.Base
    config: dict[str, Any]  # the base's config.json
    tokenizer: Tokenizer
    backbone: Backbone
    base_sha256: str  # of everything that the base model's answers depend on
    planned: Callable[..., Plan]  # `plan.make` with everything but `tuned` and `decided`
    memory_bytes: int  # memory limit of a bank
    plan: Plan
    device: torch.device
    precision: torch.dtype
    fingerprint: dict[str, str]
    group: Group = ALONE  # the processes that train the banks together

    @property
    def evaluated(self) -> dict[str, EncodedSplit]:
        """The splits that finished adapters are evaluated on."""
        return {name: self.splits[name] for name in ("validation", "test") if name in self.splits}

    @property
    def specs(self) -> dict[str, AdapterSpec]:
        """Name -> adapter, including the linear probe."""
        return {spec.name: spec for bank in self.plan.banks for spec in bank}

    def split(self, specs: Sequence[AdapterSpec], workers: int = 1) -> Sequence[Sequence[AdapterSpec]]:
        """Split adapters into banks that fit in memory, at least one for each worker."""
        mean = self.splits["train"].tokens_per_text
        size = self.precision.itemsize
        return split_trials(specs, self.recipe, self.config, mean, self.memory_bytes, size, workers)

    @property
    def training_data(self) -> TrainingData:
        """Training and validation data for a trainer."""
        return self.to_train(self.splits["train"], self.splits["validation"])

    def to_train(self, train: EncodedSplit, validation: EncodedSplit) -> TrainingData:
        """Data for a trainer: texts to train on, and texts to evaluate on after each epoch."""
        return TrainingData(
            train.ids,
            train.targets,
            self.corpus.labels,
            self.class_weights(train.targets),
            validation.ids,
            validation.targets,
            self.task,
            self.adjustment(train.targets),
            train.windows,
            validation.windows,
        )

    @property
    def notes(self) -> list[str]:
        """Notes about the data, including how many texts are read in windows."""
        stride = self.window_stride
        long = [] if stride is None else _long(self.splits, self.recipe.train.max_length, stride)
        return [*self.corpus.notes, *long]

    @property
    def windowed(self) -> dict[str, int]:
        """Split -> number of texts that are read in several windows, if there are any."""
        return {name: split.windowed for name, split in self.splits.items() if split.windowed}

    @property
    def window_stride(self) -> int | None:
        """Tokens from the start of a window to that of the next; None if long texts are cut."""
        return window_stride(self.recipe, self.tokenizer)

    @property
    def task(self) -> Task:
        """What labels a text has."""
        return task_of(self.corpus.task.name, self.corpus.task.separator)

    def class_weights(self, targets: Targets) -> NDArray[np.float32] | None:
        """(classes,) weights of the loss for training texts with these targets; None for equal ones."""
        given, labels = self.recipe.train.class_weights, self.corpus.labels
        if given == "none":
            return None
        if given == "balanced":
            return self.task.balanced_weights(targets, len(labels))
        return np.array([given.get(label, 1.0) for label in labels], dtype=np.float32)

    def adjustment(self, targets: Targets) -> NDArray[np.float32] | None:
        """(classes,) what is added to the logits in the loss; None for nothing."""
        share = np.float32(self.recipe.train.logit_adjustment)
        return share * self.task.prior_logits(targets, len(self.corpus.labels)) if share else None

    def adapter(
        self,
        spec: AdapterSpec,
        state: dict[str, torch.Tensor],
        thresholds: tuple[float, ...] | None = None,
    ) -> SavedAdapter:
        """An adapter of this run, to be saved; its tensors are named as in `Bank.tensors`."""
        return SavedAdapter(
            spec,
            state,
            self.corpus.labels,
            self.base.name,
            self.recipe.train.max_length,
            base_sha256=self.base_sha256,
            task=self.task.name,
            thresholds=thresholds,
            label_separator=self.task.separator,
            text_columns=self.recipe.data.text_columns or (),
            window_stride=self.window_stride,
        )

    def environment(self) -> dict[str, str]:
        """What may change the last digits of a result even with the same recipe."""
        return resuming.environment(
            versions(),
            str(self.device),
            precision_name(self.precision),
            hardware.threads(),
            self.group.share.processes,
        )


@contextmanager
def stage(name: str, callback: Callback, clock: Clock) -> Iterator[None]:
    """Time a stage of unknown length and report it to the callback."""
    callback.begin(name, None)
    with clock.timed(name):
        yield
    callback.end()


def read_material(
    recipe: Recipe,
    run: RunFolder,
    callback: Callback,
    clock: Clock,
    saved: Checkpoint | None,
    workers: int = 1,
    workers_here: int = 1,
) -> Material:
    """Read and check data and base, tokenize the texts, make the plan, and load the backbone.

    Args:
        recipe: what to train.
        run: folder of the run.
        callback: notified of progress.
        clock: clock of the run.
        saved: the checkpoint that the run is resumed from.
        workers: number of banks that train at the same time.
        workers_here: how many of them share the memory of this machine.
    """
    checks.require_libraries()
    with stage("data", callback, clock):
        corpus = data.load(recipe)
    for source in corpus.sources:
        callback.read(data.said(source))
    checks.require_weighted_labels(recipe, corpus.labels)
    recipe = anchored(recipe)  # not before: messages about the data show paths as they were given
    for note in corpus.notes:
        callback.note(note)
    if note := models.note(recipe.base):
        callback.note(note)
    with stage("base", callback, clock):
        base = models.find(recipe.base)
        config = files.read_object(base.folder / "config.json")
        tokenizer = Tokenizer.load(base.folder)
    with stage("tokens", callback, clock):
        max_length, task = recipe.train.max_length, task_of(corpus.task.name, corpus.task.separator)
        stride = window_stride(recipe, tokenizer)
        splits = {
            split.name: EncodedSplit.encode(split, tokenizer, max_length, task, len(corpus.labels), stride)
            for split in corpus.splits
        }
    for line in _long(splits, max_length, stride):
        callback.read(line)
    device = hardware.device(recipe.machine.device)
    precision = hardware.dtype(recipe.machine.precision, device)
    limit = recipe.machine.memory_gb
    shared_by = workers_here if device.type == "cpu" else 1  # each worker has a GPU of its own
    memory_bytes = int(limit * 1e9 if limit else MEMORY_SHARE * _free_memory(device) / shared_by)
    planned = partial(
        make_plan,
        recipe,
        config,
        has_pad_token=tokenizer.has_pad_token,
        classes=len(corpus.labels),
        texts=len(splits["train"]),
        tokens_per_text=splits["train"].tokens_per_text,
        memory_bytes=memory_bytes,
        number_bytes=precision.itemsize,
        workers=workers,
    )
    settled = resuming.settled(saved.state, recipe, run) if saved else []
    plan = planned(decided=[bank.adapters for bank in settled])
    if saved is None and plan.steps and recipe.train.warmup_steps >= plan.steps:
        callback.note(
            f"warmup takes {recipe.train.warmup_steps:,} steps and training has {plan.steps:,}, "
            "so the learning rate never reaches its peak"
        )
    with stage("load", callback, clock):
        backbone, digest = models.load_with_digest(base, precision, device)
    for split in splits.values():
        models.check_ids(split.ids, backbone)
    if saved is None:
        checks.require_room(run.path, plan, config)
    fingerprint = resuming.fingerprint(
        splits, corpus.labels, base.folder / "config.json", digest, tokenizer.files()
    )
    material = Material(
        recipe,
        run,
        corpus,
        splits,
        base,
        config,
        tokenizer,
        backbone,
        digest,
        planned,
        memory_bytes,
        plan,
        device,
        precision,
        fingerprint,
    )
    specs = list(material.specs.values())
    checks.rehearse(run.path, specs, material.adapter(specs[0], {}), config, tokenizer)
    return material


def window_stride(recipe: Recipe, tokenizer: Tokenizer) -> int | None:
    """Tokens from the start of a window to that of the next; None if long texts are cut."""
    train = recipe.train
    if not train.windows:
        return None
    return windows.stride_of(train.window_stride, tokenizer.room(train.max_length))


def require_same_inputs(recipe: Recipe, run: RunFolder, state: SweepState, callback: Callback) -> None:
    """Check that a finished run's data and base are the ones that it was started with.

    The results of a run outlive its inputs, so inputs that cannot be read are only reported.

    Raises:
        UsageError: an input differs.
    """
    callback.begin("inputs", None)
    try:
        material = read_material(recipe, run, Callback(), Clock(), Checkpoint(state))
    except (DataError, ModelError, ResourceError, Unreachable) as error:
        callback.note(f"not compared with the data and the base of the run: {error.message}")
    else:
        resuming.require_same(material.fingerprint, state.fingerprint, run.path)
    callback.end()


def _long(splits: Mapping[str, EncodedSplit], max_length: int, stride: int | None) -> list[str]:
    """How long texts are read, in words."""
    return long_texts(
        {name: len(split) for name, split in splits.items()},
        {name: split.cut for name, split in splits.items()},
        {name: split.windowed for name, split in splits.items()},
        max_length,
        in_windows=stride is not None,
    )


def versions() -> dict[str, str]:
    """Versions that may change the last digits of a result."""
    return {"python": platform.python_version(), "torch": torch.__version__}


def precision_name(precision: torch.dtype) -> str:
    """`bfloat16` or `float32`."""
    return str(precision).removeprefix("torch.")


def _free_memory(device: torch.device) -> int:
    """Bytes that this process may take; the processes of a machine share those of its CPU."""
    free = hardware.free_memory(device)
    return free // processes.local_count() if device.type == "cpu" else free
