"""The adapters in service, and the way from a request's names to adapters.

A `Lineup` never changes. A reload builds a new one, which takes over the backbone, the tokenizers and the
unchanged adapters. Requests keep the adapters that they started with, so no answer mixes two versions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rankwise.errors import UsageError
from rankwise.models.base import check_ids
from rankwise.models.peft_format import SavedAdapter
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.backbone import Backbone
from rankwise.nn.batch import Ids
from rankwise.nn.mixed import Adapter
from rankwise.stats.multi_label import DEFAULT
from rankwise.tasks.registry import task_of
from rankwise.tasks.task import Task

ALL = "all"
"""Selects every adapter."""


@dataclass(frozen=True)
class Source:
    """A folder to serve an adapter from."""

    folder: Path
    run: Path | None = None  # the run folder that it is part of
    run_name: str = ""  # of the run on this server


@dataclass(frozen=True, eq=False)
class Served:
    """An adapter in service."""

    name: str
    source: Source
    digest: str  # of the folder's files
    saved: SavedAdapter
    tokenizer: Tokenizer
    backbone: Backbone
    adapter: Adapter
    max_length: int  # tokens
    notes: tuple[str, ...] = ()  # what the user should know, such as a base of another version

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of the logits."""
        return self.saved.labels

    @property
    def task(self) -> Task:
        """What labels a text has."""
        return task_of(self.saved.task, self.saved.label_separator)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """What the texts of a pair are called; empty for single texts."""
        return self.saved.text_columns

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """(classes,) probabilities from which a multi-label adapter gives its labels; None for others."""
        if not self.task.several:
            return None
        return self.saved.thresholds or (DEFAULT,) * len(self.labels)

    @property
    def rank(self) -> int:
        """The adapter's rank; 0 for a linear probe."""
        return self.saved.spec.rank

    @property
    def seed(self) -> int:
        """The seed that it was trained with; 0 if it is not known."""
        return self.saved.spec.seed

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of texts, each (length,) int64.

        Raises:
            DataError: a text has no tokens, or cannot be encoded.
            ModelError: the tokenizer does not fit the model.
        """
        ids = self.tokenizer(texts, self.max_length)
        check_ids(ids, self.backbone)
        return ids


@dataclass(frozen=True)
class Group:
    """Adapters whose probabilities are averaged: one adapter, or the seeds of a rank."""

    name: str
    members: tuple[Served, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, the same for all members."""
        return self.members[0].labels

    @property
    def task(self) -> Task:
        """What labels a text has, the same for all members."""
        return self.members[0].task

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """(classes,) means over the members; None if the most probable label is the answer."""
        found = [each.thresholds for each in self.members]
        if None in found:
            return None
        return tuple(sum(each) / len(found) for each in zip(*filter(None, found), strict=True))


@dataclass(frozen=True, eq=False)
class Shared:
    """The frozen backbone that several adapters share."""

    backbone: Backbone
    digest: str  # of the base model


@dataclass(frozen=True)
class Lineup:
    """Every adapter in service, by name."""

    base: str
    adapters: Mapping[str, Served]
    default: str
    shared: Shared | None  # None for a single adapter, which is merged into a backbone of its own

    @cached_property
    def base_name(self) -> str:
        """The base model's name for clients, which need not know where a folder is."""
        return Path(self.base).name if Path(self.base).is_dir() else self.base

    def select(self, names: Sequence[str] = (), ranks: Sequence[int] = ()) -> list[Group]:
        """The adapters and ranks that a request names; the default adapter if it names none.

        Raises:
            UsageError: there is no such adapter or rank, or the seeds of a rank differ in their labels.
        """
        if ALL in names:
            names = list(self.adapters)
        if not names and not ranks:
            names = [self.default]
        found = [self._one(name) for name in dict.fromkeys(names)]
        return found + [self._rank(rank) for rank in dict.fromkeys(ranks)]

    def _one(self, name: str) -> Group:
        if name not in self.adapters:
            raise UsageError(f"no adapter {name[:100]!r}", hint="GET /v1/adapters lists the adapters")
        return Group(name, (self.adapters[name],))

    def _rank(self, rank: int) -> Group:
        members = tuple(each for each in self.adapters.values() if each.rank == rank)
        if not members:
            known = sorted({each.rank for each in self.adapters.values()})
            raise UsageError(f"no adapter of rank {rank}", hint=f"there are {', '.join(map(str, known))}")
        if len({(each.labels, each.source.run, each.task) for each in members}) > 1:
            raise UsageError(
                f"the adapters of rank {rank} are of several runs or have different labels",
                hint="name the adapters",
            )
        return Group(f"rank-{rank}", members)
