"""The dependency audit fails on a finding, and reports when the service is unreachable."""

from __future__ import annotations

import importlib.util
import subprocess
from typing import Any

import pytest

from tests.docs.markdown import ROOT

spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
assert spec is not None and spec.loader is not None
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)

CLEAN = {"name": "a", "version": "1", "vulns": []}
FLAWED = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "status", "line"),
    [
        ([CLEAN, CLEAN], 0, "audit: no known vulnerability in 2 packages"),
        ([CLEAN, SKIPPED], 0, "audit: no known vulnerability in 1 packages; not looked up: c"),
        ([SKIPPED], 0, "audit: skipped, the vulnerability service cannot be reached"),
        ([CLEAN, FLAWED, SKIPPED], 1, "audit: b 2: CVE-1, mended in 3"),
    ],
)
def test_verdict(packages: list[dict[str, Any]], status: int, line: str) -> None:
    found, lines = audit.verdict({"dependencies": packages})
    assert found == status and len(lines) == 1 and lines[0].startswith(line)


def test_no_answer_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nConnectionError: no route\n")
    monkeypatch.setattr(subprocess, "run", lambda *given, **options: failed)
    assert audit.main() == 0
    assert capsys.readouterr().out == "audit: skipped, pip-audit could not ask: ConnectionError: no route\n"
