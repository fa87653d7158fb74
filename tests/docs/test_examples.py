"""Each example runs to its end, as its user runs it, on a tiny base."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT


def run(cwd: Path, name: str, *arguments: str | Path) -> str:
    """What examples/NAME prints on stdout."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    command = [sys.executable, ROOT / "examples" / name, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {
        "ask_server.py",  # by tests/serve/test_client.py
        "compare_alpha_modes.py",
        "own_csv.py",
        "use_with_peft.py",
    }


def test_own_csv(tmp_path: Path, llama_base: Path) -> None:
    lines = run(tmp_path, "own_csv.py", "--base", llama_base).splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["r1-s110", "r8-s110", "recommended"]
    assert len((tmp_path / "runs" / "own-csv.csv").read_text("utf-8").splitlines()) == 31
    answers = [line.split()[0] for line in lines[3:]]
    assert len(answers) == 3
    assert set(answers) <= {"billing", "delivery", "praise"}


def test_use_with_peft(tmp_path: Path, gpt2_base: Path, data_folder: Path) -> None:
    lines = run(tmp_path, "use_with_peft.py", "--base", gpt2_base, "--data", data_folder).splitlines()
    assert {line.split()[0] for line in lines[:3]} <= {"joy", "anger", "fear"}
    assert float(lines[3].rpartition(" ")[2]) < 1e-4


def test_compare_alpha_modes(tmp_path: Path, llama_base: Path, data_folder: Path) -> None:
    printed = run(tmp_path, "compare_alpha_modes.py", "--base", llama_base, "--data", data_folder)
    scales = {tuple(line.split()[:2]): float(line.split()[2]) for line in printed.splitlines()[1:]}
    assert scales == {
        ("fixed", "1"): 16.0,
        ("fixed", "8"): 2.0,
        ("ratio", "1"): 2.0,
        ("ratio", "8"): 2.0,
        ("rslora", "1"): 5.66,
        ("rslora", "8"): 2.0,
    }


def test_bad_input_ends_in_a_message(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"^error: missing\.csv: no such file"):
        run(tmp_path, "own_csv.py", "--csv", "missing.csv")
