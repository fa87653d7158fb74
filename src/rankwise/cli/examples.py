"""Examples of each command, shown at the end of its help text."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "quickstart": ("rankwise quickstart --out runs/first",),
    "sweep": (
        "rankwise sweep reviews.csv --ranks 1,4,16 --seeds 0-2",
        "rankwise sweep --resume runs/reviews --ranks 32",
        "rankwise sweep reviews.csv --ranks 1-16 --ray auto",
    ),
    "search": ("rankwise search reviews.csv --ranks 2,8 --vary alpha=8,16 --trials 20",),
    "plan": ("rankwise plan reviews.csv --ranks 1-16", "rankwise plan reviews.csv --time"),
    "data": (
        "rankwise data reviews.csv",
        "rankwise data train.csv validation.csv test.csv",
        "rankwise data reviews.csv --corrections errors.csv --output fixed.csv",
    ),
    "evaluate": (
        "rankwise evaluate runs/reviews test.csv",
        "rankwise evaluate runs/reviews test.csv --abstain-below 0.8",
    ),
    "predict": (
        'rankwise predict runs/reviews "arrived late and broken"',
        "rankwise predict runs/reviews --input new.csv --output labeled.csv",
        "rankwise predict runs/reviews --input reports.csv --output labeled.csv --windows",
        'rankwise predict someone/reviews@main "arrived late and broken"',
    ),
    "explain": (
        'rankwise explain runs/reviews "arrived late and broken"',
        'rankwise explain runs/reviews "arrived late and broken" --method gradient',
    ),
    "serve": ("rankwise serve runs/reviews", "rankwise serve runs/reviews tone=runs/tone/adapters/r8-s110"),
    "cut": ("rankwise cut runs/reviews/adapters/r16-s110 --rank 4",),
    "export": (
        "rankwise export runs/reviews --to onnx --output reviews-onnx",
        "rankwise export runs/reviews --to onnx --int8 --max-loss 1",
    ),
    "push": (
        "rankwise push runs/reviews someone/reviews --dry-run",
        "rankwise push runs/reviews someone/reviews --merged --public",
    ),
    "samples": ("rankwise samples runs/reviews",),
    "compare": ("rankwise compare runs/reviews --metric macro-f1 --margin 1",),
    "report": (
        "rankwise report runs/reviews",
        "rankwise report runs/first runs/second --out both.html",
    ),
    "runs": ("rankwise runs",),
    "merge-runs": ("rankwise merge-runs runs/ranks-1-4 runs/ranks-8-16 --output runs/all",),
    "reproduce": ("rankwise reproduce --out runs/published",),
    "doctor": ("rankwise doctor",),
    "version": ("rankwise version",),
}


def epilog(command: str) -> str:
    """The last lines of a command's help text."""
    return "\n".join(["Examples:" if len(EXAMPLES[command]) > 1 else "Example:", *_indented(command)])


def _indented(command: str) -> list[str]:
    return [f"  {each}" for each in EXAMPLES[command]]
