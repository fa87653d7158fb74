"""The results of small sweeps are bit-identical to the recorded ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden import runs

KNOWN = json.loads(runs.TABLE.read_text("utf-8")).get(runs.platform())


@pytest.mark.skipif(KNOWN is None, reason=f"no digests were recorded on {runs.platform()}")
@pytest.mark.parametrize("name", runs.CASES)
def test_no_number_has_changed(name: str, tmp_path: Path) -> None:
    assert runs.digests(name, tmp_path) == KNOWN[name]
