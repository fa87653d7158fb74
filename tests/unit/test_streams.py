"""Full disks, closed streams, readers that leave, signals, and encodings, in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rankwise.cli import streams
from rankwise.commands.classifier import Classifier
from rankwise.store.run_folder import RunFolder
from tests import tiny
from tests.unit.test_cli import HERE, SETTINGS, raising, rankwise, refusal

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def shell(line: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `$0` is the program and `$1`, `$2`, ... are the arguments."""
    program = f"{sys.executable} -m rankwise"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        ["bash", "-c", line.replace("rankwise", program), "rankwise", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=environment | options.pop("env", {}),
        **options,
    )


def sweep_of(base: Path, data: Path) -> list[object]:
    return ["--base", base, "--data", data, *SETTINGS, *HERE, "--out", "r"]


def test_a_sweep_goes_on_when_its_reader_leaves(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    line = 'rankwise sweep "$@" 2>&1 | head -1; echo "${PIPESTATUS[0]}"'
    done = shell(line, *sweep_of(gpt2_base, data_folder), cwd=tmp_path)
    assert done.stdout.splitlines() == ["data", "0"]
    assert RunFolder(tmp_path / "r").is_complete()


@needs_full
def test_a_full_disk_for_the_output(run: RunFolder) -> None:
    done = shell('rankwise samples "$1" >/dev/full', run.path)
    assert done.returncode == 6
    assert done.stderr.startswith("error: standard output: cannot write: No space left on device\nhint: ")
    assert shell('rankwise samples "$1" 2>/dev/full', run.path).returncode == 0
    assert shell('rankwise samples "$1" >/dev/full 2>/dev/full', run.path).returncode == 6
    assert shell("rankwise samples none 2>/dev/full >/dev/full", run.path).returncode == 2


def test_no_home_folder(run: RunFolder, tmp_path: Path) -> None:
    """matplotlib then warns about its cache, which is of no use to the user."""
    copy = shutil.copytree(run.path, tmp_path / "run")
    home = {"HOME": "/proc/none", "MPLCONFIGDIR": "/proc/none", "XDG_CONFIG_HOME": "/proc/none"}
    done = shell('rankwise report "$1"', copy, env=home)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(run: RunFolder, closed: str) -> None:
    done = shell(f'rankwise samples "$1" {closed}', run.path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_checkpoint_never_gets_the_number_of_a_closed_stream(
    gpt2_base: Path, data_folder: Path, tmp_path: Path
) -> None:
    done = shell('rankwise sweep "$@" >&- 2>&-', *sweep_of(gpt2_base, data_folder), cwd=tmp_path)
    assert done.returncode == 0
    assert RunFolder(tmp_path / "r").is_complete()
    assert json.loads((tmp_path / "r" / "results.json").read_text())


def test_characters_that_the_encoding_lacks(tmp_path: Path) -> None:
    name = "snow☃ \U0001f600.csv"
    tiny.write_csv(tmp_path / name, [(f"so glad {n}", "☃") for n in range(20)] + tiny.rows(40, 1))
    ascii_only = {"PYTHONIOENCODING": "cp1252"}
    done = shell('rankwise data "$1" --json', name, cwd=tmp_path, env=ascii_only)
    assert done.returncode == 0, done.stderr
    assert "\\u2603" in done.stdout and "☃" in json.dumps(json.loads(done.stdout), ensure_ascii=False)
    done = shell('rankwise data "$1"', "no" + name, cwd=tmp_path, env=ascii_only)
    assert done.returncode == 3 and "nosnow\\u2603 \\ud83d\\ude00.csv" in done.stderr


def test_control_characters_in_names(tmp_path: Path) -> None:
    for line in ('rankwise evaluate "$1" x.csv', 'rankwise runs "$1"', 'rankwise data "$1" --json'):
        done = shell(line, "a\x1b[2J\x9b1m\x7f", cwd=tmp_path)
        assert done.returncode > 0
        assert not set("\x1b\x9b\x7f") & set(done.stdout + done.stderr)


def test_no_folder_for_temporary_files(
    gpt2_base: Path, data_folder: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A sweep does not need one; where one is needed, the message says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [])
    rankwise("sweep", *sweep_of(gpt2_base, data_folder))
    monkeypatch.setattr(Classifier, "load", lambda *arguments, **options: tempfile.gettempdir())
    shown = refusal("predict", adapter, "so glad", *HERE, status=6)
    assert "there is no folder for temporary files" in shown and "hint: set TMPDIR" in shown


def test_an_escape_is_valid_in_json() -> None:
    with pytest.raises(UnicodeDecodeError):
        streams.escaped(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"))
    error = UnicodeEncodeError("cp1252", "a\u2603\U0001f600\ud800", 1, 4, "no")
    text, end = streams.escaped(error)
    assert end == 4
    assert json.loads(f'"{text}"') == "\u2603\U0001f600\ud800"


# Signals

SIGNALLED = """
import os, signal, sys
from rankwise.training.callbacks import Callback
from rankwise.cli import app as cli, terminal

class Bars(terminal.ProgressBars):
    def step(self, adapters, number, steps, losses):
        super().step(adapters, number, steps, losses)
        if number == 3:
            for each in {numbers}:
                os.kill(os.getpid(), each)

terminal.ProgressBars = Bars
sys.argv = ["rankwise", *sys.argv[1:]]
cli.main()
"""


def signalled(numbers: list[signal.Signals], before: str, arguments: list[object], folder: Path) -> Any:
    """A sweep that gets signals after its third step; `before` is a shell command that runs first."""
    code = SIGNALLED.format(numbers=list(map(int, numbers)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    words = [sys.executable, "-c", code, "sweep", *map(str, arguments)]
    return subprocess.run(
        ["bash", "-c", f'{before} exec "$@"', "bash", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        cwd=folder,
        env=environment,
    )


def test_signals_that_are_ignored_stay_ignored(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    """As for the background job of a script, or under nohup."""
    numbers, arguments = [signal.SIGINT, signal.SIGHUP, signal.SIGTERM], sweep_of(gpt2_base, data_folder)
    done = signalled(numbers, "trap '' INT HUP TERM;", arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert RunFolder(tmp_path / "r").is_complete()


def test_a_closed_terminal_saves(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    done = signalled([signal.SIGHUP], "", sweep_of(gpt2_base, data_folder), tmp_path)
    assert done.returncode == 129
    assert "saved; go on with: rankwise sweep --resume r" in done.stderr
    assert "error: ended by SIGHUP" in done.stderr
    assert (tmp_path / "r" / "checkpoint").exists()


def test_an_error_of_the_system_is_not_ours(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classifier, "load", raising(OSError(5, "Input/output error", "/x/y")))
    shown = refusal("predict", adapter, "text", status=6)
    assert shown.startswith("error: /x/y: Input/output error\nhint: ")


def test_sigterm_leaves_no_half_of_a_file(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("text\n" + "so glad\n" * 300_000, "utf-8")
    line = """
        rankwise predict "$1" --input in.csv --output out.csv & child=$!
        for i in $(seq 300); do ls -A | grep -q tmp && break; sleep 0.1; done
        kill -TERM $child; wait $child; echo "status $?"
    """
    done = shell(line, adapter, cwd=tmp_path)
    assert "status 143" in done.stdout and "error: ended by SIGTERM" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
