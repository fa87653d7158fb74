"""The processes of a sweep besides process 0: they train every bank with it, and write and print nothing.

process 0    recipe ---+                 bank ---+                           results
others                 +-- data, base            +-- the same steps -- ...      +-- end
"""

from __future__ import annotations

import sys

from rankwise import schema
from rankwise.commands.bank import Order
from rankwise.commands.material import Material, read_material
from rankwise.commands.tune import tuning_data
from rankwise.errors import RankwiseError, Unreachable, UsageError, option
from rankwise.recipe import Recipe
from rankwise.store import files
from rankwise.store.run_folder import RunFolder
from rankwise.training.callbacks import Callback
from rankwise.training.journal import Clock
from rankwise.training.parallel import Group, PeerLost, SharedOutOfMemory, error_of
from rankwise.training.resume import called
from rankwise.training.trainer import Trainer


def follow(group: Group) -> schema.Results:
    """Train with process 0 until it has finished.

    Returns:
        Its results.

    Raises:
        SystemExit: the run has ended for a reason that process 0 tells.
        Unreachable: process 0 has died or does not answer; only process 1 raises it.
    """
    try:
        return _follow(group)
    except PeerLost:
        if group.share.process == 1 and not group.is_told():
            raise Unreachable(
                "process 0 has ended or does not answer",
                hint=f"what it has saved can be resumed: {option('resume', True)}",
            ) from None
        sys.exit(Unreachable.exit_status)


def _follow(group: Group) -> schema.Results:
    first = group.hear()
    if isinstance(first, schema.Results):  # of a run that was complete already
        return first
    material = _material(first, group)
    data = {"train": material.training_data}
    while isinstance(order := group.hear(), Order):
        if order.stage not in data:
            data[order.stage] = tuning_data(material)
        trainer = Trainer(
            material.backbone,
            order.specs,
            data[order.stage],
            order.settings,
            saved=order.saved,
            micro_batches=order.micro_batches,
            group=group,
        )
        try:
            while not trainer.done:
                if trainer.validation_due:
                    trainer.validate()
                else:
                    trainer.step()
        except SharedOutOfMemory:
            continue  # process 0 sends a smaller bank
    assert isinstance(order, schema.Results)
    return order


def _material(recipe: Recipe, group: Group) -> Material:
    """Data and base, read by this process."""
    with files.scratch_folder({}, {}) as scratch:
        try:
            material = read_material(recipe, RunFolder(scratch), Callback(), Clock(), None)
        except RankwiseError as error:
            group.collect(error)
            sys.exit(error.exit_status)
    group.collect(material.fingerprint)
    return material


def require_same(group: Group, material: Material) -> None:
    """In process 0, wait for the others, and check that they have read the same data and base.

    Raises:
        RankwiseError: the error of another process, or UsageError if it has read something else.
    """
    for index, found in enumerate(group.collect(material.fingerprint)):
        if isinstance(found, RankwiseError):
            raise error_of(index, found)
        if other := [name for name, digest in material.fingerprint.items() if found[name] != digest]:
            raise UsageError(
                f"process {index} has read another {called(other[0])} than process 0",
                hint="every machine needs the same files under the same path",
            )
