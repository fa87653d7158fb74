"""Five ranks in one pass compared with five sequential runs, through the real training loop.

GPT-2's 124M shape with random weights, LoRA on c_attn, dropout on, the published recipe. The six runs
alternate over several rounds; a step of the pass is compared with the sum of one step of each single run.

    python -m bench.sweep [--steps N] [--rounds N] [--batch N] [--dtype NAME] [--full] [--record FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from bench import common
from bench.train_step import EPOCH, GPT2, RANKS, Way, Work, ours
from rankwise.models.registry import KNOWN

PASS = "five ranks in one pass"


def main() -> None:
    """Run the pass and the single runs alternately."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a turn")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each run")
    parser.add_argument("--batch", type=int, default=32, help="texts of one adapter in a step")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--full", action="store_true", help="a whole epoch of 16,000 texts; takes hours")
    parser.add_argument("--shape", default="{}", help='overrides of GPT-2, such as {"n_layer": 2}')
    parser.add_argument("--record", type=Path, help="Markdown file to write the table to")
    parser.add_argument("--ranks", help="for the benchmark itself: run these")
    options = parser.parse_args()
    if options.full:
        options.steps = EPOCH // options.batch
    if options.ranks:
        texts, labels = common.draw((options.steps + 1) * options.batch)
        way = Way(options.dtype, tuple(json.loads(options.ranks)))
        work = Work(KNOWN[GPT2] | json.loads(options.shape), batch=options.batch)
        return ours(way, work, texts, labels)
    settings = ["--dtype", options.dtype, "--shape", options.shape]
    settings += ["--steps", str(options.steps), "--batch", str(options.batch)]
    runs = {PASS: RANKS} | {f"rank {rank} alone": (rank,) for rank in RANKS}
    commands = {
        name: ["-m", "bench.sweep", *settings, "--ranks", json.dumps(ranks)] for name, ranks in runs.items()
    }
    report(common.take_turns(commands, options.rounds), options)


def report(done: dict[str, common.Contender], options: argparse.Namespace) -> None:
    """Print the record and write it to a file."""
    seconds = {name: common.least(run.seconds, options.steps) for name, run in done.items()}
    together, in_turn = seconds[PASS], sum(taken for name, taken in seconds.items() if name != PASS)
    beyond = max(run.beyond for name, run in done.items() if name != PASS)
    texts = options.batch * len(RANKS)
    rows = [
        [name, f"{taken:.2f}", f"{texts / taken:.1f}", f"{memory / 1e9:.2f}"]
        for name, taken, memory in (
            (PASS, together, done[PASS].beyond),
            ("five runs one after another", in_turn, beyond),
        )
    ]
    ratio = in_turn / together
    rates = {
        getattr(torch, options.dtype): {
            n: common.matrix_rate(getattr(torch, options.dtype), n) for n in (640, 3200)
        }
    }
    common.write_record(
        "Five ranks in one pass beside five runs",
        f"python -m bench.sweep --steps {options.steps} --rounds {options.rounds} --batch {options.batch} "
        f"--dtype {options.dtype}",
        {
            "work": f"GPT-2 124M shape, random weights, LoRA ranks {RANKS} on c_attn, dropout on, "
            f"{options.dtype}, batch {options.batch}, {common.labelled_texts()[0]} texts",
            "matrix products, GFLOP/s": common.rates_note(rates),
            "CPU time": common.undisturbed(done.values()),
            "ratio": f"one pass is {ratio:.2f} times as fast; each step's least of all rounds, their mean",
        },
        common.table(["what", "seconds for a step of all five", "texts/s", "GB beyond the model"], rows),
        options.record,
    )


if __name__ == "__main__":
    main()
