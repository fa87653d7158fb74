"""A process with all imports done that forks a killable child per run.

Importing torch takes seconds, and a kill test needs hundreds of fresh processes. The server reads one
JSON line per run from stdin and writes one to stdout. It does no computation itself and has only
one thread, so that it can fork safely.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    status: int  # exit status; the negative signal number if killed by a signal
    seconds: float
    after_signal: float  # seconds from the first signal to the end; 0 without signals
    output: str  # stdout and stderr


class Server:
    """Client for the server process.

    Args:
        folder: working directory of commands.
        warm: arguments of a command that the server runs first, to complete all imports.
        hash_seed: PYTHONHASHSEED of all runs.
    """

    def __init__(self, folder: Path, warm: list[str], hash_seed: int = 0) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PYTHONHASHSEED": str(hash_seed),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server", *warm],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()

    def run(self, function: str, *arguments: Any, signals: tuple[int, ...] = (), after: float = 0.0) -> Ended:
        """Call a function of `tests.faults.runs` in a fresh child.

        Args:
            function: name of the function, which returns the exit status.
            arguments: JSON-serializable arguments of the function.
            signals: signals to send to the child, 20 ms apart.
            after: seconds from the start of the child to the first signal.
        """
        assert self._process.stdin and self._process.stdout
        request = {"function": function, "arguments": arguments, "signals": signals, "after": after}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))


def _serve() -> None:
    from tests.faults import runs

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        runs.command(sys.argv[1:])
    for line in sys.stdin:
        request = json.loads(line)
        output, child_output = os.pipe()
        start = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            os.dup2(child_output, 1)
            os.dup2(child_output, 2)
            os.closerange(3, 64)
            _end(_child(getattr(runs, request["function"]), request["arguments"]))
        os.close(child_output)
        first = _send(pid, request["signals"], start + request["after"])
        with open(output, encoding="utf-8", errors="replace") as file:
            text = file.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        now = time.perf_counter()
        answer = Ended(status, now - start, now - first if first else 0.0, text)
        print(json.dumps(vars(answer)), flush=True)


def _send(pid: int, signals: list[int], at: float) -> float:
    """Send the signals, the first at a given time, and return when it was sent."""
    first = 0.0
    for number in signals:
        time.sleep(max(0.0, at - time.perf_counter()) if not first else 0.02)
        first = first or time.perf_counter()
        os.kill(pid, number)  # safe: an exited child remains a zombie until waited for
    return first


def _child(function: Any, arguments: list[Any]) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return int(function(*arguments) or 0)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 99


def _end(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _serve()
