"""The largest rank of a sweep, cut to every smaller rank after training and evaluated.

The rows show whether a smaller rank must be trained, or can be cut from a larger one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankwise.commands.material import Material
from rankwise.models import peft_format
from rankwise.nn.bank import Bank
from rankwise.nn.cut import CutAdapter, cut
from rankwise.nn.inference import bank_logits
from rankwise.training.callbacks import Callback
from rankwise.training.journal import Clock
from rankwise.training.outcome import Outcome


@dataclass(frozen=True)
class EvaluatedCut:
    """A cut adapter and its logits."""

    adapter: CutAdapter
    logits: dict[str, NDArray[np.float32]]  # evaluated split -> (texts, classes)


def evaluated_cuts(
    material: Material, trained: Sequence[Outcome], callback: Callback, clock: Clock
) -> list[EvaluatedCut]:
    """Cut the adapters of the largest rank to every smaller rank, and evaluate all of them in one bank.

    Args:
        material: the inputs of the sweep.
        trained: the finished adapters, whose folders must exist.
        callback: notified of progress.
        clock: counts the time as evaluation.

    Returns:
        For each adapter of the largest rank, in order, a cut to each smaller rank of the recipe above 0.
    """
    cuts = _cuts(material, trained) if material.recipe.train.cuts else []
    if not cuts:
        return []
    bank = _bank(material, cuts)
    callback.begin("cuts", sum(len(split.ids) for split in material.evaluated.values()))
    with clock.timed("evaluate"):
        found = {
            name: split.mean(bank_logits(material.backbone, bank, split.ids, callback.advance))
            for name, split in material.evaluated.items()
        }
    callback.end()
    return [
        EvaluatedCut(each, {name: logits[i] for name, logits in found.items()}) for i, each in enumerate(cuts)
    ]


def _cuts(material: Material, trained: Sequence[Outcome]) -> list[CutAdapter]:
    """The cut adapters, from the folders of the run, which also hold the adapters of a resumed one."""
    specs = [material.specs[outcome.name] for outcome in trained]
    largest = max(spec.rank for spec in specs)
    smaller = sorted(rank for rank in material.recipe.lora.ranks if 0 < rank < largest)
    states = (
        (spec, peft_format.load(material.run.adapters / spec.name).state)
        for spec in specs
        if smaller and spec.rank == largest
    )
    return [cut(spec, state, rank) for spec, state in states for rank in smaller]


def _bank(material: Material, cuts: Sequence[CutAdapter]) -> Bank:
    backbone, classes = material.backbone, len(material.corpus.labels)
    specs = [each.spec for each in cuts]
    bank = Bank(specs, backbone.modules(), backbone.d_model, classes, device=material.device)
    for number, each in enumerate(cuts):
        bank.load(number, each.state)
    return bank
