"""Baselines: what the same data reach without the ranks that are compared.

- majority class: always the commonest label of train; its probabilities are the labels' shares;
- TF-IDF + linear SVM: words and pairs of words, no language model (Joachims 1998); it gives scores,
  not probabilities, so it has no log loss and no calibration;
- untrained head: the frozen base under a fresh head.

The linear probe, a head trained on the frozen base, is a baseline too where rank 0 is not among the recipe's
ranks. It is trained like any adapter, in a bank of its own (`plan.probe`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rankwise.commands.material import Material
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import AdapterSpec, Bank
from rankwise.nn.inference import bank_logits
from rankwise.training.data import EncodedSplit
from rankwise.training.outcome import Outcome

Logits = dict[str, NDArray[np.float32]]
"""Evaluated split -> (texts, classes)."""
Splits = Mapping[str, EncodedSplit]
SVM = "TF-IDF + linear SVM"
"""Name of the baseline that gives scores instead of probabilities."""


def majority(train: EncodedSplit, evaluated: Splits, classes: int) -> Logits:
    """The logarithm of the labels' shares in train, whatever the text."""
    counts = np.bincount(train.targets, minlength=classes)
    shares = np.log(np.maximum(counts, 0.5) / counts.sum()).astype(np.float32)
    return {name: np.tile(shares, (len(split), 1)) for name, split in evaluated.items()}


def linear_svm(train: EncodedSplit, evaluated: Splits, classes: int) -> Logits:
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
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough, for a baseline
        machine.fit(words.fit_transform(train.source.texts), train.targets)
    one_hot = np.eye(classes, dtype=np.float32)
    return {
        name: one_hot[machine.predict(words.transform(split.source.texts))]
        for name, split in evaluated.items()
    }


def untrained_head(backbone: Backbone, spec: AdapterSpec, evaluated: Splits, classes: int) -> Logits:
    """Logits of a fresh head on the frozen base; `spec` gives its seed."""
    head = replace(spec, rank=0, scale=0.0, dropout=0.0, modules=())
    bank = Bank(
        [head], backbone.modules(), backbone.d_model, classes, backbone.head_std, backbone.tokens.device
    )
    return {name: bank_logits(backbone, bank, split.ids)[0] for name, split in evaluated.items()}


def all_baselines(material: Material, finished: Mapping[str, Outcome]) -> dict[str, Logits]:
    """Baseline -> its logits on each evaluated split."""
    if not material.recipe.train.baselines:
        return {}
    train, splits, labels = material.splits["train"], material.evaluated, material.corpus.labels
    first = next(iter(material.specs.values()))
    rows = {
        "majority class": majority(train, splits, len(labels)),
        SVM: linear_svm(train, splits, len(labels)),
        "untrained head": untrained_head(material.backbone, first, splits, len(labels)),
    }
    probe = material.plan.probe
    if probe and probe.name in finished:
        rows["rank 0"] = finished[probe.name].logits
    return rows
