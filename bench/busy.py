"""Training and prediction on a busy machine, beside programs that use all the processor time they can get.

SmolLM2-135M in bfloat16 trains one adapter and classifies texts of emotion, in turn beside 0, 1, 2 and 4
programs that only spin. The variants differ in how OpenMP's threads wait for each other. This is decided when
torch is loaded, so each variant is a process of its own. All take turns within a round.

Of interest is how many texts a second of the process's own processor time is worth, compared with the quiet
machine: what is missing was spent on waiting. The texts per second of wall time also depend on the share that
the scheduler grants.

    python -m bench.busy [--seconds S] [--rounds N] [--competitors 0,1,2,4] [--spins N,N,...] [--record FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rankwise import cores

TEXTS = 8
DEFAULT, OURS, PASSIVE = "the default", "rankwise", "passive"
JOBS = ("train", "predict")
WAITING = {*cores.GNU_WAITING, *cores.INTEL_WAITING}


class Pace(NamedTuple):
    """What a job did in a while."""

    texts: int
    wall: float  # seconds
    cpu: float  # seconds of all threads


def main() -> None:
    """Measure each variant beside each number of competitors, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement, at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--competitors", default="0,1,2,4", help="numbers of spinning programs")
    parser.add_argument("--spins", default="", help="further values of GOMP_SPINCOUNT to try")
    parser.add_argument("--only", choices=JOBS, help="one job alone")
    parser.add_argument("--record", type=Path, help="Markdown file to write the table to")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work()
    counts = [int(each) for each in options.competitors.split(",")]
    found: dict[tuple[str, int, str], list[Pace]] = defaultdict(list)
    with workers(variants([each for each in options.spins.split(",") if each])) as ready:
        for number in range(options.rounds):
            for count in counts:
                with competitors(count):
                    for job in [options.only] if options.only else JOBS:
                        for name in sorted(ready, reverse=bool(number % 2)):
                            pace = ready[name](job, options.seconds)
                            found[job, count, name].append(pace)
                            print(job, count, name, *(f"{each:.1f}" for each in pace), file=sys.stderr)
        report(found, list(ready), options)


def variants(spins: Sequence[str]) -> dict[str, dict[str, str]]:
    """Name -> environment of the process."""
    plain = {name: value for name, value in os.environ.items() if name not in WAITING}
    ours = dict(plain)
    cores.share_fairly(ours)
    return {
        DEFAULT: plain,
        OURS: ours,
        PASSIVE: plain | {"OMP_WAIT_POLICY": "PASSIVE"},
        **{f"GOMP_SPINCOUNT={each}": plain | {"GOMP_SPINCOUNT": each} for each in spins},
    }


Measure = Callable[[str, float], Pace]


@contextmanager
def workers(environments: dict[str, dict[str, str]]) -> Iterator[dict[str, Measure]]:
    """A process for each variant, which measures on request and sleeps in between."""
    command = [sys.executable, "-W", "ignore", "-m", "bench.busy", "--worker"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    begun = {name: subprocess.Popen(command, env=each, **pipes) for name, each in environments.items()}

    def measured(process: subprocess.Popen[str]) -> Measure:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        there, back = process.stdin, process.stdout

        def measure(job: str, seconds: float) -> Pace:
            there.write(f"{job} {seconds}\n")
            there.flush()
            return Pace(*json.loads(back.readline()))

        return measure

    try:
        yield {name: measured(process) for name, process in begun.items()}
    finally:
        for process in begun.values():
            process.kill()
            process.wait()


@contextmanager
def competitors(number: int) -> Iterator[None]:
    """Programs that spin meanwhile."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def work() -> None:
    """Measure jobs as requested on stdin."""
    jobs = prepared()
    for job in jobs.values():
        job()
    print("ready", flush=True)
    for line in sys.stdin:
        name, seconds = line.split()
        print(json.dumps(_pace(jobs[name], float(seconds))), flush=True)


def _pace(job: Callable[[], None], seconds: float) -> Pace:
    start, worked, times = time.perf_counter(), _cpu(), 0
    while not times or time.perf_counter() - start < seconds:
        job()
        times += 1
    return Pace(times * TEXTS, time.perf_counter() - start, _cpu() - worked)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def prepared() -> dict[str, Callable[[], None]]:
    """A training step on the same texts each time, and their prediction."""
    import numpy as np
    import torch

    from bench import common
    from rankwise.models import base as bases
    from rankwise.models.base import load_backbone
    from rankwise.nn.bank import AdapterSpec, match_modules
    from rankwise.nn.inference import bank_logits
    from rankwise.recipe import Recipe
    from rankwise.training.trainer import Trainer, TrainingData

    torch.manual_seed(0)
    base = bases.find(bases.SMOLLM2)
    backbone = load_backbone(base, torch.bfloat16, torch.device("cpu"))
    ids, labels = common.draw(TEXTS)
    names = [str(i) for i in range(common.CLASSES)]
    modules = match_modules(list(backbone.modules()), ["all-linear"])
    spec = AdapterSpec(8, 16.0, 2.0, 110, 0.1, modules, learning_rate=1e-6, epochs=10_000)
    data = TrainingData(ids, np.array(labels), names)
    trainer = Trainer(backbone, [spec], data, Recipe(batch_size=TEXTS, epochs=10_000).train)
    return {
        "train": lambda: void(trainer.step()),
        "predict": lambda: void(bank_logits(backbone, trainer.bank, ids)),
    }


def void(result: object) -> None:
    """Drop a result."""


def report(
    found: dict[tuple[str, int, str], list[Pace]], names: Sequence[str], options: argparse.Namespace
) -> None:
    """Print the record and write it to a file."""
    from bench import common

    def rate(job: str, count: int, name: str, by: str) -> float:
        return float(median(pace.texts / getattr(pace, by) for pace in found[job, count, name]))

    rows = []
    for job, count in dict.fromkeys((job, count) for job, count, _ in found):
        for name in names:
            cpu, wall = (rate(job, count, name, by) for by in ("cpu", "wall"))
            usual = rate(job, 0, DEFAULT, "wall")
            kept = cpu / rate(job, 0, name, "cpu")
            shares = [pace.cpu / pace.wall for pace in found[job, count, name]]
            rows.append(
                [
                    *(job, count, name, f"{cpu:.1f}", f"{100 * kept:.0f} %", f"{median(shares):.2f}"),
                    *(f"{wall:.1f}", f"{100 * wall / usual:.0f} %"),
                ]
            )
    header = [
        *("job", "competitors", "threads wait", "texts per CPU second", "of quiet", "cores used"),
        *("texts/s", "of the default, quiet"),
    ]
    notes = {
        "work": f"SmolLM2-135M, bfloat16, {TEXTS} texts of {common.labelled_texts()[0]} at a time; training: "
        f"one adapter of rank 8 on all linear layers; {options.rounds} rounds of at least "
        f"{options.seconds:g} s, medians",
        "rankwise": f"GOMP_SPINCOUNT={cores.SPINS}",
    }
    command = f"python -m bench.busy --seconds {options.seconds:g} --rounds {options.rounds}"
    command += f" --competitors {options.competitors}" + f" --spins {options.spins}" * bool(options.spins)
    common.write_record(
        "Training and prediction on a busy machine",
        command,
        notes,
        common.table(header, rows),
        options.record,
    )


if __name__ == "__main__":
    main()
