"""The base model's own dropout, and the hand-written backward pass of its sum."""

from __future__ import annotations

import pytest

from rankwise.nn.dropout import DropoutHook
from rankwise.nn.ragged.batch import pack
from rankwise.nn.ragged.masks import StepMasks
from tests.unit.nn.gradients import compare, leaves
from tests.unit.nn.models import texts


@pytest.mark.parametrize("pooled", [False, True])
def test_add_with_dropout(pooled: bool) -> None:
    packed = pack([texts([3, 9]), texts([4])])
    rows = len(packed.last if pooled else packed.ids)
    x, branch = leaves((rows, 10), (rows, 10))
    masks = StepMasks([1, 2], [0, 0], packed)
    ours = DropoutHook(masks).add("a name", x, branch, 0.4, pooled)
    mask = masks.rows("a name", 10, [0.4, 0.4], pooled)
    compare(ours, x + branch * mask / 0.6, (x, branch))


def test_add_without_dropout() -> None:
    x, branch = leaves((7, 10), (7, 10))
    compare(DropoutHook(None).add("a name", x, branch, 0.4), x + branch, (x, branch))
