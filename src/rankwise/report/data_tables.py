"""data.json, the report on the data that a sweep leaves in its folder, as tables."""

from __future__ import annotations

import json
from typing import Any

from rankwise.report.tables import Table
from rankwise.store.run import RunFolder

MOST_CONTRADICTIONS = 10
LENGTHS = {"tokens_mean": "mean", "tokens_p50": "median", "tokens_p95": "95 %", "tokens_max": "longest"}


def data_tables(run: RunFolder) -> list[Table]:
    """Sizes, class balance, contradictions and leaks; empty where there is no data.json to be read."""
    try:
        found = json.loads((run.path / "data.json").read_text("utf-8"))
        tables = [_sizes(found), _balance(found), _contradictions(found), _leaks(found)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [table for table in tables if table.rows]


def _sizes(found: dict[str, Any]) -> Table:
    rows = [
        (
            each["name"],
            f"{each['texts']:,}",
            *(f"{each[key]:,.1f}" if key == "tokens_mean" else f"{each[key]:,.0f}" for key in LENGTHS),
            f"{each['truncated']:,}",
            f"{each['duplicates']:,}",
        )
        for each in found["splits"]
    ]
    columns = ("split", "texts", *(f"tokens, {name}" for name in LENGTHS.values()), "truncated", "duplicates")
    note = f"Truncated: texts longer than the {found['max_length']:,} tokens that are read."
    return Table("Sizes and lengths", columns, rows, note=note)


def _balance(found: dict[str, Any]) -> Table:
    """A row for each class, a column for each split: texts, and their share of it."""
    counts = {each["name"]: {c["label"]: c["texts"] for c in each["classes"]} for each in found["splits"]}
    labels = list(dict.fromkeys(label for each in counts.values() for label in each))
    rows = [
        (label, *(_share(each.get(label, 0), sum(each.values())) for each in counts.values()))
        for label in labels
    ]
    return Table("Class balance", ("label", *counts), rows)


def _share(texts: int, total: int) -> str:
    return f"{texts:,} ({100 * texts / max(total, 1):.1f} %)"


def _contradictions(found: dict[str, Any]) -> Table:
    shown, total = found["contradictions"][:MOST_CONTRADICTIONS], found["contradictions_total"]
    rows = [(each["text"], ", ".join(map(str, each["labels"]))) for each in shown]
    note = f"The first {len(rows)} of {total:,}." if total > len(rows) else ""
    return Table(f"Texts with contradicting labels: {total:,}", ("text", "labels"), rows, note=note)


def _leaks(found: dict[str, Any]) -> Table:
    rows = [
        (
            " and ".join(map(str, each["splits"])),
            f"{each['texts']:,}",
            f"{each['same_label']:,}",
            f"{each['other_label']:,}",
        )
        for each in found["leaks"]
    ]
    return Table(
        "Texts of one split that stand in another", ("splits", "texts", "same label", "other label"), rows
    )
