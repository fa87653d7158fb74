"""The `predict` command: classify texts with an adapter merged into its base."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from rankwise import hardware
from rankwise.data.readers import SUFFIXES, suffix_of
from rankwise.data.tables import short
from rankwise.data.unlabeled import STDIN, TextRows, is_piped, text_rows
from rankwise.data.writers import require_writable, write_rows
from rankwise.errors import DataError, ModelError, UsageError
from rankwise.models import base as bases
from rankwise.models import peft_format as adapters
from rankwise.models.base import check_ids, load_backbone
from rankwise.models.peft_format import merge
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import HEAD, Bank
from rankwise.nn.inference import bank_logits


@dataclass(frozen=True)
class Prediction:
    """A classifier's prediction for one text."""

    label: str
    probabilities: dict[str, float]  # label -> probability, in the model's label order

    @property
    def probability(self) -> float:
        """Probability of the predicted label."""
        return self.probabilities[self.label]


class Classifier:
    """A fine-tuned text classifier.

    >>> Classifier.load("runs/first/adapters/r4-s110")(["i feel fine"])[0].label  # doctest: +SKIP
    'joy'
    """

    def __init__(
        self, backbone: Backbone, head: Bank, tokenizer: Tokenizer, labels: Sequence[str], max_length: int
    ) -> None:
        self.labels, self.max_length = tuple(labels), max_length
        self._backbone, self._head, self._tokenizer = backbone, head, tokenizer

    @classmethod
    def load(
        cls, folder: Path | str, *, base: str | None = None, device: str = "auto", precision: str = "auto"
    ) -> Self:
        """Load a classifier from an adapter folder.

        Args:
            folder: an adapter folder written by rankwise or PEFT.
            base: the base model, if it cannot be found under the name stored with the adapter.
            device: auto, cpu, cuda, cuda:N or mps.
            precision: auto, bfloat16 or float32.

        Raises:
            ModelError: the adapter or its base cannot be used.
            Unreachable: the base must be downloaded, and the Hub does not answer.
        """
        saved = adapters.load(Path(folder))
        on = hardware.device(device)
        if not (base or saved.base):
            raise ModelError(f"{folder}: does not say which base model it is for", hint="give it: --base")
        found = bases.find(base or saved.base)
        backbone = load_backbone(found, torch.float32, on)
        _check_fits(saved, backbone, Path(folder))
        if saved.embedding is not None:
            backbone.tokens = saved.embedding.to(on)
        merge(backbone, saved)
        backbone.cast(hardware.dtype(precision, on))
        spec = replace(saved.spec, rank=0, modules=())
        head = Bank([spec], backbone.modules(), backbone.d_model, len(saved.labels), device=on)
        head.load(0, {HEAD: saved.state[HEAD]})
        tokenizer = Tokenizer.load(Path(folder) if Tokenizer.is_in(Path(folder)) else found.folder)
        return cls(backbone, head, tokenizer, saved.labels, min(saved.max_length, backbone.max_positions))

    def __call__(self, texts: Sequence[str]) -> list[Prediction]:
        """Predict a label for each text, in order.

        Raises:
            DataError: a text is empty.
        """
        return [
            Prediction(self.labels[int(row.argmax())], dict(zip(self.labels, row.tolist(), strict=True)))
            for row in self.probabilities(texts)
        ]

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(texts, classes) probabilities, each row summing to 1."""
        return softmax(self.logits(texts).astype(np.float64), axis=-1)

    def logits(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(texts, classes) logits.

        Raises:
            DataError: a text is empty or not a string.
            ModelError: the tokenizer does not fit the model.
            UsageError: the texts are one string instead of a list.
        """
        if isinstance(texts, str):
            raise UsageError("give a list of texts, not one string", hint="classifier([text])")
        for i, text in enumerate(texts, 1):
            if isinstance(text, str) and not text.strip():
                raise DataError(f"text {i} is empty", hint="remove it, or give it some text")
        if not texts:
            return np.empty((0, len(self.labels)), dtype=np.float32)
        ids = self._tokenizer(texts, self.max_length)
        check_ids(ids, self._backbone)
        of_head: NDArray[np.float32] = bank_logits(self._backbone, self._head, ids)[0]
        return of_head


