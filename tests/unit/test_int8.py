"""A classifier in int8 is compared with itself when it is loaded, and refused if its labels change."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from rankwise import Classifier, ModelError, UsageError, hardware
from rankwise.commands import quantization
from rankwise.nn import int8
from tests import tiny

TEXTS = tiny.texts(30, seed=9)
needs_vnni = pytest.mark.skipif(not int8.is_supported(), reason="this CPU has no AVX512-VNNI")


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny run has 18 validation texts."""
    monkeypatch.setattr(quantization, "LEAST", 10)


@needs_vnni
def test_predictions_are_nearly_the_same(adapter: Path) -> None:
    notes: list[str] = []
    ours = Classifier.load(adapter, precision="int8", on_note=notes.append)
    exact = Classifier.load(adapter, precision="float32")
    pattern = (
        r".*in int8, .* % of 12 labels are those of (bfloat16|float32) \(6 others .*; of 18 validation texts"
    )
    assert len(notes) == 1 and re.match(pattern, notes[0])
    found, expected = ours.predict_proba(TEXTS), exact.predict_proba(TEXTS)
    assert 0 < np.abs(found - expected).max() < 0.2


@needs_vnni
def test_an_adapter_without_a_run_is_refused(adapter: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(adapter, tmp_path / "alone")
    with pytest.raises(ModelError, match=r"verified on 10 validation texts .* it has 0") as caught:
        Classifier.load(alone, precision="int8")
    assert caught.value.hint == "use precision='bfloat16'"


@needs_vnni
def test_changed_labels_are_refused(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "AGREEMENT", 1.01)
    with pytest.raises(ModelError, match=r"in int8, only .* % of .* labels are those of") as caught:
        Classifier.load(adapter, precision="int8")
    assert caught.value.hint == "use precision='bfloat16'"


@needs_vnni
def test_gradients_are_refused(adapter: Path) -> None:
    classifier = Classifier.load(adapter, precision="int8")
    assert classifier.explain(TEXTS[0]).label
    with pytest.raises(UsageError, match="no gradients are computed in int8"):
        classifier.explain(TEXTS[0], method="gradient")


@needs_vnni
def test_a_pickled_classifier_is_the_same(adapter: Path) -> None:
    classifier = Classifier.load(adapter, precision="int8")
    assert np.array_equal(pickle.loads(pickle.dumps(classifier)).logits(TEXTS), classifier.logits(TEXTS))


@pytest.mark.parametrize(("device", "able"), [("cpu", {"avx2": True}), ("mps", {"avx512_vnni": True})])
def test_machines_without_fast_products(
    device: str, able: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    with pytest.raises(UsageError, match="int8 needs a CPU with AVX512-VNNI") as caught:
        hardware.prediction_dtype("int8", torch.device(device))
    assert caught.value.hint == "use precision='bfloat16'"


def test_training_is_not_in_int8() -> None:
    with pytest.raises(UsageError, match="unknown precision 'int8'") as caught:
        hardware.dtype("int8", torch.device("cpu"))
    assert "int8 is for prediction" in caught.value.hint
