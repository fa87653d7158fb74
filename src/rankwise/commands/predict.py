"""The `predict` command: classify texts with an adapter merged into its base."""

from __future__ import annotations

import math
import os
import shlex
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from os import PathLike
from pathlib import Path
from reprlib import repr as brief
from typing import Any, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray

from rankwise import hardware
from rankwise.commands.explain import Explanation, TokenEffects, explain
from rankwise.commands.locate import adapter_folder
from rankwise.commands.quantization import to_int8
from rankwise.commands.run_results import Results
from rankwise.data.ahead import ahead
from rankwise.data.columns import Wanted
from rankwise.data.pairs import joined_name, pair_of
from rankwise.data.readers import SUFFIXES, suffix_of
from rankwise.data.tables import Row, counted, short
from rankwise.data.unlabeled import STDIN, TextRows, is_piped, text_rows
from rankwise.data.writers import require_writable, write_rows
from rankwise.errors import DataError, ModelError, Unreachable, UsageError, as_keywords, either, option
from rankwise.models import base as bases
from rankwise.models import peft_format as adapters
from rankwise.models import windows as long_windows
from rankwise.models.base import check_ids, load_with_digest
from rankwise.models.peft_format import merge
from rankwise.models.registry import family_of
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import HEAD, Bank
from rankwise.nn.batch import Ids
from rankwise.nn.inference import bank_logits
from rankwise.nn.saliency import gradient_times_input
from rankwise.paths import expanded
from rankwise.stats import multi_label
from rankwise.store import files
from rankwise.tasks.labels import Labels
from rankwise.tasks.registry import task_of
from rankwise.tasks.single import SINGLE
from rankwise.tasks.task import Task

Texts = Iterable[str | Sequence[str]]
"""Strings; for an adapter of pairs, lists of two strings, or both joined by a line break."""
JOINED = (".csv", ".tsv", ".xlsx")
"""Suffixes of files whose cells hold no lists."""


@dataclass(frozen=True)
class Prediction:
    """A classifier's prediction for one text."""

    label: str
    """The label. The labels of a multi-label classifier are joined by its separator."""
    probabilities: dict[str, float]  # label -> probability, in the model's label order
    labels: tuple[str, ...] = ()
    """The label, or all labels of a multi-label classifier: none, one or several."""
    thresholds: dict[str, float] | None = None
    """Label -> probability from which a multi-label classifier gives it; None for other classifiers."""

    def __post_init__(self) -> None:
        if self.thresholds is None and not self.labels:
            object.__setattr__(self, "labels", (self.label,))

    @property
    def probability(self) -> float:
        """Probability of the predicted label, or of exactly the predicted labels if they were independent."""
        if self.thresholds is None:
            return self.probabilities[self.label]
        return math.prod(p if label in self.labels else 1 - p for label, p in self.probabilities.items())

    def to_json(self, abstain_below: float = 0.0) -> dict[str, Any]:
        """The label, or the labels with their thresholds, and the probabilities, for `--json`."""
        if self.thresholds is None:
            return {"label": self.answer(abstain_below), "probabilities": self.probabilities}
        labels = {"labels": list(self.labels)}
        return labels | {"probabilities": self.probabilities, "thresholds": self.thresholds}

    def answer(self, abstain_below: float) -> str | None:
        """The label; None if its probability is below a threshold."""
        return self.label if self.probability >= abstain_below else None


@dataclass(frozen=True)
class _Parts:
    """What a classifier is made from. The base model is only named, so this is small enough to be pickled."""

    folder: str  # of the adapter, as given; for messages only
    saved: adapters.SavedAdapter
    tokenizer: Tokenizer
    base: str  # a Hub ID, a packaged model, or the absolute path of a folder
    device: str
    precision: str
    windows: bool = False  # whether long texts are read in windows
    window_stride: int | None = None  # as given


@dataclass(frozen=True)
class LongTexts:
    """How texts longer than an adapter's maximum length were read."""

    cut: int = 0  # texts of which only a part was read
    windowed: int = 0  # texts that were read in windows, also in part
    windows: int = 0  # their windows

    def __add__(self, other: LongTexts) -> LongTexts:
        """The sum over two lists of texts."""
        return LongTexts(self.cut + other.cut, self.windowed + other.windowed, self.windows + other.windows)


