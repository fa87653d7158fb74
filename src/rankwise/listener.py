"""Who is told what a long job is doing."""

from __future__ import annotations


class Listener:
    """Told of a job's stages. This one keeps silent."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def begin(self, stage: str, total: int | None) -> None:
        """A stage of so many units begins; None where their number is not known."""

    def advance(self, units: int, detail: str = "") -> None:
        """So many units of the stage are done."""

    def end(self) -> None:
        """The stage is over."""
