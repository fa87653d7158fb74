"""Cores, and how the command line makes threads wait for each other."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rankwise import cgroups, cores


@pytest.mark.parametrize(("quota", "threads"), [(0.2, 1), (1.0, 1), (1.5, 2), (3.0, 3), (9.0, 4)])
def test_threads_follow_the_quota(monkeypatch: pytest.MonkeyPatch, quota: float, threads: int) -> None:
    monkeypatch.setattr(cores, "cores", lambda: 4)
    monkeypatch.setattr(cgroups, "quota", lambda: quota)
    assert cores.usable() == threads
    environment: dict[str, str] = {}
    cores.share_fairly(environment)
    assert environment.get("OMP_NUM_THREADS") == (str(threads) if threads < 4 else None)


def test_settings_of_the_user_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable", lambda: 1)
    monkeypatch.setattr(cores, "cores", lambda: 2)
    own = {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "7", "KMP_BLOCKTIME": "5"}
    assert own == _shared(own)
    policy = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "2"}
    assert policy == _shared(policy)
    assert _shared({}) == {
        "OMP_NUM_THREADS": "1",
        "GOMP_SPINCOUNT": str(cores.SPINS),
        "KMP_BLOCKTIME": str(cores.BLOCKTIME_MS),
    }


def _shared(given: dict[str, str]) -> dict[str, str]:
    found = dict(given)
    cores.share_fairly(found)
    return found


COMMAND = """
import sys
from rankwise.cli.app import main
sys.argv = ["rankwise", "version"]
try:
    main()
except SystemExit:
    pass
"""


@pytest.mark.parametrize(
    ("code", "expected"),
    [(COMMAND, str(cores.SPINS)), ("import rankwise; rankwise.Recipe()", "None")],
    ids=["the command line", "a program that imports rankwise"],
)
def test_only_the_command_line_sets_it(code: str, expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in cores.GNU_WAITING}
    command = [sys.executable, "-c", f"{code}\nimport os; print(os.environ.get('GOMP_SPINCOUNT'))"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split()[-1] == expected
