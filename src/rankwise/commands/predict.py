"""The `predict` command: classify texts with an adapter merged into its base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from rankwise import hardware
from rankwise.data import load as data
from rankwise.data.writers import write_rows
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
        check_fits(saved, backbone, Path(folder))
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
    on_rows: Callable[[int], None] = lambda rows: None,
) -> int:
    """Classify every row of a file of any length, and write the results to another file.

    Rows keep their columns and order; `predicted_label` and a `probability_LABEL` for each label are added.

    Args:
        classifier: the classifier.
        source: CSV, TSV, JSON Lines, Parquet, or plain text with one text per line.
        target: .csv, .tsv, .jsonl or .parquet; only put in place once complete.
        text_column: text column of the source, if it cannot be detected.
        safe_csv: prefix cells that a spreadsheet would run as formulas with an apostrophe.
        on_rows: called with the number of rows after each batch.

    Returns:
        The number of rows.

    Raises:
        DataError: the source cannot be used; nothing is written.
        UsageError: the target's suffix is not supported.
    """
    column, batches = data.read_rows(source, text_column=text_column)
    added = {"predicted_label": "", **{f"probability_{label}": 0.0 for label in classifier.labels}}
    again = data.read_rows(source, text_column=text_column)[1]
    done = 0
    with write_rows(target, ([row | added for row in batch] for batch in again), safe=safe_csv) as write:
        for batch in batches:
            for row, found in zip(batch, classifier([row[column] for row in batch]), strict=True):
                row["predicted_label"] = found.label
                row |= {f"probability_{label}": round(p, 6) for label, p in found.probabilities.items()}
            write(batch)
            done += len(batch)
            on_rows(len(batch))
    return done


def check_fits(saved: adapters.SavedAdapter, backbone: Backbone, folder: Path) -> None:
    """Check that an adapter's tensors have the shapes that its base model needs.

    Raises:
        ModelError: they do not.
    """
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
