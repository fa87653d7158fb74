"""Startup times: of --help, of the import, and up to the first optimizer step of a run on the CPU.

The base model is cached before anything is timed. Each time is a median.

    python -m bench.startup [--rounds N] [--full] [--record FILE]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bench import common
from rankwise.models import base as bases

SWEEP = ("sweep", "--preset", "quickstart", "--ranks", "4", "--device", "cpu", "--out")


def main() -> None:
    """Measure the three times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="ten rounds")
    parser.add_argument("--record", type=Path, help="Markdown file to write the table to")
    options = parser.parse_args()
    rounds = 10 if options.full else options.rounds
    bases.find(bases.SMOLLM2)
    waits = {
        "`rankwise --help`": [finish("-m", "rankwise", "--help") for _ in range(rounds)],
        "`import rankwise`": [finish("-c", "import rankwise") for _ in range(rounds)],
        f"first step of `rankwise {' '.join(SWEEP[:-1])}`": [first_step() for _ in range(rounds)],
    }
    rows = [[what, f"{median(each):.2f}", f"{max(each):.2f}"] for what, each in waits.items()]
    common.write_record(
        "Start",
        f"python -m bench.startup --rounds {rounds}",
        {"base": f"{bases.SMOLLM2}, cached"},
        common.table(["what", "seconds, median", "longest"], rows),
        options.record,
    )


def finish(*arguments: str) -> float:
    """Wall time of a Python process in seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def first_step() -> float:
    """Seconds from the command to the first line of its history; the run is then stopped."""
    with tempfile.TemporaryDirectory() as folder:
        history = Path(folder) / "run" / "history.jsonl"
        start = time.perf_counter()
        command = [sys.executable, "-m", "rankwise", *SWEEP, str(history.parent)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (history.exists() and history.stat().st_size):
            time.sleep(0.01)
        seconds, early = time.perf_counter() - start, process.poll()
        process.terminate()
        process.wait()
    if early is not None:
        raise SystemExit(f"{' '.join(command)}: exited with status {early} before its first step")
    return seconds


if __name__ == "__main__":
    main()
