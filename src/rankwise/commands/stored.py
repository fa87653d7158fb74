"""Data in memory, stored in the run folder so that the run can be resumed.

A run whose data is in memory writes the texts and labels that it reads to `data/train.parquet` and so on. The
recipe of the run names that folder. Wherever the run folder is moved, the data is found in it.
"""

from __future__ import annotations

from dataclasses import replace

from rankwise.commands.material import Material
from rankwise.data import load as data
from rankwise.errors import UsageError
from rankwise.recipe import Recipe
from rankwise.store.run_folder import RunFolder
from rankwise.training.resume import OUT


def with_stored_data(material: Material) -> Material:
    """Write data in memory to the run folder; the recipe then names the files."""
    if not material.recipe.data.in_memory:
        return material
    return replace(material, recipe=data.store(material.recipe, material.run.tables))


def at_hand(before: Recipe, given: Recipe, run: RunFolder) -> tuple[Recipe, Recipe]:
    """The recipe that a run was started with and the one given on resume, with the data where it is now.

    Raises:
        UsageError: the data in memory differs from what the run has stored.
    """
    if not run.tables.is_dir():
        return before, given
    if given.data.in_memory and not data.is_stored(given, run.tables):
        raise UsageError(
            f"{run.path}: the data is not what this run was started with",
            hint=f"restore the original, or give another {OUT} for a new run",
        )
    if given.data.in_memory or given.data.source == before.data.source:
        given = data.reading(given, run.tables)
    return data.reading(before, run.tables), given