@dataclass(frozen=True)
class Counts:
    """What became of the texts of a file."""

    texts: int = 0
    unanswered: int = 0  # texts without a label
    long: LongTexts = LongTexts()

    def __add__(self, other: Counts) -> Counts:
        """The sum over two files."""
        texts, unanswered = self.texts + other.texts, self.unanswered + other.unanswered
        return Counts(texts, unanswered, self.long + other.long)


class EncodedTexts(list[str]):
    """Texts with their token ids, which a classifier then does not compute again.

    Args:
        texts: the texts.
        ids: token ids of each text, or of its first window, (length,) int64.
        long: how long texts are read.
        further: index of a text that is read in windows -> token ids of its other windows.
    """

    def __init__(
        self,
        texts: Iterable[str],
        ids: Sequence[Ids],
        long: LongTexts,
        further: Mapping[int, Sequence[Ids]] | None = None,
    ) -> None:
        super().__init__(texts)
        self.ids, self.long, self.further = ids, long, further or {}


class Classifier:
    """A fine-tuned text classifier. It is immutable, and several threads may use it at once.

    A pickled classifier contains the adapter and the tokenizer, and the name of the base model, which must be
    at hand where it is unpickled. A copy is the classifier itself.

    >>> classifier = Classifier.load("runs/first/adapters/r4-s110")  # doctest: +SKIP
    >>> classifier.predict(["i feel fine", "leave me alone"])  # doctest: +SKIP
    ['joy', 'anger']
    """

    results: Results | None = None
    """Results of the sweep that trained it, if it comes from `rankwise.train`."""
    temperature: float = 1.0
    """Divides the logits before they become probabilities; 1 if the adapter has none of its own."""
    window_stride: int | None = None
    """Tokens from the start of a window to that of the next; None if long texts are cut."""

    def __init__(
        self,
        backbone: Backbone,
        head: Bank,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        max_length: int,
        parts: _Parts | None = None,
        task: Task = SINGLE,
        thresholds: Sequence[float] | None = None,
        text_columns: tuple[str, ...] = (),
    ) -> None:
        self.labels, self.max_length = tuple(labels), max_length
        self.task, self.text_columns = task, text_columns
        self.thresholds: tuple[float, ...] | None = None
        if task.several:
            self.thresholds = tuple(thresholds or [multi_label.DEFAULT] * len(self.labels))
        self._backbone, self._head, self._tokenizer = backbone, head, tokenizer
        self._parts = parts

    @classmethod
    def load(
        cls,
        folder: PathLike[str] | str,
        *,
        base: PathLike[str] | str | None = None,
        labels: Sequence[str] | None = None,
        device: str = "auto",
        precision: str = "auto",
        windows: bool | None = None,
        window_stride: int | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> Self:
        """Load a classifier from an adapter folder, or from the Hub.

        Args:
            folder: an adapter folder written by rankwise or PEFT; the folder of a finished run, for the best
                adapter of the rank that it recommends; or OWNER/NAME or OWNER/NAME@REVISION, for an
                adapter on the Hub.
            base: the base model, if it cannot be found under the name stored with the adapter.
            labels: label names in the order of the outputs, for an adapter of PEFT's, which has none.
            device: auto, cpu, cuda, cuda:N or mps.
            precision: auto, bfloat16, float32, or int8, which is calibrated on validation texts of the
                adapter's run, and compared with bfloat16 on others.
            windows: read a text longer than the adapter's maximum length in windows, and take the mean
                of their logits, instead of cutting the text; by default, as in training.
            window_stride: tokens from the start of a window to that of the next; by default, as in training,
                or a window.
            on_note: called with what the user should know, such as a base that is not the one that the
                adapter was trained on; by default, it becomes a warning.

        Raises:
            ModelError: the adapter or its base cannot be used, or int8 changes too many labels.
            UsageError: the label names do not fit the adapter.
            Unreachable: the base or the adapter must be downloaded, and the Hub does not answer.
            UsageError: this machine has no such device or precision, or the stride is larger
                than a window.
        """
        note = on_note or _warn
        path = adapter_folder(os.fspath(folder))
        saved = adapters.load(path)
        in_windows = reads_windows(saved, windows)
        if window_stride is not None and not in_windows:
            what = f"{option('window_stride', window_stride)}: texts are not read in windows"
            raise UsageError(what, hint=f"add {option('windows', True)}")
        stride = saved.window_stride if window_stride is None else window_stride
        hardware.device(device)
        found = _find_base(saved, base, path)
        saved = _with_labels(saved, labels, found, note)
        if on_note and saved.is_unnamed:
            on_note(f"{path}: has no label names; {option('labels')} gives them")
        tokenizer = Tokenizer.load(path if Tokenizer.is_in(path) else found.folder, found.folder)
        name = os.path.abspath(found.name) if os.path.isdir(found.name) else found.name
        parts = _Parts(str(path), saved, tokenizer, name, device, precision, in_windows, stride)
        return cls._assembled(parts, note=note, on_int8=on_note or (lambda text: None))

    @classmethod
    def _assembled(
        cls,
        parts: _Parts,
        results: Results | None = None,
        note: Callable[[str], None] = lambda text: None,
        on_int8: Callable[[str], None] = lambda text: None,
    ) -> Self:
        """Load the base model, and merge the adapter into it."""
        saved, on, base = parts.saved, hardware.device(parts.device), bases.find(parts.base)
        dtype = hardware.prediction_dtype(parts.precision, on)
        with hardware.own_torch():
            backbone, digest = load_with_digest(base, torch.float32, on)
            check_fits(saved, backbone, Path(parts.folder), base)
            if saved.base_sha256 not in ("", digest):
                note(
                    f"{parts.folder}: was trained on another version of {base.name}, "
                    "so its predictions may be wrong"
                )
            if saved.embedding is not None:
                backbone.tokens = saved.embedding.to(on)
            merge(backbone, saved)
            backbone.cast(dtype)
            head = head_of(saved, backbone)
            max_length = min(saved.max_length, backbone.max_positions)
            if parts.precision == hardware.INT8:
                on_int8(to_int8(backbone, head, saved, Path(parts.folder), parts.tokenizer, max_length))
        task = task_of(saved.task, saved.label_separator)
        made = cls(
            backbone,
            head,
            parts.tokenizer,
            saved.labels,
            max_length,
            parts,
            task,
            saved.thresholds,
            saved.text_columns,
        )
        made.results = results
        made.temperature = saved.temperature or 1.0
        if parts.windows:
            room = parts.tokenizer.room(max_length)
            made.window_stride = long_windows.stride_of(parts.window_stride, room)
        return made

    def __call__(self, texts: Texts) -> list[Prediction]:
        """Predict a label for each text, in order, with the probabilities of all labels.

        Args:
            texts: any iterable of strings, or of pairs of strings: a list, a pandas or polars column, a NumPy
                array or a generator.

        Raises:
            DataError: a text is empty, missing or not a string; the message has its number, from 1.
            UsageError: one string was given, or a table, instead of texts.
        """
        return [self._prediction(row) for row in self.predict_proba(texts)]

    def _prediction(self, row: NDArray[np.float64]) -> Prediction:
        """The prediction of a text from its (classes,) probabilities."""
        probabilities = dict(zip(self.labels, row.tolist(), strict=True))
        if self.thresholds is None:
            label = self.labels[int(row.argmax())]
            return Prediction(label, probabilities, (label,))
        limits = dict(zip(self.labels, self.thresholds, strict=True))
        found = tuple(label for label, p in probabilities.items() if p >= limits[label])
        return Prediction(self.task.separator.join(found), probabilities, found, limits)

    @overload
    def predict(self, texts: Texts) -> list[str]: ...

    @overload
    def predict(self, texts: Texts, *, abstain_below: float) -> list[str | None]: ...

    def predict(self, texts: Texts, *, abstain_below: float | None = None) -> list[str] | list[str | None]:
        """The most probable label of each text, in order. Takes and raises what a call does.

        Args:
            texts: as in a call.
            abstain_below: a text whose label has a lower probability than this gets None.

        Raises:
            UsageError: abstain_below is not a probability, or the classifier is multi-label.
        """
        if self.task.several:
            raise UsageError("a multi-label classifier gives lists of labels", hint="use predict_labels")
        if abstain_below is None:
            return [self.labels[i] for i in self.logits(texts).argmax(axis=-1)]
        require_probability(abstain_below)
        return [found.answer(abstain_below) for found in self(texts)]

    def predict_labels(self, texts: Texts) -> list[tuple[str, ...]]:
        """All labels of each text, in order: one, or any number if the classifier is multi-label.

        Takes and raises what a call does.
        """
        return [found.labels for found in self(texts)]

    def predict_proba(self, texts: Texts) -> NDArray[np.float64]:
        """(texts, classes) probabilities in the order of `labels`.

        Each row sums to 1, unless the classifier is multi-label. The logits are divided by `temperature`
        first. Takes and raises what a call does.
        """
        return self.probabilities(self.logits(texts))

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """(texts, classes) probabilities from logits, at the temperature of the classifier."""
        return self.task.probabilities(logits.astype(np.float64) / self.temperature)

    def logits(self, texts: Texts) -> NDArray[np.float32]:
        """(texts, classes) logits in the order of `labels`, without the temperature.

        Those of a text that is read in windows are the mean over its windows.
        Takes and raises what a call does.

        Raises:
            ModelError: the tokenizer does not fit the model, or a logit is not finite.
        """
        found = self._as_texts(texts)
        if not found:
            return np.empty((0, len(self.labels)), dtype=np.float32)
        with hardware.own_torch():
            encoded = found if isinstance(found, EncodedTexts) else self._encoded(found)
            of_head: NDArray[np.float32] = bank_logits(self._backbone, self._head, encoded.ids)[0]
            # A pass of their own: in one pass with other texts, a text's logits would be rounded differently.
            if ids := [each for ids in encoded.further.values() for each in ids]:
                others = iter(bank_logits(self._backbone, self._head, ids)[0])
                for i, of_text in encoded.further.items():
                    rows = [of_head[i], *islice(others, len(of_text))]
                    of_head[i] = np.mean(rows, axis=0, dtype=np.float64)
        if not np.isfinite(of_head).all():
            raise ModelError(
                "the logits are not finite: the adapter's weights are too large for this base model",
                hint=f"try {option('precision', 'float32')}; if it does not help, the adapter cannot be used",
            )
        return of_head

    @property
    def trained_on_windows(self) -> bool:
        """Whether the adapter was trained on windows of long texts."""
        return self._parts is not None and self._parts.saved.window_stride is not None

    def _as_texts(self, texts: Texts) -> list[str]:
        """The texts as plain strings, checked; the texts of a pair are joined."""
        if isinstance(texts, EncodedTexts):
            return texts
        if not self.text_columns or isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
            return listed(texts)
        return [pair_of(number, text, self.text_columns) for number, text in enumerate(texts, 1)]

    def explain(self, text: str, *, method: str = "occlusion") -> Explanation:
        """The label of a text, and how much of its probability each word carries.

        `rankwise.commands.explain` describes the methods.

        Args:
            text: the text.
            method: `occlusion` leaves out each word in turn; `gradient` is a rough estimate in one pass.

        Raises:
            UsageError: the text has only one word, or too many; or there is no such method.
            DataError: the text is empty.
        """
        if self.text_columns:
            what = "the words of a pair of texts are not explained"
            raise UsageError(what, hint="explain is for single texts")
        return explain(self, text, method)

    def token_effects(self, text: str) -> TokenEffects:
        """Gradient times input of each token of a text, for the method `gradient` of `explain`."""
        listed([text])
        if self._parts and self._parts.precision == hardware.INT8:
            what = "no gradients are computed in int8"
            raise UsageError(
                what, hint=f"{option('precision', 'bfloat16')}, or {option('method', 'occlusion')}"
            )
        if self.long_texts([text]).windowed:
            what = f"the gradient is computed in one window of {self.max_length:,} tokens; the text is longer"
            raise UsageError(what, hint=option("method", "occlusion"))
        with hardware.own_torch():
            ids, places = self._tokenizer.places(text, self.max_length)
            check_ids([ids], self._backbone)
            head = self._head.tensors[0][HEAD]
            found, effects = gradient_times_input(self._backbone, head, ids, self.temperature)
        return TokenEffects(found, effects, places)

    def truncated(self, texts: Sequence[str]) -> int:
        """The number of texts of which only a part is read, because they are too long."""
        return self.long_texts(texts).cut

    def long_texts(self, texts: Sequence[str]) -> LongTexts:
        """How the texts with more tokens than `max_length` are read."""
        return (texts if isinstance(texts, EncodedTexts) else self._encoded(self._as_texts(texts))).long

    def encoded(self, texts: Sequence[str]) -> list[str]:
        """The texts with all that can be computed without the model, for a later call.

        Raises:
            DataError: a text cannot be tokenized.
            ModelError: the tokenizer does not fit the model.
        """
        return self._encoded(self._as_texts(texts))

    def _encoded(self, texts: Sequence[str]) -> EncodedTexts:
        if not texts:
            return EncodedTexts([], [], LongTexts())
        found, cut = self._tokenizer.in_windows(texts, self.max_length, self.window_stride)
        check_ids([each for ids in found for each in ids], self._backbone)
        long = {i: ids for i, ids in enumerate(found) if len(ids) > 1}
        counts = LongTexts(cut, len(long), sum(map(len, long.values())))
        return EncodedTexts(texts, [ids[0] for ids in found], counts, {i: ids[1:] for i, ids in long.items()})

    def __repr__(self) -> str:
        if self._parts is None:
            return f"Classifier(labels={brief(self.labels)})"
        parts = self._parts
        return (
            f"Classifier({parts.folder!r}, labels={brief(self.labels)}, rank={parts.saved.spec.rank}, "
            f"base={parts.base!r}, device={parts.device!r}, precision={parts.precision!r})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        if self._parts is None:
            raise UsageError("only a classifier from Classifier.load can be pickled")
        return type(self)._assembled, (self._parts, self.results)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def reads_windows(saved: adapters.SavedAdapter, windows: bool | None) -> bool:
    """Whether long texts are read in windows: as it is asked for, or else as in training."""
    return saved.window_stride is not None if windows is None else windows


def listed(texts: Iterable[object]) -> list[str]:
    """The texts as a list of plain strings, checked."""
    if isinstance(texts, str | bytes):
        raise UsageError("give a list of texts, not one string", hint="classifier([text])")
    if _is_table(texts):
        raise UsageError("give the texts of one column, not a table", hint='classifier(table["text"])')
    if not isinstance(texts, Iterable):
        raise UsageError(f"give a list of texts, not {type(texts).__name__}", hint="classifier([text])")
    return [_checked(number, text) for number, text in enumerate(texts, 1)]


def _is_table(texts: object) -> bool:
    """Whether it is a mapping of columns, a DataFrame, a dataset or an array of several dimensions."""
    named = hasattr(texts, "columns") or hasattr(texts, "column_names")
    return isinstance(texts, Mapping) or named or getattr(texts, "ndim", 1) != 1


def _checked(number: int, text: object) -> str:
    """A text as a plain string. Raises DataError if it is missing, empty or something else."""
    if isinstance(text, str):
        if not text.strip():
            raise DataError(f"text {number} is empty", hint="remove it, or give it some text")
        return str(text)
    missing = text is None or type(text).__name__ in ("NAType", "NaTType") or text != text
    what = "missing" if missing else f"of type {type(text).__name__}, not a string"
    raise DataError(f"text {number} is {what}", hint="remove it, or give it some text")


def predict_file(
    classifier: Classifier,
    source: Path | str,
    target: Path | str,
    *,
    text_column: str | None = None,
    text_columns: tuple[str, ...] | None = None,
    safe_csv: bool = False,
    overwrite: bool = False,
    skip_empty: bool = False,
    abstain_below: float | None = None,
    on_stage: Callable[[str, int | None], None] = lambda stage, rows: None,
    on_read: Callable[[int], None] = lambda rows: None,
    on_rows: Callable[[int], None] = lambda rows: None,
    on_note: Callable[[str], None] = lambda note: None,
    on_counts: Callable[[Counts], None] | None = None,
) -> int:
    """Classify every row of a file of any length, and write the results to another file.

    The next rows are read and tokenized while the model works on the current ones.
    Rows keep their columns and order; `predicted_label` and a `probability_LABEL` for each label are added.
    A multi-label classifier adds `predicted_labels`: a list, or labels joined by its separator in CSV, TSV
    and spreadsheets.
    If the source has such a column, the added ones get a number.

    Args:
        classifier: the classifier.
        source: a file of any supported format; `.txt` has one text per line; `-` is stdin, in the same way.
        target: .csv, .tsv, .jsonl, .parquet or .xlsx; only put in place once complete.
        text_column: text column of the source, if it cannot be detected.
        text_columns: the two columns of a pair of texts, if they are not called as in training.
        safe_csv: prefix cells that a spreadsheet would run as formulas with an apostrophe.
        overwrite: replace the target if it exists.
        skip_empty: leave out rows without a text.
        abstain_below: leave the label empty if its probability is below this; a note says how often.
        on_stage: called when a stage begins, with its name and the number of rows, if known. `read` finds the
            columns of all rows, which .jsonl does not need; `predict` classifies the rows.
        on_read: called with the number of rows after each batch that was read.
        on_rows: called with the number of rows after each batch that was classified and written.
        on_note: called with notes on what was read, and how much of it was used.
        on_counts: called at the end instead of `on_note` with the notes on them.

    Returns:
        The number of rows.

    Raises:
        DataError: the source cannot be used; nothing is written.
        UsageError: the target exists, its suffix is not supported, or the text column has the name of an
            added one; or abstain_below is not a probability.
    """
    least = 0.0 if abstain_below is None else require_abstaining(classifier.task, abstain_below)
    source, target = expanded(source), expanded(target)
    require_target(target, overwrite=overwrite, safe_csv=safe_csv)
    rows = text_rows(
        source,
        text_column=text_column,
        pair=pair_columns(classifier.text_columns, text_column, text_columns),
        labels=classifier.labels,
        skip_empty=skip_empty,
    )
    for note in rows.notes:
        on_note(note)
    added = _added_columns(classifier, rows, on_note)
    as_list = classifier.task.several and target.suffix.lower() not in JOINED
    blank = dict.fromkeys(added, 0.0) | {added[0]: [""] if as_list else ""}
    notes: list[str] = []
    total, counts = 0, Counts()

    def preview() -> Iterator[list[Row]]:
        nonlocal total
        on_stage("read", None)
        for batch in ahead(rows.batches()):
            total += len(batch)
            on_read(len(batch))
            yield [_without_pair(row, rows) | blank for row in batch]

    encoded = (
        (batch, classifier.encoded([row[rows.column] for row in batch])) for batch in rows.batches(notes)
    )
    with write_rows(target, preview(), safe=safe_csv) as write, closing(ahead(encoded)) as batches:
        on_stage("predict", total or None)
        for batch, texts in batches:
            unanswered = 0
            for row, found in zip(batch, classifier(texts), strict=True):
                label = found.answer(least)
                unanswered += label is None
                said = list(found.labels) if as_list else label or ""
                values = (said, *(round(p, 6) for p in found.probabilities.values()))
                row |= dict(zip(added, values, strict=True))
            write([_without_pair(row, rows) for row in batch])
            counts += Counts(len(batch), unanswered, classifier.long_texts(texts))
            on_rows(len(batch))
    more = count_notes(counts, classifier.max_length, classifier.window_stride is not None, abstain_below)
    for note in [*(each for each in notes if each not in rows.notes), *(() if on_counts else more)]:
        on_note(note)
    if on_counts:
        on_counts(counts)
    return counts.texts


def _without_pair(row: dict[str, Any], rows: TextRows) -> dict[str, Any]:
    """A row without the joined texts of a pair, which are not in the source."""
    return {name: value for name, value in row.items() if name != rows.column} if rows.pair else row


def pair_columns(
    known: tuple[str, ...], text_column: str | None, given: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The two columns of a pair of texts: those that are given, or those of training; empty for single texts.

    Args:
        known: those of training.
        text_column: the column of single texts, if it is given.
        given: the two columns, if they are given.

    Raises:
        UsageError: columns are given that do not suit the adapter.
    """
    if text_column and known:
        raise UsageError(
            f"this adapter takes pairs of {known[0]} and {known[1]}, not one text",
            hint=f"name both columns: {option('text_columns', ('A', 'B'))}",
        )
    if given and not known:
        hint = f"name one column: {option('text_column', 'NAME')}"
        raise UsageError("this adapter takes one text, not a pair", hint=hint)
    if given and len(given) != 2:
        raise UsageError(f"{option('text_columns')}: give the names of two columns")
    return given or known


def wanted_by(classifier: Classifier, columns: Mapping[str, Any]) -> Wanted:
    """What is read of labeled data for a classifier.

    Args:
        classifier: the classifier.
        columns: `text_column` or `text_columns`, and `label_column`, if they cannot be detected.

    Raises:
        UsageError: see `pair_columns`.
    """
    text = columns.get("text_column")
    pair = pair_columns(classifier.text_columns, text, columns.get("text_columns"))
    return Wanted(joined_name(pair) if pair else text, columns.get("label_column"), classifier.task, pair)


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
        files_given = either("--input FILE and --output FILE", "source and target")
        raise UsageError(f"give either texts, or {files_given}")
    _require_texts(texts)
    return source


def require_target(target: Path, *, overwrite: bool, safe_csv: bool = False) -> None:
    """Raise a UsageError if a file of predictions cannot be written, or exists and must be kept."""
    require_writable(target, safe=safe_csv)
    if target.exists() and not target.is_file():
        raise UsageError(f"{target}: not a file")
    if target.exists() and not overwrite:
        hint = f"give another {either('--output', 'target')}, or {option('overwrite', True)} to replace it"
        raise UsageError(f"{target} exists", hint=hint)


def _require_texts(texts: Sequence[str]) -> None:
    """Raise a UsageError if a text is the name of a file, which the user meant to be read."""
    for text in texts:
        known = suffix_of(Path(text)) in SUFFIXES and len(text.split()) == 1
        if known or ("." in text and os.path.isfile(text)):
            files_given = either(
                f"--input {shlex.quote(text)} --output labeled.csv", f"source={text!r}, target='labeled.csv'"
            )
            hint = f"to classify the texts in it: {files_given}"
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


def count_notes(
    counts: Counts, length: int, in_windows: bool, abstain_below: float | None = None
) -> list[str]:
    """Notes on the texts that were cut or read in windows, and on those without a label, if there are any.

    Args:
        counts: their numbers.
        length: most tokens that are read of a text, or of a window.
        in_windows: whether long texts are read in windows instead of being cut.
        abstain_below: least probability of a label, if there is one.
    """
    notes = _long_notes(counts.long, counts.texts, length, in_windows)
    return [*notes, *_abstain_note(abstain_below, counts.unanswered, counts.texts)]


def _long_notes(long: LongTexts, texts: int, length: int, in_windows: bool) -> list[str]:
    if not in_windows:
        return [f"{long.cut:,} of {texts:,} texts cut at {counted(length, 'token')}"] if long.cut else []
    notes = []
    if long.windowed:
        said = f"{long.windowed:,} of {texts:,} texts read in windows of {counted(length, 'token')}"
        notes.append(f"{said}, {long.windows:,} windows in all")
    if long.cut:
        notes.append(f"{long.cut:,} of {texts:,} texts cut at {long_windows.MOST:,} windows")
    return notes


def _abstain_note(abstain_below: float | None, unanswered: int, texts: int) -> list[str]:
    if abstain_below is None:
        return []
    return [f"{unanswered:,} of {texts:,} texts have no label: its probability is below {abstain_below:g}"]


def require_probability(abstain_below: float) -> float:
    """The threshold.

    Raises:
        UsageError: it is not a number from 0 to 1.
    """
    if not 0 <= abstain_below <= 1:
        what = f"{option('abstain_below', abstain_below)}: not a probability"
        raise UsageError(what, hint="give a number from 0 to 1")
    return abstain_below


def require_abstaining(task: Labels, abstain_below: float) -> float:
    """The threshold, for a task whose classifiers can abstain.

    Raises:
        UsageError: it is not a number from 0 to 1, or the task is multi-label.
    """
    if task.several:
        what = f"{option('abstain_below', abstain_below)}: a multi-label classifier has thresholds of its own"
        raise UsageError(what, hint="leave it out; a text with no label above its threshold gets none")
    return require_probability(abstain_below)


def _added_columns(classifier: Classifier, rows: TextRows, on_note: Callable[[str], None]) -> list[str]:
    """Names of the added columns; they get a number if the input has one of these names.

    Raises:
        UsageError: the text column has one of these names.
    """
    first = "predicted_labels" if classifier.task.several else "predicted_label"
    usual = [first, *(f"probability_{label}" for label in classifier.labels)]
    if rows.column in usual:
        hint = f"rename the column, or select another with {option('text_column', 'NAME')}"
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


def _warn(text: str) -> None:
    warnings.warn(as_keywords(text), UserWarning, stacklevel=4)


def _find_base(saved: adapters.SavedAdapter, given: PathLike[str] | str | None, folder: Path) -> bases.Base:
    """The base model, by the name that is given or else by the one stored with the adapter."""
    if given:
        return bases.find(os.fspath(given))
    if not saved.base:
        hint = f"give it: {option('base')}"
        raise ModelError(f"{folder}: does not say which base model it is for", hint=hint)
    try:
        return bases.find(saved.base)
    except (ModelError, Unreachable) as error:
        raise type(error)(
            f"{folder}: its base model cannot be used: {error.message}",
            hint=f"give the base model: {option('base', 'FOLDER')}{'; or ' * bool(error.hint)}{error.hint}",
        ) from None


def _with_labels(
    saved: adapters.SavedAdapter,
    labels: Sequence[str] | None,
    base: bases.Base,
    note: Callable[[str], None],
) -> adapters.SavedAdapter:
    """The adapter with the label names that are given; an adapter without any gets those of its base."""
    if labels is not None:
        return saved.named(labels)
    names = bases.label_names(base, len(saved.labels)) if saved.is_unnamed else None
    if names is None:
        return saved
    note(f"the label names are those of {base.name}: {', '.join(names)}; {option('labels')} gives others")
    return saved.named(names)


def head_of(saved: adapters.SavedAdapter, backbone: Backbone) -> Bank:
    """An adapter's score head, as a bank of its own, for an adapter that is merged into the backbone."""
    spec, on = replace(saved.spec, rank=0, modules=()), backbone.tokens.device
    head = Bank([spec], backbone.modules(), backbone.d_model, len(saved.labels), device=on)
    head.load(0, {HEAD: saved.state[HEAD]})
    return head


def check_fits(saved: adapters.SavedAdapter, backbone: Backbone, folder: Path, base: bases.Base) -> None:
    """Check that an adapter fits its base model: the modules that it changes, and the shapes of its tensors.

    Raises:
        ModelError: it does not.
    """
    family = family_of(files.read_object(base.folder / "config.json"))
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
                f"{folder}: the base model has no linear layer {module}",
                hint=f"give the right {option('base')}",
            )
        n_in, n_out = modules[module]
        a, b = saved.state[f"{module}.lora_A"], saved.state[f"{module}.lora_B"]
        if a.shape != (saved.spec.rank, n_in) or b.shape != (n_out, saved.spec.rank):
            raise ModelError(f"{folder}: the adapter's tensors at {module} do not fit the base model")
    adapters.require_whole(folder, saved, list(modules), family)
