"""A real server on loopback, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef-for-tests"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class Running:
    """A server, and what it logged."""

    process: subprocess.Popen[str]
    url: str
    lines: list[str] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The records of the access log."""
        found = [json.loads(line) for line in list(self.lines) if line.startswith("{")]
        return [record for record in found if record["event"] == "request"]

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's values with these labels."""
        text = httpx.get(f"{self.url}/metrics", headers=AUTHORIZED, timeout=30).text
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        values = [
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if re.match(rf"{name}(\{{|\s)", line) and all(each in line for each in wanted)
        ]
        return sum(values)

    def stop(self, timeout: float = 60) -> int:
        """Send SIGTERM and wait; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


@contextmanager
def running(*arguments: object, token: str = "", **environment: str) -> Iterator[Running]:
    """Start `rankwise serve` on a free port, and stop it at the end.

    Warnings are errors in it, except for those that PYTHONWARNINGS ignores.
    """
    ignored = [f"-W{each}" for each in os.environ.get("PYTHONWARNINGS", "").split(",") if each]
    python = [sys.executable, "-W", "error", *ignored]
    command = [*python, "-m", "rankwise", "serve", *map(str, arguments), "--port", "0"]
    variables = {name: value for name, value in os.environ.items() if name != "RANKWISE_TOKEN"}
    variables |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **environment}
    variables |= {"RANKWISE_TOKEN": token} if token else {}
    process = subprocess.Popen(command, cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    lines: list[str] = []
    reader: threading.Thread | None = None
    try:
        for line in process.stderr:
            lines.append(line)
            if match := re.search(r" at (http://\S+) ", line):
                break
        else:
            raise AssertionError("".join(lines))
        server = Running(process, match[1], lines)
        reader = threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True)
        reader.start()
        yield server
    finally:
        process.kill()
        process.wait()
        if reader:
            reader.join()
        process.stderr.close()


def allow_connections() -> None:
    """Raise this process's limit of open files for tests with many clients."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536) if hard > 0 else 65_536, hard))
