"""What sweeps cost, measured on small shapes, and what they would cost on a large cluster, simulated.

    python -m bench.scaling --record docs/records/DATE-scaling.md      measure, fit, simulate
    python -m bench.scaling --rates 0.005,3.2e-12                      simulate with given rates

*Measured.* Training steps of GPT-2 shapes with random weights, each with one factor varied: adapters, texts,
width and depth of the base. Two parameters are fitted to the medians by least squares in the logarithm::

    seconds = a + b * FLOP        a: what a step costs whatever its size, b: seconds per operation

The fit is compared with shapes that it has not seen.

*Simulated.* A discrete-event simulation of a driver and of workers that train one bank after another, as
`rankwise.cluster` does. A bank takes as long as its steps; the speed of each bank is drawn from the measured
spread, and some workers are stragglers. Workers fail at a constant rate, and their banks go on from their
last states. The driver takes in reports and writes checkpoints. The simulation says how long a sweep takes,
and how busy workers and driver are: what breaks first.
"""

from __future__ import annotations

import argparse
import heapq
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from bench import common
from rankwise.models.gpt2 import GPT2Config
from rankwise.nn.bank import AdapterSpec, Bank, match_modules
from rankwise.nn.loss import CrossEntropy
from rankwise.training.trainer import step_of

TEXTS, LENGTH, CLASSES = 8, 24, 6
STEPS = 7
"""Timed steps of a shape; two more come first, which compile kernels."""
SMALL = {"vocab_size": 1000, "n_positions": 128}


@dataclass(frozen=True)
class Shape:
    """What a training step computes."""

    adapters: int = 4
    texts: int = TEXTS  # of each adapter
    length: int = LENGTH  # tokens of a text
    width: int = 256
    layers: int = 4

    @property
    def config(self) -> GPT2Config:
        """The base model."""
        heads = self.width // 64
        shape = {"n_embd": self.width, "n_layer": self.layers, "n_head": heads}
        return GPT2Config.from_json(SMALL | shape)

    @property
    def flop(self) -> float:
        """Floating-point operations of the frozen matrix products of a step."""
        return common.train_flop(self.config, [self.length] * self.texts * self.adapters)


FITTED = (
    *(Shape(adapters=number) for number in (1, 4, 16)),
    *(Shape(texts=number) for number in (2, 32)),
    *(Shape(width=number) for number in (128, 512)),
    Shape(layers=8),
)
"""Shapes that the parameters are fitted to."""
HELD_OUT = (Shape(adapters=8, texts=4), Shape(width=384, layers=6, adapters=2), Shape(length=64, texts=4))
"""Shapes that the fit is tested on."""


