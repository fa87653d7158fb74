"""What the finished adapters come to: the rows of results.json, and predictions.csv."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from rankwise.data.writers import csv_line
from rankwise.models.peft_format import WEIGHTS
from rankwise.nn.bank import AdapterSpec
from rankwise.plan import PlannedAdapter
from rankwise.schema import AdapterResult
from rankwise.training.bank_run import Setting
from rankwise.training.outcome import Outcome


def predictions_csv(setting: Setting, outcomes: Sequence[Outcome]) -> str:
    """Every evaluated text, every adapter: predicted label and its probability."""
    columns = [column for each in outcomes for column in (each.name, f"{each.name} probability")]
    lines = [csv_line(["split", "text", "label", *columns])]
    for split in setting.evaluated():
        source = setting.splits[split].source
        probabilities = [softmax(each.logits[split].astype(np.float64), axis=-1) for each in outcomes]
        for i, (text, label) in enumerate(zip(source.texts, source.labels, strict=True)):
            cells = [cell for p in probabilities for cell in _best(p[i], setting.labels)]
            lines.append(csv_line([split, text, setting.labels[label], *cells]))
    return "".join(lines)


def _best(probabilities: NDArray[np.float64], labels: Sequence[str]) -> tuple[str, str]:
    best = int(probabilities.argmax())
    return labels[best], f"{probabilities[best]:.4f}"


def row(
    setting: Setting, planned: PlannedAdapter, spec: AdapterSpec, outcome: Outcome, bank: int, folder: Path
) -> AdapterResult:
    """An adapter's row of results.json.

    Args:
        setting: of the sweep.
        planned: its row of the plan.
        spec: what it is.
        outcome: what became of it.
        bank: which trained it, from 1.
        folder: where it is stored.
    """
    found = {
        split: setting.metrics(split, outcome.logits[split]).model_dump() for split in setting.evaluated()
    }
    return AdapterResult(
        name=spec.name,
        alpha=spec.alpha,
        scale=spec.scale,
        adapter_bytes=(folder / WEIGHTS).stat().st_size,
        train_loss=outcome.train_loss,
        kept_epoch=outcome.kept_epoch,
        validation=found["validation"],
        test=found.get("test"),
        **asdict(planned) | {"bank": bank},
    )
