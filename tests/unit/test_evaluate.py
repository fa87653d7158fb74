"""Metrics match scikit-learn's, and can be computed from a labeled file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, f1_score, log_loss

from rankwise import Classifier, DataError, evaluate
from rankwise.stats.metrics import metrics
from rankwise.store.run_folder import RunFolder
from tests import tiny

NAMES = ("a", "b", "c", "d")


def random_case(texts: int, classes: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Targets below `classes`, and logits over four labels that are biased toward the targets."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, classes, texts)
    logits = random.normal(size=(texts, len(NAMES))).astype(np.float32)
    logits[np.arange(texts), targets] += 1
    return targets, logits


def test_all_figures_are_scikit_learns() -> None:
    targets, logits = random_case(200, 4, 0)
    predicted = logits.argmax(axis=1)
    found = metrics("validation", targets, logits, NAMES)
    assert (found.split, found.texts) == ("validation", 200)
    assert found.accuracy == pytest.approx(accuracy_score(targets, predicted))
    assert found.macro_f1 == pytest.approx(f1_score(targets, predicted, average="macro"))
    assert found.log_loss == pytest.approx(log_loss(targets, softmax(logits.astype(np.float64), axis=-1)))
    assert found.confusion == confusion_matrix(targets, predicted).tolist()
    report = classification_report(targets, predicted, output_dict=True, target_names=NAMES)
    for each in found.classes:
        theirs = report[each.label]
        assert (each.precision, each.recall, each.f1, each.texts) == pytest.approx(
            (theirs["precision"], theirs["recall"], theirs["f1-score"], theirs["support"])
        )
    assert found.accuracy_low < found.accuracy < found.accuracy_high


def test_a_class_that_is_absent_counts_only_where_it_is_predicted() -> None:
    targets, logits = random_case(100, 3, 1)
    assert (logits.argmax(axis=1) == 3).any()
    found = metrics("test", targets, logits, NAMES)
    assert found.macro_f1 == pytest.approx(
        f1_score(targets, logits.argmax(axis=1), average="macro", zero_division=0.0)
    )
    assert (found.classes[3].texts, found.classes[3].recall) == (0, 0.0)
    logits[:, 3] = -100.0  # never predicted, so three classes remain
    found = metrics("test", targets, logits, NAMES)
    assert found.macro_f1 == pytest.approx(f1_score(targets, logits.argmax(axis=1), average="macro"))
    assert found.confusion[3] == [0, 0, 0, 0] and len(found.confusion) == 4


def test_one_text_all_right() -> None:
    found = metrics("test", np.array([1]), np.array([[0.0, 9.0, 0.0, 0.0]], dtype=np.float32), NAMES)
    assert (found.accuracy, found.macro_f1) == (1.0, 1.0)
    assert found.accuracy_low == pytest.approx(0.2065, abs=1e-4)  # Wilson interval for 1 of 1
    assert found.accuracy_high == 1.0


def test_a_sure_and_wrong_answer_has_a_finite_loss() -> None:
    found = metrics("test", np.array([0]), np.array([[-1e4, 1e4, 0.0, 0.0]], dtype=np.float32), NAMES)
    assert found.log_loss is not None and np.isfinite(found.log_loss) and found.accuracy == 0.0


def test_calibration_by_hand() -> None:
    """Two texts of 0.85, one of them right; two of 0.65, both right: (2 * 0.35 + 2 * 0.35) / 4."""
    shares = np.array([[0.85, 0.15], [0.85, 0.15], [0.35, 0.65], [0.65, 0.35]])
    found = metrics("test", np.array([0, 1, 1, 0]), np.log(shares).astype(np.float32), ("a", "b"))
    assert found.ece == pytest.approx(0.35)
    low, high = found.reliability
    assert (low.texts, low.accuracy, high.texts, high.accuracy) == (2, 1.0, 2, 0.5)
    assert low.confidence == pytest.approx(0.65) and high.confidence == pytest.approx(0.85)
    assert (low.low, low.high) == (9 / 15, 10 / 15) and (high.low, high.high) == (12 / 15, 13 / 15)


def test_calibration_of_shares_that_are_true() -> None:
    """Labels sampled from the predicted probabilities are calibrated; a sharpened model is worse."""
    random = np.random.default_rng(2)
    logits = random.normal(size=(20_000, 4)).astype(np.float32)
    shares = softmax(logits.astype(np.float64), axis=-1)
    targets = (shares.cumsum(axis=1) > random.random((20_000, 1))).argmax(axis=1)
    found, sharp = (metrics("test", targets, scale * logits, NAMES) for scale in (1, 3))
    assert found.ece is not None and sharp.ece is not None
    assert found.ece < 0.015 < 0.1 < sharp.ece
    assert sum(each.texts for each in found.reliability) == 20_000
    confidence = shares.max(axis=1)
    for each in found.reliability:
        inside = (confidence > each.low) & (confidence <= each.high)
        assert each.texts == inside.sum()
        assert each.confidence == pytest.approx(confidence[inside].mean())


def test_a_certain_answer_is_in_the_last_bin() -> None:
    found = metrics("test", np.array([1]), np.array([[-1e4, 1e4]], dtype=np.float32), ("a", "b"))
    assert (found.ece, [(each.low, each.high) for each in found.reliability]) == (0.0, [(14 / 15, 1.0)])


def test_scores_that_are_no_probabilities_have_no_calibration() -> None:
    targets, logits = random_case(50, 4, 3)
    found, other = (metrics("test", targets, logits, NAMES, probabilistic=p) for p in (False, True))
    assert (found.log_loss, found.ece, found.reliability) == (None, None, [])
    assert found.confusion == other.confusion and found.macro_f1 == other.macro_f1


def test_evaluate_agrees_with_the_sweep(run: RunFolder, adapter: Path, data_folder: Path) -> None:
    found = evaluate(adapter, data_folder / "test.csv", device="cpu", precision="float32")
    row = run.read_results().adapters[-1]
    assert row.name == adapter.name and row.test is not None
    assert found.split == "test.csv"
    assert found.confusion == row.test.confusion
    assert found.log_loss == pytest.approx(row.test.log_loss, abs=1e-5)


def test_columns_can_be_named(adapter: Path, tmp_path: Path) -> None:
    lines = ["id,said,felt", *(f"{i},{text},{label}" for i, (text, label) in enumerate(tiny.rows(6, 4)))]
    path = tmp_path / "data.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match="no column for the text"):
        evaluate(adapter, path)
    found = evaluate(adapter, path, columns={"text_column": "said", "label_column": "felt"})
    assert found.texts == 6


def test_a_label_that_the_adapter_does_not_know(
    classifier: Classifier, adapter: Path, tmp_path: Path
) -> None:
    path = tiny.write_csv(tmp_path / "data.csv", [("so glad", "joy"), ("so what", "boredom")])
    with pytest.raises(DataError) as caught:
        evaluate(adapter, path)
    assert caught.value.message.startswith(f"{path}:3: the label 'boredom' is not one of the adapter's")
    assert ", ".join(classifier.labels) in caught.value.message
