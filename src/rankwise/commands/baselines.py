"""Baselines: what the same data reach without the ranks that are compared.

- majority class: always the commonest label of train; its probabilities are the labels' shares;
- TF-IDF + linear SVM: words and pairs of words, no language model (Joachims 1998); it gives scores,
  not probabilities, so it has no log loss and no calibration;
- untrained head: the frozen base under a fresh head;
- rank 0: a head trained on the frozen base, where rank 0 is not among the recipe's ranks.

The last two stand at the recipe's first seed. All see the texts that the adapters see.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rankwise import hardware
from rankwise.data.load import Split
from rankwise.errors import TrainingError
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import AdapterSpec, Bank
from rankwise.nn.batch import Ids
from rankwise.nn.inference import bank_logits
from rankwise.recipe import Recipe
from rankwise.training.callbacks import Callback
from rankwise.training.train import balanced_weights, train


class Material(Protocol):
    """A split, its texts as token ids and its labels as (texts,) label ids."""

    @property
    def source(self) -> Split:
        """Texts and labels as they were read."""

    @property
    def ids(self) -> list[Ids]:
        """Token ids of each text, (length,) int64."""

    @property
    def targets(self) -> NDArray[np.int64]:
        """(texts,) label ids."""


Splits = Mapping[str, Material]
Logits = dict[str, NDArray[np.float32]]
"""Split, other than train -> (texts, classes)."""


@dataclass(frozen=True)
class Answers:
    """What one reference says of the texts of every split but train."""

    name: str
    logits: Logits
    probabilistic: bool = True  # False: the logits are scores, of which the largest wins


def answers(
    recipe: Recipe, backbone: Backbone, splits: Splits, classes: int, callback: Callback
) -> Iterator[Answers]:
    """Every reference of a recipe, one after the other.

    Args:
        recipe: how the head is trained; seeds and class weights.
        backbone: the frozen base.
        splits: `train`, and those to be evaluated.
        classes: number of labels.
        callback: told of progress.
    """
    if not recipe.train.baselines:
        return
    callback.begin("baselines", None)
    yield Answers("majority class", majority(splits, classes))
    yield Answers("TF-IDF + linear SVM", linear_svm(splits, classes), probabilistic=False)
    head = AdapterSpec(
        rank=0, alpha=recipe.lora.alpha_of(0), scale=0.0, seed=recipe.train.seeds[0], dropout=0.0, modules=()
    )
    bank = Bank(
        [head], backbone.modules(), backbone.d_model, classes, backbone.head_std, backbone.tokens.device
    )
    yield Answers("untrained head", _predict(backbone, bank, splits))
    callback.end()
    if 0 not in recipe.lora.ranks:
        try:
            yield Answers("rank 0", trained_head(recipe, backbone, bank, splits, callback))
        except (TrainingError, RuntimeError, MemoryError) as error:
            if not (isinstance(error, TrainingError) or hardware.is_out_of_memory(error)):
                raise
            callback.note(f"the baseline of rank 0 is left out: {error or 'out of memory'}")


def majority(splits: Splits, classes: int) -> Logits:
    """The logarithm of the labels' shares in train, whatever the text."""
    counts = np.bincount(splits["train"].targets, minlength=classes)
    shares = np.log(np.maximum(counts, 0.5) / counts.sum()).astype(np.float32)
    return {name: np.tile(shares, (len(split.targets), 1)) for name, split in _evaluated(splits)}


def linear_svm(splits: Splits, classes: int) -> Logits:
    """1 for the label that a linear SVM on TF-IDF of words and pairs of words gives, 0 for the others.

    Words are runs of letters, digits and underscores, and runs of other signs; term frequencies are
    logarithmic. scikit-learn's `LinearSVC`, C = 1, one class against the rest.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]+")
    machine = LinearSVC(random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough, for a reference
        machine.fit(words.fit_transform(splits["train"].source.texts), splits["train"].targets)
    one_hot = np.eye(classes, dtype=np.float32)
    return {
        name: one_hot[machine.predict(words.transform(split.source.texts))]
        for name, split in _evaluated(splits)
    }


def trained_head(
    recipe: Recipe, backbone: Backbone, bank: Bank, splits: Splits, callback: Callback
) -> Logits:
    """The bank's one head, trained as the recipe says: what an adapter of rank 0 answers.

    Raises:
        TrainingError: a loss is no longer a number.
    """
    material = splits["train"]
    kept: dict[str, Logits] = {}
    best = -1.0

    def keep(epoch: int) -> None:
        nonlocal best
        if recipe.train.keep == "best" or epoch == recipe.train.epochs:
            found = _predict(backbone, bank, splits)
            right = float((found["validation"].argmax(axis=1) == splits["validation"].targets).mean())
            if recipe.train.keep == "last" or right > best:
                best, kept["best"] = right, found

    weights = None
    if recipe.train.class_weights == "balanced":
        weights = balanced_weights(material.targets, bank.classes).to(bank.flat.device)
    steps = recipe.train.epochs * -(-len(material.ids) // recipe.train.batch_size)
    callback.begin("rank 0", steps)
    train(
        backbone,
        bank,
        material.ids,
        material.targets,
        recipe,
        class_weights=weights,
        on_step=lambda step: callback.advance(1, f"loss {step.losses[0]:.2f}"),
        on_epoch=keep,
    )
    callback.end()
    return kept["best"]


def _predict(backbone: Backbone, bank: Bank, splits: Splits) -> Logits:
    return {name: bank_logits(backbone, bank, split.ids)[0] for name, split in _evaluated(splits)}


def _evaluated(splits: Splits) -> list[tuple[str, Material]]:
    return [(name, split) for name, split in splits.items() if name != "train"]
