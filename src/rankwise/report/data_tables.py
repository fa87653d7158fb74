"""The data report as tables, for the terminal and for report.html."""

from __future__ import annotations

from rankwise.data.audit import EXAMPLES, LISTED, long_texts
from rankwise.report.tables import Table
from rankwise.schema import DataReport


def data_tables(found: DataReport) -> list[Table]:
    """Tables of what was read, sizes and classes, and of leaks and contradictions if there are any."""
    tables = [source_table(found), split_table(found), class_table(found)]
    tables += [leak_table(found), contradiction_table(found)]
    return [table for table in tables if table.rows]


def source_table(found: DataReport) -> Table:
    """One row per file, or split of a dataset: the columns that were read, and those that were not."""
    rows = [
        (
            source.name,
            source.split,
            f"{source.texts:,}",
            source.text_column or "",
            source.label_column or "",
            ", ".join(source.unused_columns) or "none",
        )
        for source in found.sources
    ]
    columns = ("file", "split", "texts", "text column", "label column", "columns not used")
    named = any(source.text_column for source in found.sources)
    cells = [row if named else row[:3] for row in rows]
    return Table("What was read", columns if named else columns[:3], cells)


def split_table(found: DataReport) -> Table:
    """One row per split: texts, lengths, duplicates."""
    cut = all(split.truncated is not None for split in found.splits)
    in_windows = any(split.windowed is not None for split in found.splits)
    columns = (
        *("split", "texts", f"mean {found.unit}", "median", "95th %", "longest"),
        *((f"over {found.max_length}",) if cut else ()),
        *("duplicates", "ignoring case and spaces"),
    )
    rows = [
        (
            split.name,
            f"{split.texts:,}",
            f"{split.tokens_mean:.1f}",
            f"{split.tokens_p50:,}",
            f"{split.tokens_p95:,}",
            f"{split.tokens_max:,}",
            *((f"{split.windowed if in_windows else split.truncated:,}",) if cut else ()),
            f"{split.duplicates:,}",
            f"{split.duplicates_normalized:,}",
        )
        for split in found.splits
    ]
    lines = long_texts(
        {split.name: split.texts for split in found.splits},
        {split.name: split.truncated or 0 for split in found.splits},
        {split.name: split.windowed or 0 for split in found.splits},
        found.max_length,
        in_windows=in_windows,
    )
    note = " ".join(f"{line}." for line in lines)
    if not cut:
        note = "Lengths in words: the base's tokenizer is not on this machine."
    return Table("Splits", columns, rows, note=note)


def class_table(found: DataReport, most: int = 30) -> Table:
    """One row per class: texts in each split, with their share in percent.

    Args:
        found: the report.
        most: if there are more classes, the table has this many, rarest in the first split first.
    """
    by_class = list(zip(*(split.classes for split in found.splits), strict=True))
    note = "Texts, and percent of the split."
    if len(by_class) > most:
        note = f"{note} The {most} rarest of {len(by_class):,} classes; the JSON output has all."
        by_class = sorted(by_class, key=lambda classes: classes[0].texts)[:most]
    rows = [
        (
            classes[0].label,
            *(_share(each.texts, split.texts) for each, split in zip(classes, found.splits, strict=True)),
        )
        for classes in by_class
    ]
    return Table(
        "Classes",
        ("label", *(split.name for split in found.splits)),
        rows,
        note=note,
    )


def leak_table(found: DataReport) -> Table:
    """One row per pair of splits that share texts."""
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
    return Table("Texts of one split that are in another", columns, rows, keys=2)


def contradiction_table(found: DataReport, shown: int = EXAMPLES) -> Table:
    """The first texts that have several labels."""
    rows = [
        (each.text, ", ".join(each.labels), ", ".join(each.splits)) for each in found.contradictions[:shown]
    ]
    total = found.contradictions_total
    note = f"The first {shown} of {total:,}; --json lists up to {LISTED}." if total > shown else ""
    return Table(f"Texts with contradicting labels: {total:,}", ("text", "labels", "in"), rows, note=note)


def _share(texts: int, of: int) -> str:
    return f"{texts:,} ({100 * texts / of:.1f})"
