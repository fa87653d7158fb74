"""Reads adapters from disk into a lineup, at the start and at each reload.

A single adapter is merged into its base model. Several share one frozen backbone.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from rankwise import hardware
from rankwise.commands.predict import check_fits, head_of
from rankwise.commands.quantization import to_int8
from rankwise.errors import ModelError, RankwiseError, UsageError, option
from rankwise.models import base as bases
from rankwise.models import hub_adapters
from rankwise.models import peft_format as adapters
from rankwise.models.base import load_backbone
from rankwise.models.peft_format import SavedAdapter, merge
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import HEAD
from rankwise.nn.mixed import Adapter
from rankwise.serve.lineup import Lineup, Served, Source
from rankwise.store import files
from rankwise.store.run_folder import RunFolder


@dataclass
class Changes:
    """What a reload did, by adapter name."""

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # name -> message; the old adapter stays


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
        return self._line_up(read, None)

    def reload(self, current: Lineup) -> tuple[Lineup, Changes]:
        """Read what changed on disk. An adapter that cannot be used leaves the old one in service.

        Raises:
            UsageError: no adapter would be left, or two have the same name.
        """
        folders, changes = self.folders(), Changes()
        read = {}
        for name, source in folders.items():
            old = current.adapters.get(name)
            try:
                read[name] = self._changed(source, old, current)
            except RankwiseError as error:
                changes.failed[name] = error.message
                if old:
                    read[name] = _Read(old.source, old.digest, old.saved)
        if not read:
            raise UsageError("no adapter would be left", hint="; ".join(changes.failed.values()))
        lineup = self._line_up(read, current)
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

    def _changed(self, source: Source, old: Served | None, current: Lineup) -> _Read:
        """The adapter on disk, checked against the backbone in service; not read again if it is the same."""
        if old and old.digest == _digest(source.folder):
            return _Read(old.source, old.digest, old.saved)
        read = _read(source)
        backbone = next(iter(current.adapters.values())).backbone
        check_fits(read.saved, backbone, source.folder, bases.find(current.base))
        self._tokenizer(source.folder)
        if read.saved.base != current.base and not self._base:
            raise ModelError(f"{source.folder}: is for {read.saved.base}, not for {current.base}")
        return read

    def _line_up(self, read: Mapping[str, _Read], current: Lineup | None) -> Lineup:
        base = self._base or _common_base(read)
        if len(read) == 1:
            ((name, only),) = read.items()
            served = {name: self._alone(name, only, base, current)}
        else:
            served = self._together(read, base, current)
        return Lineup(base, served, _default(served))

    def _alone(self, name: str, read: _Read, base: str, current: Lineup | None) -> Served:
        """An adapter merged into a backbone of its own."""
        old = current.adapters.get(name) if current and len(current.adapters) == 1 else None
        if old and old.saved is read.saved:
            return old
        backbone = load_backbone(bases.find(base), torch.float32, self.device)
        check_fits(read.saved, backbone, read.source.folder, bases.find(base))
        if read.saved.embedding is not None:
            backbone.tokens = read.saved.embedding.to(self.device)
        merge(backbone, read.saved)
        backbone.cast(self._dtype)
        if self._precision == hardware.INT8:
            folder, tokenizer = read.source.folder, self._tokenizer_of(read, base)
            longest = min(read.saved.max_length, backbone.max_positions)
            to_int8(backbone, head_of(read.saved, backbone), read.saved, folder, tokenizer, longest)
        head = Adapter.merged(read.saved.state[HEAD].to(self.device))
        return self._served(name, read, base, backbone, head)

    def _together(self, read: Mapping[str, _Read], base: str, current: Lineup | None) -> dict[str, Served]:
        """Adapters that share one backbone."""
        if self._precision == hardware.INT8:
            what = f"{option('precision', hardware.INT8)}: {len(read)} adapters share one backbone"
            raise UsageError(what, hint=f"serve one adapter, or use {option('precision', 'bfloat16')}")
        before = dict(current.adapters) if current and len(current.adapters) > 1 else {}
        if before:
            backbone = next(iter(before.values())).backbone
        else:
            backbone = load_backbone(bases.find(base), self._dtype, self.device)
        found = {}
        for name, each in read.items():
            old = before.get(name)
            if old and old.saved is each.saved:
                found[name] = old
                continue
            check_fits(each.saved, backbone, each.source.folder, bases.find(base))
            _check_embedding(each, backbone)
            adapter = Adapter.of(each.saved.spec, each.saved.state, backbone)
            found[name] = self._served(name, each, base, backbone, adapter)
        return found

    def _served(self, name: str, read: _Read, base: str, backbone: Backbone, adapter: Adapter) -> Served:
        tokenizer = self._tokenizer_of(read, base)
        longest = min(read.saved.max_length, backbone.max_positions)
        return Served(name, read.source, read.digest, read.saved, tokenizer, backbone, adapter, longest)

    def _tokenizer_of(self, read: _Read, base: str) -> Tokenizer:
        """An adapter's tokenizer, which is that of the base if it has none of its own."""
        folder = read.source.folder
        return self._tokenizer(folder if Tokenizer.is_in(folder) else bases.find(base).folder)

    def _tokenizer(self, folder: Path) -> Tokenizer:
        """The folder's tokenizer. Equal files share one."""
        tokenizer = Tokenizer.load(folder)
        key = " ".join(f"{path.name} {files.sha256(path)}" for path in tokenizer.files())
        return self._tokenizers.setdefault(key, tokenizer)


@dataclass(frozen=True)
class _Read:
    source: Source
    digest: str
    saved: SavedAdapter


def _named(source: str) -> tuple[str, Path]:
    """Split NAME=PATH; a path that exists is not split."""
    name, sign, path = source.partition("=")
    return (name, Path(path)) if sign and name and not Path(source).exists() else ("", Path(source))


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


def _common_base(read: Mapping[str, _Read]) -> str:
    names = {each.saved.base: each.source.folder for each in read.values()}
    if len(names) > 1:
        one, other = sorted(names)[:2]
        hint = "start a server for each base model, or name the one that fits all of them: --base"
        raise UsageError(f"the adapters are for several base models: {one} and {other}", hint=hint)
    ((name, folder),) = names.items()
    if not name:
        raise ModelError(
            f"{folder}: does not say which base model it is for", hint=f"give it: {option('base')}"
        )
    return name


def _check_embedding(read: _Read, backbone: Backbone) -> None:
    """PEFT saves the embeddings if a pad token was added; the others must be those of the base model."""
    own, shared = read.saved.embedding, backbone.tokens
    if own is not None and not torch.equal(own[: len(shared)].to(shared.device), shared):
        what = f"{read.source.folder}: has embeddings of its own, which cannot be shared"
        raise ModelError(what, hint="serve it alone")


def _compare(old: Lineup, new: Lineup, changes: Changes) -> None:
    for name, served in new.adapters.items():
        if name not in old.adapters:
            changes.added.append(name)
        elif old.adapters[name].digest != served.digest:
            changes.replaced.append(name)
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
