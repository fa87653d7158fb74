"""data.json, the report on the data that a sweep leaves in its folder, as tables."""

from __future__ import annotations

import json
from typing import Any

from rankwise.data.audit import EXAMPLES, LISTED
from rankwise.report.tables import Table
from rankwise.schema import DataReport
from rankwise.store.run_folder import RunFolder

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


def split_table(found: DataReport) -> Table:
    """A row a split: texts, lengths, duplicates."""
    cut = all(split.truncated is not None for split in found.splits)
    columns = (
        *("split", "texts", f"mean {found.unit}", "median", "95th %", "longest"),
        *((f"over {found.max_length}",) if cut else ()),
        *("duplicates", "but for case and spaces"),
    )
    rows = [
        (
            split.name,
            f"{split.texts:,}",
            f"{split.tokens_mean:.1f}",
            f"{split.tokens_p50:,}",
            f"{split.tokens_p95:,}",
            f"{split.tokens_max:,}",
            *((f"{split.truncated:,}",) if cut else ()),
            f"{split.duplicates:,}",
            f"{split.duplicates_normalised:,}",
        )
        for split in found.splits
    ]
    note = "" if cut else "Lengths in words: the base's tokenizer is not on this machine."
    return Table("Splits", columns, rows, note=note)


def class_table(found: DataReport) -> Table:
    """A row a class: texts in each split, with their share in percent."""
    rows = [
        (
            classes[0].label,
            *(_share(each.texts, split.texts) for each, split in zip(classes, found.splits, strict=True)),
        )
        for classes in zip(*(split.classes for split in found.splits), strict=True)
    ]
    return Table(
        "Classes",
        ("label", *(split.name for split in found.splits)),
        rows,
        note="Texts, and percent of the split.",
    )


def leak_table(found: DataReport) -> Table:
    """A row for each two splits that share texts."""
    rows = [
        (
            *reversed(leak.splits),
            f"{leak.texts:,}",
            f"{leak.same_label:,}",
            f"{leak.other_label:,}",
            leak.examples[0],
        )
        for leak in found.leaks
    ]
    columns = ("split", "in", "texts", "same label", "another label", "such as")
    return Table("Texts of one split that stand in another", columns, rows, keys=2)


def contradiction_table(found: DataReport, shown: int = EXAMPLES) -> Table:
    """The first texts that carry several labels."""
    rows = [
        (each.text, ", ".join(each.labels), ", ".join(each.splits)) for each in found.contradictions[:shown]
    ]
    total = found.contradictions_total
    note = f"The first {shown} of {total:,}; --json lists up to {LISTED}." if total > shown else ""
    return Table(f"Texts with contradicting labels: {total:,}", ("text", "labels", "in"), rows, note=note)


def _share(texts: int, of: int) -> str:
    return f"{texts:,} ({100 * texts / of:.1f})"
