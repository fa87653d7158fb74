"""The caches of compiled products are smaller than by default, unless the user says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


@pytest.mark.parametrize(("given", "found"), [({}, ["256", "64"]), ({NAMES[0]: "7"}, ["7", "64"])])
def test_before_torch_is_there(given: dict[str, str], found: list[str]) -> None:
    code = (
        f"import os, sys, rankwise; assert 'torch' not in sys.modules; print(*map(os.environ.get, {NAMES}))"
    )
    clean = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | given,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == found
