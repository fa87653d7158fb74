"""Baselines: reference classifiers evaluated on the same data as the ranks.

- majority class: always predicts the most frequent training label, with the label frequencies as
  probabilities;
- TF-IDF + linear SVM: unigrams and bigrams, no language model (Joachims 1998); its scores are not
  probabilities, so it has no log loss and no calibration;
- untrained head: the frozen base with a randomly initialized head.

The linear probe, a head trained on the frozen base, is also a baseline if rank 0 is not among the recipe's
ranks. It is trained like any adapter, in its own bank (`plan.probe`).
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
from rankwise.tasks.single import SINGLE
from rankwise.tasks.task import Task
from rankwise.training.data import EncodedSplit
from rankwise.training.outcome import Outcome

Logits = dict[str, NDArray[np.float32]]
"""Evaluated split -> (texts, classes)."""
Splits = Mapping[str, EncodedSplit]
SVM = "TF-IDF + linear SVM"
"""Name of the baseline that has scores instead of probabilities."""


def majority(train: EncodedSplit, evaluated: Splits, classes: int, task: Task = SINGLE) -> Logits:
    """The log frequencies of the training labels for every text; for a multi-label task, the log odds."""
    shares = task.prior_logits(train.targets, classes)
    return {name: np.tile(shares, (len(split), 1)) for name, split in evaluated.items()}


def linear_svm(train: EncodedSplit, evaluated: Splits, classes: int, task: Task = SINGLE) -> Logits:
    """One-hot predictions of a linear SVM on TF-IDF features of unigrams and bigrams.

    Tokens are runs of word characters and runs of punctuation; term frequencies are sublinear. The model is
    scikit-learn's `LinearSVC` with C = 1, one-vs-rest. For a multi-label task, the scores of each label.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.svm import LinearSVC

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]+")
    svm = LinearSVC(random_state=0)
    model = OneVsRestClassifier(svm) if task.several else svm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # close enough for a baseline
        warnings.filterwarnings("ignore", "Label not", UserWarning)  # no training text has it, or all have
        model.fit(words.fit_transform(train.source.texts), train.targets)
    features = {name: words.transform(split.source.texts) for name, split in evaluated.items()}
    if task.several:
        return {name: model.decision_function(each).astype(np.float32) for name, each in features.items()}
    one_hot = np.eye(classes, dtype=np.float32)
    return {name: one_hot[model.predict(each)] for name, each in features.items()}


def untrained_head(backbone: Backbone, spec: AdapterSpec, evaluated: Splits, classes: int) -> Logits:
    """Logits of an untrained head on the frozen base, initialized with the seed of `spec`."""
    head = replace(spec, rank=0, scale=0.0, dropout=0.0, modules=())
    bank = Bank(
        [head], backbone.modules(), backbone.d_model, classes, backbone.head_std, backbone.tokens.device
    )
    return {name: split.mean(bank_logits(backbone, bank, split.ids)[0]) for name, split in evaluated.items()}


def all_baselines(material: Material, finished: Mapping[str, Outcome]) -> dict[str, Logits]:
    """Baseline -> its logits on each evaluated split."""
    if not material.recipe.train.baselines:
        return {}
    train, splits, labels = material.splits["train"], material.evaluated, material.corpus.labels
    first = next(iter(material.specs.values()))
    rows = {
        "majority class": majority(train, splits, len(labels), material.task),
        SVM: linear_svm(train, splits, len(labels), material.task),
        "untrained head": untrained_head(material.backbone, first, splits, len(labels)),
    }
    probe = material.plan.probe
    if probe and probe.name in finished:
        rows["rank 0"] = finished[probe.name].logits
    return rows