def measured(shape: Shape, seed: int = 0) -> list[float]:
    """Seconds of training steps of a shape."""
    torch.manual_seed(seed)
    backbone = common.gpt2(
        SMALL | {"n_embd": shape.width, "n_layer": shape.layers, "n_head": shape.width // 64}, torch.float32
    )
    modules = match_modules(list(backbone.modules()), backbone.default_targets)
    specs = [AdapterSpec(4, 4.0, 1.0, k, 0.1, modules, name=f"a{k}") for k in range(shape.adapters)]
    bank = Bank(specs, backbone.modules(), backbone.d_model, CLASSES)
    step, random = step_of(backbone, bank, CrossEntropy(), True), np.random.default_rng(seed)
    seconds = []
    for number in range(STEPS + 2):
        batches = [list(random.integers(0, SMALL["vocab_size"], (shape.texts, shape.length))) for _ in specs]
        targets = [random.integers(0, CLASSES, shape.texts) for _ in specs]
        start = time.perf_counter()
        step(batches, targets, [number] * len(specs))
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


@dataclass(frozen=True)
class Rates:
    """Cost of a training step."""

    fixed: float  # seconds
    flop: float  # seconds per floating-point operation

    def seconds(self, flop: float) -> float:
        """Of a step with so many operations."""
        return self.fixed + self.flop * flop


def fitted(flop: Sequence[float], seconds: Sequence[float]) -> Rates:
    """The rates with the smallest squared error in the logarithm of the seconds.

    >>> found = fitted([1e9, 1e10, 1e11], [0.01 + 1e-11 * x for x in (1e9, 1e10, 1e11)])
    >>> round(found.fixed, 6), round(found.flop * 1e11, 6)
    (0.01, 1.0)
    """
    from scipy.optimize import least_squares

    x, y = np.asarray(flop), np.asarray(seconds)

    def errors(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        fixed, rate = np.exp(logs)
        off: NDArray[np.float64] = np.log(fixed + rate * x) - np.log(y)
        return off

    start = np.log([max(min(y) / 2, 1e-9), max(y) / max(x)])
    found = least_squares(errors, start, xtol=1e-12, ftol=1e-12)
    fixed, rate = np.exp(found.x)
    return Rates(float(fixed), float(rate))


# The simulated cluster


@dataclass(frozen=True)
class Job:
    """A sweep, as a cluster sees it."""

    banks: int
    steps: int  # of a bank
    step_seconds: float
    state_bytes: float  # of a bank: its parameters, their moments, and the kept ones
    base_bytes: float = 0.0  # that a worker loads when it starts


@dataclass(frozen=True)
class Grid:
    """A cluster."""

    workers: int
    spread: float = 0.05  # standard deviation of the logarithm of a bank's speed
    stragglers: float = 0.01  # share of workers that are slower
    slowness: float = 3.0  # how many times
    failures: float = 1 / 86_400  # of a worker, per second
    restart_seconds: float = 60.0  # until a failed worker is back, without the base
    state_seconds: float = 600.0  # between two states that a worker sends
    report_seconds: float = 1.0  # between two reports
    driver_report: float = 0.0005  # seconds that the driver takes for a report
    driver_bytes: float = 500e6  # bytes per second that the driver receives and writes
    network_bytes: float = 1e9  # bytes per second at which a worker loads the base
    save_seconds: float = 5.0  # between two checkpoints of the driver, at least
    save_share: float = 0.05  # of its time, in which the driver writes checkpoints at most


@dataclass(frozen=True)
class Simulated:
    """What happened."""

    seconds: float  # until the last bank was trained
    ideal: float  # if all workers were busy without failures and stragglers
    busy: float  # share of the workers' time in which they trained what was kept
    failures: int
    driver: float  # share of its time that the driver needs at the start; above 1, it cannot keep up


def simulate(job: Job, grid: Grid, seed: int = 0) -> Simulated:
    """Run a sweep on a simulated cluster.

    Events are the times at which a worker becomes free. A failure loses the work since the last states.

    >>> simulate(Job(4, 10, 1.0, 0), Grid(2, 0, 0, 1, 0, restart_seconds=0)).seconds
    20.0
    """
    random = np.random.default_rng(seed)
    slow = np.where(random.random(grid.workers) < grid.stragglers, grid.slowness, 1.0)
    load = job.base_bytes / grid.network_bytes
    free = [(load, worker) for worker in range(grid.workers)]
    heapq.heapify(free)
    waiting = [(0.0, float(job.steps))] * job.banks  # when a bank can start, and its steps that are left
    end, kept, failures = 0.0, 0.0, 0
    while waiting:
        now, worker = heapq.heappop(free)
        ready, steps = heapq.heappop(waiting)
        now = max(now, ready)
        pace = job.step_seconds * slow[worker] * math.exp(grid.spread * random.standard_normal())
        needed = steps * pace
        failure = random.exponential(1 / grid.failures) if grid.failures else math.inf
        if failure >= needed:
            end, kept = max(end, now + needed), kept + needed
            heapq.heappush(free, (now + needed, worker))
            continue
        saved = failure // grid.state_seconds * grid.state_seconds
        heapq.heappush(waiting, (now + failure, steps - saved / pace))
        failures, kept = failures + 1, kept + saved
        heapq.heappush(free, (now + failure + grid.restart_seconds + load, worker))
    ideal = job.banks * job.steps * job.step_seconds / grid.workers
    return Simulated(end, ideal, kept / (end * grid.workers), failures, driver_share(job, grid))


def driver_share(job: Job, grid: Grid) -> float:
    """Share of its time that the driver needs while all workers train.

    Every worker reports, and sends its states now and then. A checkpoint holds the states of all banks in
    training, and is written again when new states have arrived, but no more often than its share of the time
    allows.
    """
    busy = min(grid.workers, job.banks)
    sent = busy / grid.state_seconds  # states per second
    saving = busy * job.state_bytes / grid.driver_bytes  # seconds of a checkpoint
    writing = min(saving * min(sent, 1 / grid.save_seconds), grid.save_share)
    receiving = sent * job.state_bytes / grid.driver_bytes
    return busy / grid.report_seconds * grid.driver_report + receiving + writing


# What is predicted


@dataclass(frozen=True)
class Base:
    """A base model of a known size."""

    name: str
    width: int
    layers: int
    parameters: float

    @property
    def flop_per_token(self) -> float:
        """Of training: a forward pass, and a backward pass to the activations."""
        return 4 * 12 * self.layers * self.width**2

    @property
    def adapter_bytes(self) -> float:
        """Of one adapter of rank 8 on all linear layers, with its moments and its kept copy, float32."""
        return 4 * 4 * 8 * 18 * self.width * self.layers


BASES = (Base("135M", 576, 30, 135e6), Base("1.1B", 2048, 22, 1.1e9), Base("7B", 4096, 32, 7e9))


def report(rates: Rates, spread: float) -> str:
    """The predictions as Markdown."""
    sections = [_adapters(rates, spread), _workers(rates, spread), _labels(rates), _bases(rates)]
    return "\n\n".join(sections)


def _job(base: Base, rates: Rates, adapters: int, bank: int, texts: int = 16_000, tokens: int = 20) -> Job:
    per_step = 32 * bank
    flop = base.flop_per_token * tokens * per_step
    return Job(
        banks=math.ceil(adapters / bank),
        steps=math.ceil(3 * texts / 32),
        step_seconds=rates.seconds(flop),
        state_bytes=bank * base.adapter_bytes,
        base_bytes=2 * base.parameters,
    )


def _adapters(rates: Rates, spread: float) -> str:
    rows = []
    for adapters in (10, 100, 1_000):
        job = _job(BASES[0], rates, adapters, bank=5)
        for workers in (1, 10, 100):
            if workers <= job.banks:
                rows.append(_row(adapters, simulate(job, Grid(workers, spread)), workers))
    header = ("adapters", "workers", "hours", "hours if ideal", "busy", "failures", "driver")
    return "## Adapters and workers: 135M, banks of 5, 16,000 texts, 3 epochs\n\n" + common.table(
        header, rows
    )


def _workers(rates: Rates, spread: float) -> str:
    rows = []
    for workers in (10, 100, 1_000):
        job = replace(_job(BASES[0], rates, 10_000, bank=5))
        rows.append(_row(10_000, simulate(job, Grid(workers, spread)), workers))
        often = Grid(workers, spread, failures=24 / 86_400)
        rows.append(_row("10,000, a failure an hour", simulate(job, often), workers))
        rows.append(_row("10,000, 10 % slow", simulate(job, Grid(workers, spread, stragglers=0.1)), workers))
    header = ("adapters", "workers", "hours", "hours if ideal", "busy", "failures", "driver")
    return "## Up to 1,000 workers\n\n" + common.table(header, rows)


def _row(adapters: object, found: Simulated, workers: int) -> tuple[object, ...]:
    return (
        f"{adapters:,}" if isinstance(adapters, int) else adapters,
        f"{workers:,}",
        f"{found.seconds / 3600:.2f}",
        f"{found.ideal / 3600:.2f}",
        f"{100 * found.busy:.0f} %",
        found.failures,
        f"{100 * found.driver:.1f} %",
    )


def _labels(rates: Rates) -> str:
    """A forward pass is a third of a training step's operations at most; here, half is assumed."""
    rows = []
    for base in BASES:
        seconds = 100e6 * 20 * base.flop_per_token / 2 * rates.flop
        rows.append((base.name, *(f"{seconds / workers / 3600:,.1f}" for workers in (1, 100, 1_000))))
    header = ("base", "hours, 1 worker", "100 workers", "1,000 workers")
    return "## 100 million texts of 20 tokens, labeled\n\n" + common.table(header, rows)


def _bases(rates: Rates) -> str:
    rows = []
    for base in BASES:
        job, grid = _job(base, rates, 1_000, bank=5), Grid(100)
        rows.append(
            (
                base.name,
                f"{job.step_seconds:,.1f}",
                f"{job.banks * job.steps * job.step_seconds / 3600:,.0f}",
                f"{2 * base.parameters / 1e9:.1f}",
                f"{job.state_bytes / 1e6:,.0f}",
                f"{100 * driver_share(job, grid):.1f} %",
                f"{100 * driver_share(job, replace(grid, workers=1_000)):.1f} %",
            )
        )
    header = (
        *("base", "seconds per step", "worker hours, 1,000 adapters", "GB of base"),
        *("MB of a bank's states", "driver, 100 workers", "driver, 1,000 workers"),
    )
    return "## Size of the base\n\n" + common.table(header, rows)


def main() -> None:
    """Measure, fit and simulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all shapes")
    parser.add_argument("--rates", help="FIXED,FLOP: do not measure")
    parser.add_argument("--record", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    if options.rates:
        fixed, flop = map(float, options.rates.split(","))
        print(report(Rates(fixed, flop), spread=0.05))
        return
    shapes = (*FITTED, *HELD_OUT)
    seconds: dict[Shape, list[float]] = {shape: [] for shape in shapes}
    for number in range(options.rounds):
        for shape in shapes:
            seconds[shape] += measured(shape, seed=number)
    medians = [median(seconds[shape]) for shape in shapes]
    rates = fitted([shape.flop for shape in FITTED], medians[: len(FITTED)])
    spread = float(np.median([np.std(np.log(each)) for each in seconds.values()]))
    rows = [
        (
            *(shape.adapters, shape.texts, shape.length, shape.width, shape.layers),
            f"{shape.flop / 1e9:.1f}",
            f"{1000 * found:.1f}",
            f"{1000 * rates.seconds(shape.flop):.1f}",
            "yes" if shape in FITTED else "no",
        )
        for shape, found in zip(shapes, medians, strict=True)
    ]
    header = ("adapters", "texts", "tokens", "width", "layers", "GFLOP", "ms", "ms predicted", "fitted")
    body = "## Steps\n\n" + common.table(header, rows) + "\n\n" + report(rates, spread)
    notes = {
        "fit": f"{1000 * rates.fixed:.2f} ms per step, {rates.flop * 1e12:.2f} ms per GFLOP "
        f"({1e-9 / rates.flop:.0f} GFLOP/s)",
        "spread": f"standard deviation of the logarithm of a step's seconds: {spread:.3f}",
        "simulation": "seed 0; the constants of `Grid` in bench/scaling.py are assumptions",
    }
    common.write_record("Scaling", "python -m bench.scaling", notes, body, options.record)


if __name__ == "__main__":
    main()
