"""The doctor reports problems with advice, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import huggingface_hub.constants
import pytest
import torch
from typer.testing import CliRunner

from rankwise import hardware
from rankwise.cli import doctor, selftest
from rankwise.cli.app import app
from rankwise.cli.doctor import Finding
from rankwise.models.registry import FAMILIES
from rankwise.nn import fused

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def findings(*checks: Any) -> dict[str, Finding]:
    return {each.check: each for check in checks for each in check()}


def problem(finding: Finding) -> str:
    assert finding.state == "problem" and finding.hint
    return f"{finding.found}; {finding.hint}"


def test_every_check_says_something() -> None:
    found = list(doctor.examine())
    names = [each.check for each in found]
    assert len(names) == len(set(names)) and all(each.found for each in found)
    assert {"python", "torch", "precision", "threads", "memory cpu", "hub", "gpt2 float32"} <= set(names)
    assert all(bool(each.hint) == (each.state != "ok") for each in found)


# Numerics


def test_the_numbers_are_right() -> None:
    found = selftest.run(CPU, (torch.float32, torch.bfloat16))
    expected = [(family, precision) for family in FAMILIES for precision in ("float32", "bfloat16")]
    assert [(each.family, each.precision) for each in found] == expected
    assert all(each.passed for each in found)
    assert all(0 < each.logits < 1e-5 for each in found if each.precision == "float32")
    assert all(each.gradients > 1e-4 for each in found if each.precision == "bfloat16")


def test_the_self_test_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    selftest.run(CPU, (torch.float32,))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_wrong_numbers_are_seen(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    right = selftest._backbone

    def wrong(peer: Any, family: Any, device: torch.device) -> Any:
        backbone = right(peer, family, device)
        next(iter(backbone.linears())).weight.mul_(factor)
        return backbone

    monkeypatch.setattr(selftest, "_backbone", wrong)
    assert not any(each.passed for each in selftest.run(CPU, (torch.float32,)))
    assert "results cannot be trusted" in problem(findings(doctor._numbers)["gpt2 float32"])


# The environment


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["torch>=99"], "torch is 2"),
        (["no-such-package>=1"], "no-such-package is not installed"),
        (["torch>=1", 'no-such-package>=1; extra == "dev"'], ""),
        (["no-such-package; python_version < '3'"], ""),
    ],
)
def test_requirements(monkeypatch: pytest.MonkeyPatch, lines: list[str], said: str) -> None:
    monkeypatch.setattr(doctor, "requires", lambda name: lines)
    found = findings(doctor._packages)["requirements"]
    assert said in problem(found) if said else found.state == "ok"


@pytest.mark.parametrize(
    ("given", "cores", "quota", "said"),
    [
        ("0", 4, 4.0, "a whole number from 1"),
        ("many", 4, 4.0, "a whole number from 1"),
        ("4", 4, 2.0, "OMP_NUM_THREADS=2"),
        (None, 4, 0.5, "OMP_NUM_THREADS=1"),
        ("4", 4, float("inf"), ""),
    ],
)
def test_threads(
    monkeypatch: pytest.MonkeyPatch, given: str | None, cores: int, quota: float, said: str
) -> None:
    monkeypatch.setattr(hardware, "threads", lambda: 4)
    monkeypatch.setattr("rankwise.cores.cores", lambda: cores)
    monkeypatch.setattr("rankwise.cgroups.quota", lambda: quota)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    found = findings(doctor._threads)["threads"]
    assert said in problem(found) if said else found.state == "ok"


def test_how_threads_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    (found,) = doctor._waiting()
    assert found.state == "note" and "GOMP_SPINCOUNT" in found.hint
    monkeypatch.setenv("GOMP_SPINCOUNT", "3000")
    (found,) = doctor._waiting()
    assert (found.state, found.hint) == ("ok", "") and "GOMP_SPINCOUNT=3000" in found.found


def test_precision_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert findings(doctor._machine)["precision"].found == "auto takes bfloat16: amx_bf16 multiplies bfloat16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert "auto takes float32: cpu does not" in findings(doctor._machine)["precision"].found


def test_a_gpu_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "fused kernels" not in findings(doctor._machine)
    monkeypatch.setattr(hardware, "device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(hardware, "bfloat16_by", lambda device: "a GPU")
    monkeypatch.setattr(fused, "has_triton", lambda: False)
    found = findings(doctor._machine)["fused kernels"]
    assert (found.state, "install triton" in found.hint) == ("note", True)
    monkeypatch.setattr(fused, "has_triton", lambda: True)
    monkeypatch.setattr(doctor, "version", lambda name: "3.6.0")
    assert findings(doctor._machine)["fused kernels"].found == "used: triton 3.6.0 is installed"


def test_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "free_memory", lambda on: 10**9)
    assert problem(findings(doctor._memory)["memory cpu"]).startswith("1.0 GB free")


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**10, 10**10, 10**6))
    assert "RANKWISE_CACHE" in problem(findings(doctor._caches)["cache of rankwise"])


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "HF_HOME" in problem(findings(doctor._caches)["cache of the Hub"])


def test_the_size_of_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "blob").write_bytes(b"x" * 30_000_000)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "blob")
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path))
    assert f"{tmp_path}, 0.03 GB" in findings(doctor._caches)["cache of rankwise"].found
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "none" / "deeper"))
    assert "not made yet" in findings(doctor._caches)["cache of rankwise"].found


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings(doctor._hub)["hub"].found == "not asked: HF_HUB_OFFLINE is set"

    def refuse(*args: Any) -> NoReturn:
        raise OSError("nobody there")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    found = findings(doctor._hub)["hub"]
    assert (found.state, "does not answer" in found.found) == ("note", True)


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def _broken() -> Iterator[Finding]:
        yield Finding("one", "well")
        raise OSError("no such thing\nat all")

    monkeypatch.setattr(doctor, "CHECKS", (_broken,))
    one, two = doctor.examine()
    assert (one.state, two.check, two.found) == ("ok", "broken", "OSError: no such thing")
    assert two.state == "problem"


# The command


@pytest.mark.parametrize(("state", "status"), [("ok", 0), ("note", 0), ("problem", 1)])
def test_the_verb(monkeypatch: pytest.MonkeyPatch, state: doctor.State, status: int) -> None:
    finding = Finding("thing", "[b]so[/b] and so", state, "" if state == "ok" else "do this")
    monkeypatch.setattr(doctor, "examine", lambda: iter([finding]))
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == status and "[b]so[/b] and so" in shown.stdout
    assert ("hint: do this" in shown.stdout) == (state != "ok")
    assert ("nothing is wrong" in shown.stdout) == (status == 0)
    as_json = CliRunner().invoke(app, ["doctor", "--json"])
    assert as_json.exit_code == status
    assert json.loads(as_json.stdout) == [
        {"check": "thing", "found": "[b]so[/b] and so", "state": state, "hint": finding.hint}
    ]
