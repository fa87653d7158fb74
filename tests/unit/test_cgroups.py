"""Limits of Linux's control groups, in both versions of the interface."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rankwise import cgroups


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of control groups in which this process is in `/a/b`, without any limit."""
    own = tmp_path / "own"
    own.write_text("4:memory:/c/d\n3:cpu,cpuacct:/a/b\n1:name=systemd:/a\n0::/a/b\n")
    monkeypatch.setattr(cgroups, "_OWN_GROUPS", own)
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path / "fs")
    return tmp_path / "fs"


def limit(group: Path, **files: str) -> None:
    group.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (group / name.replace("__", ".")).write_text(content + "\n")


def test_no_limit(groups: Path) -> None:
    assert cgroups.quota() == math.inf
    assert cgroups.free_memory() is None


@pytest.mark.parametrize("group", ["", "a", "a/b"], ids=["a container's own", "an outer one", "its own"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_quota(groups: Path, group: str, version: int) -> None:
    if version == 2:
        limit(groups / group, cpu__max="150000 100000")
    else:
        limit(groups / "cpu" / group, cpu__cfs_quota_us="150000", cpu__cfs_period_us="100000")
    assert cgroups.quota() == 1.5


def test_the_least_of_several_quotas_counts(groups: Path) -> None:
    limit(groups / "a", cpu__max="300000 100000")
    limit(groups / "a" / "b", cpu__max="400000 100000")
    assert cgroups.quota() == 3.0


@pytest.mark.parametrize("content", ["max 100000", "", "many few", "100000 0"])
def test_what_is_no_limit_in_version_2(groups: Path, content: str) -> None:
    limit(groups, cpu__max=content)
    assert cgroups.quota() == math.inf


def test_minus_one_is_no_limit_in_version_1(groups: Path) -> None:
    limit(groups / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert cgroups.quota() == math.inf


@pytest.mark.parametrize("group", ["", "outer", "outer/own"])
@pytest.mark.parametrize("version", [1, 2])
def test_memory(groups: Path, group: str, version: int) -> None:
    """8,000 bytes are allowed and 7,500 used, of which 3,000 are inactive pages of files."""
    if version == 2:
        folder = groups / group.replace("outer", "a").replace("own", "b")
        limit(
            folder, memory__max="8000", memory__current="7500", memory__stat="anon 4000\ninactive_file 3000"
        )
    else:
        folder = groups / "memory" / group.replace("outer", "c").replace("own", "d")
        limit(
            folder,
            memory__limit_in_bytes="8000",
            memory__usage_in_bytes="7500",
            memory__stat="inactive_file 1\ntotal_inactive_file 3000",
        )
    assert cgroups.free_memory() == 3500


def test_the_least_free_memory_counts_and_is_never_negative(groups: Path) -> None:
    limit(groups, memory__max="9000", memory__current="1000", memory__stat="inactive_file 0")
    limit(groups / "a", memory__max="2000", memory__current="2100", memory__stat="inactive_file 0")
    assert cgroups.free_memory() == 0


@pytest.mark.parametrize("most", ["max", "", "many"])
def test_what_is_no_limit_of_memory_in_version_2(groups: Path, most: str) -> None:
    limit(groups, memory__max=most, memory__current="1000", memory__stat="inactive_file 0")
    assert cgroups.free_memory() is None


def test_a_huge_number_is_no_limit_of_memory_in_version_1(groups: Path) -> None:
    files = {"memory__limit_in_bytes": str((1 << 63) - 4096), "memory__usage_in_bytes": "1000"}
    limit(groups / "memory", **files, memory__stat="total_inactive_file 0")
    assert cgroups.free_memory() is None
