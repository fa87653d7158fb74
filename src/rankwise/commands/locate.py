"""Which adapter folder a path means, and which paths a recipe means."""

from __future__ import annotations

import os
from pathlib import Path

from rankwise.data.columns import is_path
from rankwise.data.load import is_hub_id
from rankwise.errors import ModelError
from rankwise.models import base as bases
from rankwise.models import hub_adapters, peft_config
from rankwise.paths import expanded
from rankwise.recipe import Recipe
from rankwise.store.run_folder import RunFolder


def adapter_folder(given: Path | str) -> Path:
    """The adapter folder that a path means: for the folder of a finished run, that of its best choice.

    This is the best adapter of the rank that a sweep's verdict recommends, or the best adapter of a search.
    If there is no such folder, OWNER/NAME and OWNER/NAME@REVISION are an adapter on the Hub. It is fetched.

    Raises:
        ModelError: it is the folder of a run that did not finish, or the Hub has no such adapter.
        UsageError: the results of the run cannot be read.
        Unreachable: the Hub does not answer, and the adapter is not in its cache.
    """
    if repository := hub_adapters.on_hub(os.fspath(given)):
        return hub_adapters.fetch(*repository)
    folder = expanded(given)
    if (folder / peft_config.NAME).exists():
        return folder
    run = RunFolder(folder)
    if run.search.exists():
        return run.adapters / run.read_search().best
    if run.results.exists():
        return run.adapters / recommended(run)[0]
    if run.is_begun():
        raise ModelError(
            f"{folder}: the folder of a run that did not finish, not an adapter folder",
            hint=f"pass one of the folders in {run.adapters}",
        )
    return folder


def beside(adapter: Path, suffix: str) -> Path:
    """`ADAPTER-SUFFIX`, beside the folder of an adapter.

    >>> beside(Path("runs/first/adapters/r4-s110"), "cut2").name
    'r4-s110-cut2'
    """
    named = adapter if adapter.name.strip(".") else adapter.resolve()  # `.` has no name of its own
    return named.with_name(f"{named.name}-{suffix}")


def local_place(given: Path | str, adapter: Path) -> Path:
    """The folder of an adapter; for one from the Hub, its name in the working folder.

    Args:
        given: what the user gave.
        adapter: the folder that it means.
    """
    repository = hub_adapters.on_hub(os.fspath(given))
    return Path(repository[0].partition("/")[2]) if repository else adapter


def recommended(run: RunFolder) -> tuple[str, str]:
    """Name of a finished sweep's recommended adapter, and why it is the one.

    Raises:
        UsageError: the results of the run cannot be read.
    """
    from rankwise.report.ranks import compare
    from rankwise.report.run import load
    from rankwise.report.verdict import chosen

    finished = load(run)
    comparison = compare(finished)
    choice = chosen(finished.results, comparison)
    why = f"rank {choice.rank} is recommended"
    if comparison.enough is None:
        why = f"the verdict is open, and rank {choice.rank} is the smallest not shown to be worse"
    return choice.best.name, why


def anchored(recipe: Recipe) -> Recipe:
    """A recipe whose paths of existing files and folders are absolute, so that it is valid anywhere."""
    data = recipe.data
    changes = {"base": bases.anchored(recipe.base)}
    if isinstance(data.source, str) and data.source != "starter":
        changes["data"] = _anchored(data.source)
    on_hub = isinstance(data.source, str) and is_hub_id(data.source)
    for name, given in (("validation", data.validation), ("test", data.test)):
        if isinstance(given, str) and (is_path(given) or not on_hub):  # else the name of a split on the Hub
            changes[name] = _anchored(given)
    return recipe.replace(**changes)


def _anchored(path: str) -> str:
    return os.path.abspath(path) if os.path.exists(path) else path
