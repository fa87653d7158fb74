"""Classifier: a fine-tuned adapter merged into its base model; texts -> labels."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from reprlib import repr as brief
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from rankwise import hardware
from rankwise.commands.arguments import require_probability
from rankwise.commands.assemble import Prepared, find_base, load_merged, prepare
from rankwise.commands.explain import Explanation, TokenEffects, explain
from rankwise.commands.locate import adapter_folder
from rankwise.commands.run_results import Results
from rankwise.commands.texts import EncodedTexts, LongTexts, Texts, listed
from rankwise.data.pairs import pair_of
from rankwise.errors import ModelError, UsageError, as_keywords, option
from rankwise.models import base as bases
from rankwise.models import peft_format as adapters
from rankwise.models import windows as long_windows
from rankwise.models.base import check_ids
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import HEAD, Bank
from rankwise.nn.inference import bank_logits
from rankwise.nn.saliency import gradient_times_input
from rankwise.stats import multi_label
from rankwise.tasks.registry import task_of
from rankwise.tasks.single import SINGLE
from rankwise.tasks.task import Task


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


class Classifier:
    """A fine-tuned text classifier. It is immutable, and several threads may use it at once.

    A pickled classifier contains the adapter and the tokenizer, and the name of the base model, which must be
    at hand where it is unpickled. A copy is the classifier itself.

    >>> classifier = Classifier.load("runs/first/adapters/r4-s110")  # doctest: +SKIP
    >>> classifier.predict(["i feel fine", "leave me alone"])  # doctest: +SKIP
    ['joy', 'anger']
    """

    results: Results | None
    """Results of the sweep that trained it, if it comes from `rankwise.train`."""
    temperature: float
    """Divides the logits before they become probabilities; 1 if the adapter has none of its own."""
    window_stride: int | None
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
        *,
        temperature: float = 1.0,
        window_stride: int | None = None,
        results: Results | None = None,
    ) -> None:
        self.labels, self.max_length = tuple(labels), max_length
        self.temperature, self.window_stride, self.results = temperature, window_stride, results
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
        prepared = prepare(path, saved, find_base(saved, base, path), labels)
        if prepared.label_note:
            note(f"{prepared.label_note}; {option('labels')} gives others")
        if on_note and prepared.saved.is_unnamed:
            on_note(f"{path}: has no label names; {option('labels')} gives them")
        name = bases.anchored(prepared.base.name)
        parts = _Parts(
            str(path), prepared.saved, prepared.tokenizer, name, device, precision, in_windows, stride
        )
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
        saved, on = parts.saved, hardware.device(parts.device)
        prepared = Prepared(Path(parts.folder), saved, bases.find(parts.base), parts.tokenizer)
        with hardware.own_torch():
            model = load_merged(prepared, on, parts.precision)
        if model.note:
            note(model.note)
        if model.verified:
            on_int8(model.verified)
        stride = None
        if parts.windows:
            stride = long_windows.stride_of(parts.window_stride, parts.tokenizer.room(model.max_length))
        return cls(
            model.backbone,
            model.head,
            parts.tokenizer,
            saved.labels,
            model.max_length,
            parts,
            task_of(saved.task, saved.label_separator),
            saved.thresholds,
            saved.text_columns,
            temperature=saved.temperature or 1.0,
            window_stride=stride,
            results=results,
        )

    def of_sweep(self, results: Results) -> Self:
        """This classifier, with the results of the sweep that trained it."""
        return type(self)(
            self._backbone,
            self._head,
            self._tokenizer,
            self.labels,
            self.max_length,
            self._parts,
            self.task,
            self.thresholds,
            self.text_columns,
            temperature=self.temperature,
            window_stride=self.window_stride,
            results=results,
        )

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
        if not isinstance(text, str):
            raise UsageError(f"explain is for one text, not {type(text).__name__}")
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


def _warn(text: str) -> None:
    warnings.warn(as_keywords(text), UserWarning, stacklevel=4)