def predict_file(
    classifier: Classifier,
    source: Path,
    target: Path,
    *,
    text_column: str | None = None,
    safe_csv: bool = False,
    overwrite: bool = False,
    skip_empty: bool = False,
    on_rows: Callable[[int], None] = lambda rows: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> int:
    """Classify every row of a file of any length, and write the results to another file.

    Rows keep their columns and order; `predicted_label` and a `probability_LABEL` for each label are added.
    If the source has such a column, the added ones get a number.

    Args:
        classifier: the classifier.
        source: a file of any supported format; `.txt` has one text per line; `-` is stdin, in the same way.
        target: .csv, .tsv, .jsonl, .parquet or .xlsx; only put in place once complete.
        text_column: text column of the source, if it cannot be detected.
        safe_csv: prefix cells that a spreadsheet would run as formulas with an apostrophe.
        overwrite: replace the target if it exists.
        skip_empty: leave out rows without a text.
        on_rows: called with the number of rows after each batch.
        on_note: called with notes on what was read, and how much of it was used.

    Returns:
        The number of rows.

    Raises:
        DataError: the source cannot be used; nothing is written.
        UsageError: the target exists, its suffix is not supported, or the text column has the name of an
            added one.
    """
    require_target(target, overwrite=overwrite, safe_csv=safe_csv)
    rows = text_rows(source, text_column=text_column, labels=classifier.labels, skip_empty=skip_empty)
    for note in rows.notes:
        on_note(note)
    added = _added_columns(classifier.labels, rows, on_note)
    blank = {name: "" if name == added[0] else 0.0 for name in added}
    preview = ([row | blank for row in batch] for batch in rows.batches())
    notes: list[str] = []
    done = cut = 0
    with write_rows(target, preview, safe=safe_csv) as write:
        for batch in rows.batches(notes):
            texts = [row[rows.column] for row in batch]
            for row, found in zip(batch, classifier(texts), strict=True):
                values = (found.label, *(round(p, 6) for p in found.probabilities.values()))
                row |= dict(zip(added, values, strict=True))
            write(batch)
            done += len(batch)
            cut += texts_cut(classifier, texts)
            on_rows(len(batch))
    for note in [*(each for each in notes if each not in rows.notes), *cut_note(classifier, cut, done)]:
        on_note(note)
    return done


def source_of(texts: Sequence[str], source: Path | None, target: Path | None) -> Path | None:
    """The file to classify, `-` for stdin, or None if the texts are given.

    If nothing is given, a pipe is read.

    Raises:
        UsageError: the arguments contradict each other, or a text is the name of a file.
    """
    if list(texts) == ["-"] and not source:
        return STDIN
    if not texts and not source and is_piped():
        return STDIN
    if bool(texts) == bool(source) or (source != STDIN and bool(source) != bool(target)):
        raise UsageError("give either texts, or --input FILE and --output FILE")
    _require_texts(texts)
    return source


def require_target(target: Path, *, overwrite: bool, safe_csv: bool = False) -> None:
    """Raise a UsageError if a file of predictions cannot be written, or exists and must be kept."""
    require_writable(target, safe=safe_csv)
    if target.exists() and not target.is_file():
        raise UsageError(f"{target}: not a file")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists", hint="give another --output, or --overwrite to replace it")


def _require_texts(texts: Sequence[str]) -> None:
    """Raise a UsageError if a text is the name of a file, which the user meant to be read."""
    for text in texts:
        known = suffix_of(Path(text)) in SUFFIXES and len(text.split()) == 1
        if known or ("." in text and os.path.isfile(text)):
            hint = f"to classify the texts in it: --input {shlex.quote(text)} --output labeled.csv"
            raise UsageError(f"{text!r} is the name of a file, not a text", hint=hint)


def lines_of_stdin(classifier: Classifier, *, skip_empty: bool, on_note: Callable[[str], None]) -> list[str]:
    """The texts in stdin, one per line.

    Raises:
        DataError: stdin is not UTF-8, has no texts, or an empty line within them that is not to be skipped.
    """
    rows = text_rows(STDIN, labels=classifier.labels, skip_empty=skip_empty)
    notes = list(rows.notes)
    texts = [row[rows.column] for batch in rows.batches(notes) for row in batch]
    for note in notes:
        on_note(note)
    return texts


def texts_cut(classifier: Classifier, texts: Sequence[str]) -> int:
    """The number of texts with more tokens than the classifier reads."""
    return classifier._tokenizer.truncated(texts, classifier.max_length)


def cut_note(classifier: Classifier, cut: int, texts: int) -> list[str]:
    """A note on the number of texts that were cut, if any were."""
    return [f"{cut:,} of {texts:,} texts cut at {classifier.max_length:,} tokens"] if cut else []


def _added_columns(labels: Sequence[str], rows: TextRows, on_note: Callable[[str], None]) -> list[str]:
    """Names of the added columns; they get a number if the input has one of these names.

    Raises:
        UsageError: the text column has one of these names.
    """
    usual = ["predicted_label", *(f"probability_{label}" for label in labels)]
    if rows.column in usual:
        hint = "rename the column, or select another with --text-column NAME"
        raise UsageError(f"the text column {short(rows.column)} has the name of an output column", hint=hint)
    taken = set(rows.all_columns())
    names, number = usual, 1
    while not taken.isdisjoint(names):
        number += 1
        names = [f"{name}_{number}" for name in usual]
    if names != usual:
        there = next(name for name in usual if name in taken)
        on_note(rows.origin.note(f"has a column {short(there)}, so the new columns end in _{number}"))
    return names


def _check_fits(saved: adapters.SavedAdapter, backbone: Backbone, folder: Path) -> None:
    modules = backbone.modules()
    head = saved.state[HEAD]
    if head.shape[1] != backbone.d_model:
        raise ModelError(
            f"{folder}: the score head {tuple(head.shape)} does not fit a model of width {backbone.d_model}"
        )
    tokens, embedding = backbone.tokens.shape, saved.embedding
    if embedding is not None and (embedding.shape[1] != tokens[1] or len(embedding) < tokens[0]):
        raise ModelError(f"{folder}: the embeddings {tuple(embedding.shape)} do not fit the base model's")
    for module in saved.spec.modules:
        if module not in modules:
            raise ModelError(
                f"{folder}: the base model has no linear layer {module}", hint="give the right --base"
            )
        n_in, n_out = modules[module]
        a, b = saved.state[f"{module}.lora_A"], saved.state[f"{module}.lora_B"]
        if a.shape != (saved.spec.rank, n_in) or b.shape != (n_out, saved.spec.rank):
            raise ModelError(f"{folder}: the adapter's tensors at {module} do not fit the base model")
