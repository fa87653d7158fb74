"""False claims if seeds are added to a sweep because its verdict is open, and the verdict is read again.

    python -m bench.second_look [--sweeps N] [--record FILE]

The sweeps are those of `bench.coverage`. Each has the seeds of the last look, and an earlier look sees the
first of them. Looks end when the verdict names a rank. A false claim at any of them counts. For comparison,
the last look alone counts as if it had been planned from the start.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from bench import common
from bench.coverage import Setting, simulate
from rankwise.stats.verdict import judge

LOOKS = ((3, 5), (3, 5, 10))
"""Seeds at each look."""
SETTINGS = {
    "two equal ranks": Setting(ranks=2, texts=2000, accuracy=0.9, spread=0.01, margin=0.005),
    "five equal ranks": Setting(ranks=5, texts=2000, accuracy=0.9, spread=0.01, margin=0.005),
    "two ranks, the smaller loses exactly the margin": Setting(
        ranks=2, texts=2000, accuracy=0.9, spread=0.005, truth="smallest at the edge", margin=0.005
    ),
}
CLAIMS = ("told apart", "best", "enough")


def main() -> None:
    """Simulate, print the table, and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sweeps", type=int, default=2000, help="sweeps of a setting")
    parser.add_argument("--record", type=Path, help="Markdown file to write the table to")
    options = parser.parse_args()
    rows = []
    for name, setting in SETTINGS.items():
        for looks in LOOKS:
            last, at_any = false_claims(setting, looks, options.sweeps)
            cells = [f"{one:.1f} / {other:.1f}" for one, other in zip(last, at_any, strict=True)]
            rows.append([name, ", ".join(map(str, looks)), *cells])
            print(*rows[-1], sep=" | ", flush=True)
    error = 100 * np.sqrt(0.05 * 0.95 / options.sweeps)
    common.write_record(
        "The verdict, read again after seeds were added",
        f"python -m bench.second_look --sweeps {options.sweeps}",
        {
            "work": "simulated sweeps of 2,000 texts with an accuracy of 90 %, margin 0.5 points; percent of "
            "sweeps with a false claim at the last look alone / at any look; "
            f"5 % has a standard error of {error:.1f}",
        },
        common.table(("truth", "seeds at each look", *CLAIMS), rows),
        options.record,
    )


def false_claims(
    setting: Setting, looks: tuple[int, ...], sweeps: int, seed: int = 7
) -> tuple[list[float], list[float]]:
    """Percent of sweeps with a false claim of each kind: at the last look alone, and at any look."""
    rng = np.random.default_rng([seed, setting.ranks, *looks])
    last, at_any = np.zeros(len(CLAIMS)), np.zeros(len(CLAIMS))
    whole = Setting(**{**vars(setting), "seeds": looks[-1]})
    truth = setting.accuracies
    for _ in range(sweeps):
        answers = simulate(rng, whole).answers
        seen, is_open = np.zeros(len(CLAIMS), dtype=bool), True
        for seeds in looks:
            found = judge({rank: table[:seeds] for rank, table in enumerate(answers, 1)}, setting.margin)
            wrong = np.array(
                [
                    any(
                        pair.apart and truth[pair.rank - 1] == truth[int(pair.other) - 1]
                        for pair in found.pairs
                    ),
                    found.claims.best is not None
                    and sum(each >= truth[found.claims.best - 1] for each in truth) > 1,
                    found.claims.enough is not None
                    and max(truth) - truth[found.claims.enough - 1] >= setting.margin - 1e-9,
                ]
            )
            if is_open:
                seen |= wrong
                is_open = found.recommended is None
        last += wrong
        at_any += seen
    return (100 * last / sweeps).tolist(), (100 * at_any / sweeps).tolist()


if __name__ == "__main__":
    main()
