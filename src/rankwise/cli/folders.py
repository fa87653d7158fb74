"""Run folders given where another kind of folder is meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rankwise.cli.terminal import show_note
from rankwise.errors import UsageError
from rankwise.store.run_folder import RunFolder, command

ADAPTER_FILE = "adapter_config.json"


def adapter_of(path: Path) -> Path:
    """The adapter folder that a path means.

    An adapter folder is meant as it is. A run means its recommended adapter, and a search its best one; this
    is said on stderr. Anything else is left to the loader to explain.

    Raises:
        UsageError: the run is not finished, or one of its files cannot be read.
    """
    run = RunFolder(path.parent if path.name == "adapters" else path)
    if (path / ADAPTER_FILE).exists() or not (run.is_begun() or run.results.exists() or run.search.exists()):
        return path
    if run.search.exists():
        name, why = run.read_search().best, "it is the best of the search"
    else:
        require_sweep(run.path, "predict", hint=f"or give one of the folders in {run.adapters}")
        from rankwise.commands.locate import recommended

        name, why = recommended(run)
    show_note(f"{run.path} is a run: this is its adapter {name} ({why})")
    return run.adapters / name


def require_sweep(path: Path, verb: str, hint: str = "") -> None:
    """Check that a folder is not one that surely holds no finished sweep.

    Raises:
        UsageError: it contains a search, an unfinished run, or an adapter.
    """
    run = RunFolder(path)
    if run.search.exists():
        best = run.read_search().command
        raise UsageError(
            f"{path}: contains a search, not a sweep",
            hint=f"{command('search', '--resume', path)} prints its trials; its best settings: {best}",
        )
    if run.is_begun() and not run.results.exists():
        again = command(_kind(run), "--resume", path)
        raise UsageError(
            f"{path}: contains an unfinished run", hint=f"{again} resumes it{hint and '; '}{hint}"
        )
    if (path / ADAPTER_FILE).exists() and path.parent.name == "adapters":
        raise UsageError(f"{path}: is an adapter, not a run", hint=command(verb, path.parent.parent))


def _kind(run: RunFolder) -> str:
    """The command that an unfinished run was started with."""
    from rankwise.training import resume

    saved, _ = resume.load(run)
    return resume.kind(run, saved.state if saved else None)


def require_reportable(paths: Sequence[Path]) -> None:
    """Check that folders can be reported: one sweep or search, or several sweeps.

    Raises:
        UsageError: one of several is a search, or one holds no finished run.
    """
    for path in paths:
        if len(paths) > 1 or not RunFolder(path).search.exists():
            require_sweep(path, "report")
