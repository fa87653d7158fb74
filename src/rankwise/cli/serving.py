"""Output of the `serve` and `explain` commands."""

from __future__ import annotations

from math import floor, log10
from typing import TYPE_CHECKING

from rankwise.cli.terminal import show_table, stderr, stdout
from rankwise.report.tables import Table, printable

if TYPE_CHECKING:
    from rankwise.commands.explain import Explanation

BAR = 20
"""Width of the longest bar."""
NOTES = {
    "occlusion": "effect: how much of the label's probability is lost without the word",
    "gradient": "effect: how much of it is lost without the word, estimated by gradient times input",
}
"""Method -> what its effects are."""


def show_listening(url: str, base: str, adapters: int) -> None:
    """Print where the server listens."""
    what = "1 adapter" if adapters == 1 else f"{adapters} adapters"
    stderr.print(f"serving {what} of {printable(base)} at {url} (Ctrl-C stops)", soft_wrap=True)


def show_explanation(found: Explanation, method: str) -> None:
    """Print the label, and a row for each word with a bar for its effect."""
    stdout.print(f"{printable(found.label)} {found.probability:.3f}", soft_wrap=True)
    largest = max(abs(word.effect) for word in found.words) or 1.0
    decimals = max(3, 1 - floor(log10(largest)))  # two digits of the largest, which a gradient may make small
    rows = [
        (
            word.text,
            f"{word.effect:+.{decimals}f}",
            ("+" if word.effect > 0 else "-") * _length(word.effect, largest),
        )
        for word in found.words
    ]
    show_table(Table("", ("word", "effect", ""), rows, note=NOTES[method]))


def _length(effect: float, largest: float) -> int:
    return round(BAR * abs(effect) / largest)
