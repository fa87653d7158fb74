"""Labels as they are given, and their order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rankwise import Recipe, UsageError
from rankwise.models.peft_format import SavedAdapter
from rankwise.nn.bank import AdapterSpec

WITHOUT_ORDER: list[Any] = [
    {"x", "y"},
    frozenset("xy"),
    {"x": 0, "y": 1},
    "xy",
    "x,y",
    {"x": 0}.keys(),
    b"xy",
    7,
]


@pytest.mark.parametrize("labels", WITHOUT_ORDER)
def test_labels_without_an_order_are_refused(labels: Any) -> None:
    with pytest.raises(UsageError, match="give the labels as a list or tuple, in the order of the outputs"):
        Recipe(labels=labels)
    with pytest.raises(UsageError, match="give the labels as a list or tuple, in the order of the outputs"):
        unnamed().named(labels)


@pytest.mark.parametrize("labels", [["x", "y"], ("x", "y"), iter("xy"), (each for each in "xy")])
def test_labels_in_an_order(labels: Any) -> None:
    assert Recipe(labels=labels).data.labels == ("x", "y")


def test_names_from_an_iterator() -> None:
    assert unnamed().named(iter(["x", "y"])).labels == ("x", "y")


def unnamed() -> SavedAdapter:
    spec = AdapterSpec(rank=1, alpha=1.0, scale=1.0, seed=1, dropout=0.0, modules=())
    return SavedAdapter(spec, {"score": torch.zeros(2, 3)}, ("LABEL_0", "LABEL_1"), "base", 8)
