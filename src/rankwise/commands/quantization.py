"""Prediction in int8: calibrated on some texts, and verified on others."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rankwise.commands.known_texts import counted, of_run
from rankwise.errors import ModelError, option
from rankwise.models.peft_format import SavedAdapter
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import Bank
from rankwise.nn.batch import Ids
from rankwise.nn.inference import bank_logits
from rankwise.nn.quantize import quantize
from rankwise.tasks.registry import task_of
from rankwise.tasks.task import Predicted

LEAST, MOST = 200, 768
"""Numbers of validation texts that are needed and used; a third of them calibrates."""
AGREEMENT = 0.985
"""Least share of the other texts whose labels stay the same. With 512 of them, an adapter that changes 0.7 %
of all labels passes with a probability of 97 % (binomial, at most 7 changes)."""


def to_int8(
    backbone: Backbone, head: Bank, saved: SavedAdapter, folder: Path, tokenizer: Tokenizer, max_length: int
) -> str:
    """Convert a backbone with a merged adapter to int8, and compare its labels with those before.

    The texts are validation texts of the adapter's run. Texts of another kind would not do: their labels are
    often nearly ties, which rounding decides.

    Args:
        backbone: the frozen model with the adapter merged into it; it is changed.
        head: the adapter's score head.
        saved: the adapter.
        folder: its folder.
        tokenizer: its tokenizer.
        max_length: tokens that are read of a text.

    Returns:
        How many labels stayed the same, and on which texts.

    Raises:
        ModelError: too many labels changed, or there are too few texts.
    """
    known, hint = of_run(folder, saved.labels), f"use {option('precision', 'bfloat16')}"
    if known is None or len(known.texts) < LEAST:
        has = 0 if known is None else len(known.texts)
        what = f"int8 is verified on {LEAST} validation texts of the adapter's run; it has {has}"
        raise ModelError(f"{folder}: {what}", hint=hint)
    texts = counted(known, LEAST, MOST, pairs=bool(saved.text_columns))
    ids = tokenizer(texts.texts, max_length)
    calibration, others = ids[::3], [each for i, each in enumerate(ids) if i % 3]
    before = _labels(backbone, head, saved, others)
    quantize(backbone, calibration)
    after = _labels(backbone, head, saved, others)
    dtype = str(backbone.dtype).removeprefix("torch.")
    same = np.array([np.array_equal(a, b) for a, b in zip(before, after, strict=True)])
    found = f"{100 * same.mean():.1f} % of {len(same):,} labels are those of {dtype}"
    if same.mean() < AGREEMENT:
        raise ModelError(
            f"{folder}: in int8, only {found}; {100 * AGREEMENT:g} % are needed",
            hint=hint,
        )
    return f"{folder}: in int8, {found} ({len(calibration):,} others calibrated it; of {texts.origin})"


def _labels(backbone: Backbone, head: Bank, saved: SavedAdapter, ids: list[Ids]) -> Predicted:
    """(texts,) label ids, or (texts, classes) zeros and ones."""
    task = task_of(saved.task, saved.label_separator)
    return task.decided(bank_logits(backbone, head, ids)[0], saved.thresholds).predicted
