"""A single adapter can be served in int8; several share a backbone that cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rankwise import Classifier, UsageError
from rankwise.commands import quantization
from rankwise.nn import int8
from rankwise.serve.engine import Engine
from rankwise.serve.loading import Loader
from tests import tiny
from tests.serve.made import logits_of, make_adapter

TEXTS = tiny.texts(5, seed=3)
pytestmark = pytest.mark.skipif(not int8.is_supported(), reason="this CPU has no AVX512-VNNI")


def test_a_single_adapter(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "LEAST", 10)  # the tiny run has 18 validation texts
    lineup = Loader([str(adapter)], device="cpu", precision="int8").load()
    (served,) = lineup.adapters.values()
    with Engine() as engine:
        ours = logits_of(engine, [(served, served.encode(TEXTS))])[0]
    theirs = Classifier.load(adapter, device="cpu", precision="int8").logits(TEXTS)
    exact = Classifier.load(adapter, device="cpu", precision="float32").logits(TEXTS)
    assert np.allclose(ours, theirs, atol=0.01 * np.abs(exact).max())
    assert not np.array_equal(ours, exact)


def test_several_adapters_are_refused(tmp_path: Path, gpt2_base: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        make_adapter(tmp_path / "run" / "adapters" / name, gpt2_base, seed=seed)
    with pytest.raises(UsageError, match="2 adapters share one backbone"):
        Loader([str(tmp_path / "run")], device="cpu", precision="int8").load()
