"""Output of the `export` and `push` commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankwise.cli.terminal import show_table, stdout
from rankwise.report.html import size
from rankwise.report.tables import Table, percent, printable

if TYPE_CHECKING:
    from rankwise.schema import Export, Push


def show_export(found: Export) -> None:
    """Print what was written, and how it was verified."""
    show_table(_files(found.file_bytes))
    stdout.print(
        f"verified with {found.library} on {printable(found.texts_from)}: "
        f"{found.labels_changed:,} of {found.texts:,} labels changed, "
        f"largest difference of a logit {found.largest_difference:.1e}",
        soft_wrap=True,
    )
    if found.int8 and found.accuracy is not None and found.exported_accuracy is not None:
        stdout.print(
            f"accuracy in int8 {percent(found.exported_accuracy)} %, in float32 {percent(found.accuracy)} %: "
            f"{found.loss:+.2f} points lost",
            soft_wrap=True,
        )
    stdout.print(f"written to {printable(found.folder)}", soft_wrap=True)


def show_push(found: Push) -> None:
    """Print what went to the Hub, or would."""
    show_table(_files(found.file_bytes))
    total = size(sum(found.file_bytes.values()))
    new = "private" if found.private else "public"
    if found.url is None:
        stdout.print(
            f"dry run: {total} would go to {found.repository}, branch {found.revision}; "
            f"a new repository would be {new}",
            soft_wrap=True,
        )
        return
    kind = f"a new {new} repository" if found.created else "one more commit"
    stdout.print(f"pushed {total} to {found.repository}, branch {found.revision}: {kind}", soft_wrap=True)
    stdout.print(found.url, soft_wrap=True)


def _files(sizes: dict[str, int]) -> Table:
    return Table("", ("file", "size"), [(name, size(each)) for name, each in sizes.items()])
