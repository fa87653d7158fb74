"""A scikit-learn estimator that fine-tunes a language model at the rank that a sweep recommends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import assert_all_finite
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from rankwise.commands.train import train
from rankwise.errors import UsageError


# To mypy, the base classes are Any, because scikit-learn has no type annotations.
class RankwiseClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A text classifier for scikit-learn's pipelines, cross-validation and grid search.

    `fit` runs a sweep. It holds out a tenth of the texts to compare the ranks, and with `tune`, further texts
    to choose learning rates. Each class needs at least two texts.

    Args:
        base: the base model: smollm2-135m, a local folder, or a Hub ID.
        ranks: ranks to train.
        seeds: seeds; every rank is trained with every seed.
        epochs: passes over the training texts.
        batch_size: texts per adapter and step.
        learning_rate: peak learning rate. With `tune`, the rates that are tried surround it.
        tune: choose each rank's learning rate before training its adapters.
        max_length: maximum tokens per text. Longer texts are truncated at the end.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, bfloat16 or float32.
        settings: other settings of a `Recipe`, by name.
        folder: run folder to keep. By default, it is a temporary folder that `fit` removes.

    Attributes:
        classes_: (classes,) the labels, sorted.
        classifier_: the `Classifier` of the recommended adapter.
        results_: the `Results` of the sweep.
        rank_: the recommended rank.

    >>> from sklearn.model_selection import cross_val_score  # doctest: +SKIP
    >>> cross_val_score(RankwiseClassifier(ranks=(4,)), texts, labels, cv=3)  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        base: str = "smollm2-135m",
        ranks: Sequence[int] = (1, 2, 4, 8, 16),
        seeds: Sequence[int] = (110,),
        epochs: int = 3,
        batch_size: int = 16,
        learning_rate: float = 1e-3,
        tune: bool = True,
        max_length: int = 128,
        device: str = "auto",
        precision: str = "auto",
        settings: Mapping[str, Any] | None = None,
        folder: PathLike[str] | str | None = None,
    ) -> None:
        self.base = base
        self.ranks = ranks
        self.seeds = seeds
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.tune = tune
        self.max_length = max_length
        self.device = device
        self.precision = precision
        self.settings = settings
        self.folder = folder

    def fit(self, X: Iterable[str], y: Iterable[Any] | None = None) -> Self:
        """Train on texts and their labels.

        Args:
            X: (texts,) strings, in any iterable.
            y: (texts,) labels: strings, integers or booleans. Required, as in all of scikit-learn's
                classifiers.

        Raises:
            ValueError: y is missing, or not one label for each text.
            RankwiseError: see `rankwise.train`.
        """
        if y is None:
            raise ValueError("RankwiseClassifier requires y to be passed, but the target y is None")
        if (self.settings or {}).get("task", "single-label") != "single-label":
            hint = "rankwise.train takes texts with any number of labels"
            raise UsageError("RankwiseClassifier is for texts with one label", hint=hint)
        texts, targets = list(X), column_or_1d(y, warn=True)
        assert_all_finite(targets)
        check_classification_targets(targets)
        if len(texts) != len(targets):
            raise ValueError(f"{len(texts):,} texts, but {len(targets):,} labels")
        self.classes_, places = np.unique(targets, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"a classifier needs at least two classes, and y has {len(self.classes_)}")
        names = [str(label) for label in self.classes_]
        data = texts, [names[place] for place in places]
        if self.folder is not None:
            self._train(data, names, self.folder)
            return self
        with TemporaryDirectory() as folder:
            self._train(data, names, f"{folder}/run")
        return self

    def _train(
        self, data: tuple[list[str], list[str]], names: list[str], folder: PathLike[str] | str
    ) -> None:
        own = ("settings", "folder")
        given = {name: value for name, value in self.get_params(deep=False).items() if name not in own}
        settings = {name: _plain(value) for name, value in (given | dict(self.settings or {})).items()}
        self.classifier_ = train(data, folder=folder, labels=names, **settings)
        self.results_ = self.classifier_.results
        assert self.results_ is not None
        self.rank_ = self.results_.recommended.rank

    def predict(self, X: Iterable[str]) -> NDArray[Any]:
        """(texts,) the most probable label of each text.

        Raises:
            DataError: a text is empty, missing or not a string.
        """
        check_is_fitted(self)
        labels: NDArray[Any] = self.classes_[self.classifier_.logits(X).argmax(axis=1)]
        return labels

    def predict_proba(self, X: Iterable[str]) -> NDArray[np.float64]:
        """(texts, classes) probabilities in the order of `classes_`.

        Raises:
            DataError: a text is empty, missing or not a string.
        """
        check_is_fitted(self)
        return self.classifier_.predict_proba(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags


def _plain(value: Any) -> Any:
    """A NumPy scalar or array, as in a parameter grid, as Python values."""
    return value.tolist() if hasattr(value, "tolist") else value
