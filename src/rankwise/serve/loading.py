"""Reads adapters from disk into a lineup, at the start and at each reload.

A single adapter is merged into its base model. Several share one frozen backbone.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch

from rankwise import hardware
from rankwise.commands.assemble import Prepared, check_fits, find_base, load_merged, prepare, version_note
from rankwise.errors import ModelError, RankwiseError, UsageError, option
from rankwise.models import base as bases
from rankwise.models import hub_adapters
from rankwise.models import peft_format as adapters
from rankwise.models.base import Base, load_with_digest
from rankwise.models.peft_format import SavedAdapter
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import HEAD
from rankwise.nn.mixed import Adapter
from rankwise.paths import expanded
from rankwise.serve.lineup import Lineup, Served, Shared, Source
from rankwise.store import files
from rankwise.store.run_folder import RunFolder


@dataclass
class Changes:
    """What a reload did, by adapter name."""

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # name -> message; the old adapter stays
    notes: list[str] = field(default_factory=list)  # on what was added and replaced


class Loader:
    """Reads the adapters of run folders and adapter folders.

    Args:
        sources: run folders, adapter folders, and adapters on the Hub, each as PATH or NAME=PATH.
        base: the base model, if it is not the one that the adapters name.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, bfloat16, float32, or int8, for a single adapter.
    """

    def __init__(
        self,
        sources: Sequence[str],
        *,
        base: str | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> None:
        self._sources = [_named(source) for source in sources]
        self._base, self.device = base, hardware.device(device)
        self._precision, self._dtype = precision, hardware.prediction_dtype(precision, self.device)
        self._tokenizers: dict[str, Tokenizer] = {}

    def load(self) -> Lineup:
        """Read every adapter.

        Raises:
            ModelError: an adapter or its base model cannot be used.
            UsageError: there are no adapters, two have the same name, or they are of several base models.
            Unreachable: the base model must be downloaded, and the Hub does not answer.
        """
        read = {name: _read(source) for name, source in self.folders().items()}
        base = _common_base(read, self._base)
        return self._line_up({name: self._prepared(each, base) for name, each in read.items()}, base)

    def reload(self, current: Lineup) -> tuple[Lineup, Changes]:
        """Read what changed on disk. An adapter that cannot be used leaves the old one in service.

        Raises:
            UsageError: no adapter would be left, or two have the same name.
            ModelError: the only adapter in service cannot share a backbone with those that were added.
        """
        folders, changes, base = self.folders(), Changes(), bases.find(current.base)
        shared = self._shared(len(folders), base, current) if len(folders) > 1 else None
        backbone = shared.backbone if shared else next(iter(current.adapters.values())).backbone
        ready = {}
        for name, source in folders.items():
            old = current.adapters.get(name)
            try:
                ready[name] = self._changed(source, old, base)
                if not old or ready[name].saved is not old.saved:
                    check_fits(ready[name].prepared, backbone)
                    _check_embedding(ready[name], shared)
            except RankwiseError as error:
                changes.failed[name] = error.message
                ready.pop(name, None)
                if old:
                    ready[name] = _Ready.of(old, base)
        if not ready:
            raise UsageError("no adapter would be left", hint="; ".join(changes.failed.values()))
        lineup = self._line_up(ready, base, current, shared)
        _compare(current, lineup, changes)
        return lineup, changes

    def folders(self) -> dict[str, Source]:
        """Name -> folder of every adapter that is on disk now.

        Raises:
            UsageError: a source has no adapters, or two adapters have the same name.
        """
        several = sum(_is_run(path) for _, path in self._sources) > 1
        found: dict[str, Source] = {}
        runs: dict[str, Path | None] = {}
        for name, path in self._sources:
            for each, source in _expand(name, path, several):
                if each in found:
                    hint = f"give one a name of its own: NAME={path}"
                    raise UsageError(f"two adapters have the name {each!r}", hint=hint)
                if runs.setdefault(source.run_name, source.run) != source.run:
                    hint = f"give one a name of its own: NAME={path}"
                    raise UsageError(f"two runs have the name {source.run_name!r}", hint=hint)
                found[each] = source
        if not found:
            raise UsageError("no adapters to serve", hint="give a run folder or an adapter folder")
        return found

    def _changed(self, source: Source, old: Served | None, base: Base) -> _Ready:
        """The adapter on disk; not read again if it is the same."""
        if old and old.digest == _digest(source.folder):
            return _Ready.of(old, base)
        read = _read(source)
        if read.saved.base != base.name and not self._base:
            raise ModelError(f"{source.folder}: is for {read.saved.base}, not for {base.name}")
        return self._prepared(read, base)

    def _prepared(self, read: _Read, base: Base) -> _Ready:
        """An adapter with what it takes from its base. Equal tokenizers are one."""
        prepared = prepare(read.source.folder, read.saved, base)
        key = " ".join(f"{path.name} {files.sha256(path)}" for path in prepared.tokenizer.files())
        tokenizer = self._tokenizers.setdefault(key, prepared.tokenizer)
        return _Ready(read.source, read.digest, replace(prepared, tokenizer=tokenizer))

    def _line_up(
        self,
        ready: Mapping[str, _Ready],
        base: Base,
        current: Lineup | None = None,
        shared: Shared | None = None,
    ) -> Lineup:
        if len(ready) == 1:
            ((name, only),) = ready.items()
            served, shared = {name: self._alone(name, only, current)}, None
        else:
            shared = shared or self._shared(len(ready), base, current)
            served = self._together(ready, shared, current)
        return Lineup(base.name, served, _default(served), shared)

    def _alone(self, name: str, ready: _Ready, current: Lineup | None) -> Served:
        """An adapter merged into a backbone of its own."""
        old = current.adapters.get(name) if current and not current.shared else None
        if old and old.saved is ready.saved:
            return old
        model = load_merged(ready.prepared, self.device, self._precision)
        adapter = Adapter.merged(ready.saved.state[HEAD].to(self.device))
        return ready.served(name, model.backbone, adapter, model.note, model.verified)

    def _shared(self, number: int, base: Base, current: Lineup | None) -> Shared:
        """The backbone that several adapters share; that in service, if there is one."""
        if self._precision == hardware.INT8:
            what = f"{option('precision', hardware.INT8)}: {number} adapters share one backbone"
            raise UsageError(what, hint=f"serve one adapter, or use {option('precision', 'bfloat16')}")
        if current and current.shared:
            return current.shared
        return Shared(*load_with_digest(base, self._dtype, self.device))

    def _together(
        self, ready: Mapping[str, _Ready], shared: Shared, current: Lineup | None
    ) -> dict[str, Served]:
        """Adapters that share one backbone."""
        before = current.adapters if current and current.shared else {}
        found = {}
        for name, each in ready.items():
            old = before.get(name)
            if old and old.saved is each.saved:
                found[name] = old
                continue
            check_fits(each.prepared, shared.backbone)
            _check_embedding(each, shared)
            adapter = Adapter.of(each.saved.spec, each.saved.state, shared.backbone)
            note = version_note(each.prepared, shared.digest)
            found[name] = each.served(name, shared.backbone, adapter, note)
        return found


@dataclass(frozen=True)
class _Read:
    """An adapter as it was read from its folder."""

    source: Source
    digest: str
    saved: SavedAdapter


@dataclass(frozen=True)
class _Ready:
    """An adapter with all that it needs but a backbone."""

    source: Source
    digest: str
    prepared: Prepared

    @classmethod
    def of(cls, served: Served, base: Base) -> Self:
        """An adapter in service."""
        folder = served.source.folder
        return cls(served.source, served.digest, Prepared(folder, served.saved, base, served.tokenizer))

    @property
    def saved(self) -> SavedAdapter:
        """The adapter, with its label names."""
        return self.prepared.saved

    def served(self, name: str, backbone: Backbone, adapter: Adapter, *notes: str) -> Served:
        """The adapter on a backbone, with notes on it, of which some may be empty."""
        folder, saved = self.source.folder, self.saved
        longest = min(saved.max_length, backbone.max_positions)
        if self.prepared.label_note:
            notes = (f"{folder}: {self.prepared.label_note}", *notes)
        if saved.window_stride is not None:
            cut = f"the server cuts them at {longest:,} tokens"
            notes = (*notes, f"{folder}: reads long texts in windows; {cut}")
        told, tokenizer = tuple(filter(None, notes)), self.prepared.tokenizer
        return Served(name, self.source, self.digest, saved, tokenizer, backbone, adapter, longest, told)


def _named(source: str) -> tuple[str, Path]:
    """Split NAME=PATH; a path that exists is not split. A shell expands no `~` after a name."""
    name, sign, path = source.partition("=")
    is_named = sign and name and not expanded(source).exists()
    return (name, expanded(path)) if is_named else ("", expanded(source))


def _is_run(path: Path) -> bool:
    return RunFolder(path).adapters.is_dir()


def _expand(name: str, path: Path, several: bool) -> list[tuple[str, Source]]:
    """The adapters of a run folder, or the adapter of an adapter folder or of a repository on the Hub."""
    if repository := hub_adapters.on_hub(str(path)):
        return [(name or repository[0].partition("/")[2], Source(hub_adapters.fetch(*repository)))]
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder", hint="give a run folder or an adapter folder")
    if not _is_run(path):
        return [(name or path.resolve().name, Source(path))]
    run_name = name or path.resolve().name
    prefix = f"{run_name}/" if several or name else ""
    inside = sorted(each for each in RunFolder(path).adapters.iterdir() if _is_adapter(each))
    return [(prefix + each.name, Source(each, path, run_name)) for each in inside]


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _read(source: Source) -> _Read:
    """Read an adapter folder that others may write to at the same time.

    Tensors are mapped into memory, and a file that shrinks while it is mapped ends the process (SIGBUS). So
    they are read from a copy that nobody else knows, and kept in memory of their own.
    """
    with tempfile.TemporaryDirectory(prefix="rankwise-") as name:
        copy = Path(name)
        for path in _files(source.folder):
            files.copy(path, copy / path.name)
        try:
            saved = adapters.load(copy)
        except ModelError as error:
            raise ModelError(error.message.replace(name, str(source.folder)), hint=error.hint) from None
        own = {tensor: value.clone() for tensor, value in saved.state.items()}
        embedding = None if saved.embedding is None else saved.embedding.clone()
        return _Read(source, _digest(copy), replace(saved, state=own, embedding=embedding))


def _digest(folder: Path) -> str:
    listed = "\n".join(f"{path.name} {files.sha256(path)}" for path in _files(folder))
    return hashlib.sha256(listed.encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _common_base(read: Mapping[str, _Read], given: str | None) -> Base:
    """The base model of all adapters: the one that is given, or the one that they name.

    Raises:
        ModelError: it cannot be used, or an adapter does not name one.
        UsageError: the adapters are of several base models.
        Unreachable: it must be downloaded, and the Hub does not answer.
    """
    # For what is wrong, one adapter stands for all of them: one that names no base, if there is any.
    told = min(read.values(), key=lambda each: bool(each.saved.base))
    names = sorted({each.saved.base for each in read.values()})
    if not given and told.saved.base and len(names) > 1:
        hint = "start a server for each base model, or name the one that fits all of them: --base"
        what = f"the adapters are for several base models: {names[0]} and {names[1]}"
        raise UsageError(what, hint=hint)
    return find_base(told.saved, given, told.source.folder)


def _check_embedding(ready: _Ready, shared: Shared | None) -> None:
    """PEFT saves the embeddings if a pad token was added; the others must be those of the base model."""
    own = ready.saved.embedding
    if shared is None or own is None:
        return
    tokens = shared.backbone.tokens
    if not torch.equal(own[: len(tokens)].to(tokens.device, tokens.dtype), tokens):
        what = f"{ready.source.folder}: has embeddings of its own, which cannot be shared"
        raise ModelError(what, hint="serve it alone")


def _compare(old: Lineup, new: Lineup, changes: Changes) -> None:
    for name, served in new.adapters.items():
        if name not in old.adapters:
            changes.added.append(name)
        elif old.adapters[name].digest != served.digest:
            changes.replaced.append(name)
        if name in changes.added + changes.replaced:
            changes.notes += served.notes
    changes.removed += [name for name in old.adapters if name not in new.adapters]


def _default(served: Mapping[str, Served]) -> str:
    """The adapter that answers if none is named: the best of the rank that the run's verdict names."""
    first = next(iter(served.values()))
    if first.source.run is None or len(served) == 1:
        return first.name
    from rankwise.report.ranks import compare
    from rankwise.report.run import load
    from rankwise.report.verdict import chosen

    try:
        run = load(RunFolder(first.source.run))
        best = chosen(run.results, compare(run)).best.name
    except (RankwiseError, KeyError):  # an unfinished run can be served
        return first.name
    return next((name for name, each in served.items() if each.source.folder.name == best), first.name)
