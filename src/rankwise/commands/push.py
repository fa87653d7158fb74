"""The `push` command: an adapter, or the model it was merged into, in a repository on the Hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from rankwise.commands.export import export
from rankwise.commands.locate import adapter_folder
from rankwise.errors import UsageError, option
from rankwise.exporting.upload import MAIN, require_repository, require_token, upload
from rankwise.models import hub_adapters, peft_format
from rankwise.models.base import package
from rankwise.report.card import hub_card, shared_card
from rankwise.report.run import Run, load
from rankwise.schema import AdapterResult, Push
from rankwise.store.run_folder import RunFolder

CARD = "README.md"


def push(
    adapter: PathLike[str] | str,
    repository: str,
    *,
    merged: bool = False,
    public: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    base: PathLike[str] | str | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Push:
    """Push an adapter to a repository on the Hub, which is created if there is none.

    An adapter goes with its tokenizer, its model card and the results.json of its run. Texts never go:
    neither the data nor predictions. The token is the one of `hf auth login`, or in the environment variable
    `HF_TOKEN`.

    Args:
        adapter: an adapter folder, or the folder of a finished run.
        repository: OWNER/NAME.
        merged: push a classifier of transformers instead, as `export(to="merged")` writes it, with a card.
        public: whether a new repository is public.
        revision: branch, which is created if there is none; `main` by default.
        dry_run: whether only to say what would be pushed. Nothing is sent, and no token is needed.
        base: for `merged`: the base model, if it cannot be found under the name stored with the adapter.
        on_note: called with what the user should know.

    Raises:
        UsageError: there is no token, the Hub refuses it or the repository, or the name is none.
        ModelError: the adapter cannot be used.
        Unreachable: the Hub does not answer.
    """
    note = on_note or (lambda text: None)
    require_repository(repository)
    if base and not merged:
        raise UsageError(f"{option('base')} is for {option('merged', True)} only")
    if not dry_run:
        require_token()
    path = adapter_folder(os.fspath(adapter))
    saved, found = peft_format.load(path), _in_run(path)
    with tempfile.TemporaryDirectory(prefix="rankwise-") as temporary:
        contents: dict[str, Path | bytes] = {}
        if merged:
            folder = Path(temporary) / "merged"
            export(path, "merged", folder, base=base, on_note=on_note)
            contents = {each.name: each for each in sorted(folder.iterdir())}
        else:
            contents = {name: path / name for name in hub_adapters.ADAPTER_FILES if (path / name).is_file()}
            _note_base(saved.base, note)
        contents[CARD] = _card(path, saved, found, repository, merged).encode()
        if found:
            results = RunFolder(found[0].path).results
            contents[results.name] = results
        pushed = Push(
            repository=repository,
            revision=revision or MAIN,
            file_bytes={name: _size(content) for name, content in contents.items()},
            private=not public,
            created=None,
            url=None,
        )
        if dry_run:
            return pushed
        message = f"{path.name}, merged into its base model" if merged else path.name
        done = upload(
            repository,
            contents,
            private=not public,
            revision=revision or MAIN,
            message=f"rankwise: {message}",
        )
    if not done.created:
        note(f"{repository} exists: this added a commit, and did not change who can see it")
    return pushed.model_copy(update={"created": done.created, "url": done.url})


def _in_run(adapter: Path) -> tuple[Run, AdapterResult] | None:
    """The finished run that an adapter is in, and the adapter's results; None if there is none."""
    run = RunFolder(adapter.absolute().parent.parent)
    if adapter.absolute().parent != run.adapters.absolute() or not run.results.exists():
        return None
    finished = load(run)
    row = next((row for row in finished.results.adapters if row.name == adapter.name), None)
    return (finished, row) if row else None


def _card(
    adapter: Path,
    saved: peft_format.SavedAdapter,
    run: tuple[Run, AdapterResult] | None,
    repository: str,
    merged: bool,
) -> str:
    """The adapter's own card, which the user may have edited; or a new one."""
    if (adapter / CARD).is_file() and not merged:
        return shared_card((adapter / CARD).read_text("utf-8"), repository)
    return hub_card(
        repository,
        labels=saved.labels,
        base=saved.base,
        rank=saved.spec.rank,
        max_length=saved.max_length,
        merged=merged,
        several=saved.task == "multi-label",
        pair=saved.text_columns,
        run=run,
    )


def _note_base(base: str, note: Callable[[str], None]) -> None:
    """Say so if others cannot find the base model by its name."""
    if os.path.isdir(base):
        note(
            f"the base model is a folder on this machine, {base}: others need {option('base')}; "
            f"{option('merged', True)} pushes a whole model"
        )
    elif _is_packaged(base):
        note(
            f"only rankwise knows the base model {base}; "
            f"{option('merged', True)} pushes a model for transformers"
        )


def _is_packaged(base: str) -> bool:
    try:
        package(base)
    except KeyError:
        return False
    return True


def _size(content: Path | bytes) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)
