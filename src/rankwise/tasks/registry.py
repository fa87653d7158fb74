"""Name -> task."""

from __future__ import annotations

from rankwise.schema import TaskName
from rankwise.tasks.labels import SEPARATOR
from rankwise.tasks.multi import MultiLabel
from rankwise.tasks.single import SINGLE
from rankwise.tasks.task import Task


def task_of(name: TaskName, separator: str = SEPARATOR) -> Task:
    """The task of this name.

    Args:
        name: as in a recipe.
        separator: joins the labels of a text in a cell of a table.
    """
    return MultiLabel(separator=separator) if name == "multi-label" else SINGLE
