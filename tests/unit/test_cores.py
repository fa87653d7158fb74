"""Cores, the quota of control groups, and how the command line makes threads wait for each other."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rankwise import cores


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of control groups in which this process is in `/a/b`, without any limit."""
    own = tmp_path / "own"
    own.write_text("4:memory:/other\n3:cpu,cpuacct:/a/b\n1:name=systemd:/a\n0::/a/b\n")
    monkeypatch.setattr(cores, "_OWN_GROUPS", own)
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path / "fs")
    return tmp_path / "fs"


def limit(group: Path, **files: str) -> None:
    group.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (group / name.replace("__", ".")).write_text(content + "\n")


def test_no_limit(groups: Path) -> None:
    assert cores.quota() == math.inf
    assert cores.usable() == cores.cores() >= 1


@pytest.mark.parametrize("group", ["", "a", "a/b"], ids=["a container's own", "an outer one", "its own"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_quota(groups: Path, group: str, version: int) -> None:
    if version == 2:
        limit(groups / group, cpu__max="150000 100000")
    else:
        limit(groups / "cpu" / group, cpu__cfs_quota_us="150000", cpu__cfs_period_us="100000")
    assert cores.quota() == 1.5


def test_the_least_of_several_quotas_counts(groups: Path) -> None:
    limit(groups / "a", cpu__max="300000 100000")
    limit(groups / "a" / "b", cpu__max="400000 100000")
    assert cores.quota() == 3.0


@pytest.mark.parametrize("content", ["max 100000", "", "many few", "100000 0"])
def test_what_is_no_limit_in_version_2(groups: Path, content: str) -> None:
    limit(groups, cpu__max=content)
    assert cores.quota() == math.inf


def test_minus_one_is_no_limit_in_version_1(groups: Path) -> None:
    limit(groups / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert cores.quota() == math.inf


@pytest.mark.parametrize(("quota", "threads"), [(0.2, 1), (1.0, 1), (1.5, 2), (3.0, 3), (9.0, 4)])
def test_threads_follow_the_quota(monkeypatch: pytest.MonkeyPatch, quota: float, threads: int) -> None:
    monkeypatch.setattr(cores, "cores", lambda: 4)
    monkeypatch.setattr(cores, "quota", lambda: quota)
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
