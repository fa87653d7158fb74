"""Temperatures are scikit-learn's, halves do not see themselves, and intervals cover what they should."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn
from numpy.typing import NDArray
from packaging.version import Version
from scipy.special import log_softmax, softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from rankwise.stats import calibration
from rankwise.stats.calibration import (
    COLDEST,
    FEWEST_TEXTS,
    HOTTEST,
    best_temperature,
    cross_fitted,
    fit,
    scaling,
)
from rankwise.stats.metrics import metrics, text_log_losses

Ints = NDArray[np.int64]


def case(
    texts: int, factor: float, seed: int = 0, classes: int = 4, spread: float = 2.0
) -> tuple[Ints, NDArray[np.float32]]:
    """Labels drawn from the softmax of t distributed logits, and the logits times a factor."""
    rng = np.random.default_rng(seed)
    logits = spread * rng.standard_t(5, (texts, classes))
    targets = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((texts, 1))).argmax(axis=1)
    return targets, (factor * logits).astype(np.float32)


# Fitting


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_recovers_a_known_factor_and_is_a_minimum(factor: float) -> None:
    targets, logits = case(20_000, factor)
    found = best_temperature(targets, logits)
    assert found == pytest.approx(factor, rel=0.04)
    losses = [
        -log_softmax(logits.astype(np.float64) / t, axis=1)[np.arange(len(targets)), targets].mean()
        for t in (0.99 * found, found, 1.01 * found)
    ]
    assert losses[1] < min(losses[0], losses[2])


@pytest.mark.skipif(
    Version(sklearn.__version__) < Version("1.8"), reason="scikit-learn has temperatures since version 1.8"
)
@pytest.mark.parametrize("strength", [0.05, 1000.0])
def test_the_probabilities_are_scikit_learns(strength: float) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(900, 30))
    y = (x[:, :3] + rng.normal(size=(900, 3))).argmax(axis=1)
    model = LogisticRegression(C=strength, max_iter=5000).fit(x[:150], y[:150])
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(x[150:500], y[150:500])
    logits = model.decision_function(x).astype(np.float32)
    temperature = best_temperature(y[150:500], logits[150:500])
    ours = calibration.probabilities(logits[500:], temperature)
    np.testing.assert_allclose(ours, theirs.predict_proba(x[500:]), atol=2e-4)


def test_texts_without_a_minimum_give_a_bound_which_is_not_used() -> None:
    targets = np.tile([0, 1], 50)
    right = np.eye(2, dtype=np.float32)[targets]
    assert best_temperature(targets, right) == COLDEST
    assert best_temperature(targets, 1 - right) == HOTTEST
    for logits in (right, 1 - right):
        found = fit(targets, logits)
        assert found and not found.is_shown
        assert calibration.usable_temperature(targets, logits) is None


def test_each_half_is_measured_with_the_other_halfs_temperature() -> None:
    targets, logits = case(200, 2.0)
    found = cross_fitted(targets, logits)
    one, other = np.unique(found)
    assert np.bincount(found == one).tolist() == [100, 100]
    assert best_temperature(targets[found == other], logits[found == other]) == pytest.approx(one)
    changed = targets.copy()
    changed[found == one] = 0
    again = cross_fitted(changed, logits)
    assert (again[found == one] == one).all() and (again[found == other] != other).all()


def test_a_temperature_is_used_only_if_the_texts_show_that_it_helps() -> None:
    overconfident, fine = case(500, 2.5), case(500, 1.0)
    assert calibration.usable_temperature(*overconfident) == best_temperature(*overconfident)
    assert calibration.usable_temperature(*fine) is None
    few = fit(*case(FEWEST_TEXTS - 1, 4.0))
    assert few and few.gain > few.gain_error and not few.is_shown
    assert fit(*case(3, 2.5)) is None and calibration.usable_temperature(*case(3, 2.5)) is None


def test_the_gain_is_that_of_cross_fitted_losses() -> None:
    targets, logits = case(300, 2.0)
    temperatures = cross_fitted(targets, logits)
    scaled = logits.astype(np.float64) / temperatures[:, None]
    losses = -log_softmax(scaled, axis=1)[np.arange(300), targets]
    gains = text_log_losses(targets, logits) - losses
    found = fit(targets, logits)
    assert found
    assert found.gain == pytest.approx(gains.mean(), rel=1e-6)
    assert found.gain_error == pytest.approx(gains.std(ddof=1) / np.sqrt(300), rel=1e-6)


# Before and after


def test_values_are_those_of_the_metrics() -> None:
    targets, logits = case(400, 2.0)
    found = scaling(targets, logits, 2.0)
    for side, temperature in ((found.before, 1.0), (found.after, 2.0)):
        expected = metrics("test", targets, (logits / temperature).astype(np.float32), "abcd")
        assert side.log_loss.value == pytest.approx(expected.log_loss, rel=1e-6)
        assert side.ece.value == pytest.approx(expected.ece, abs=1e-6)
        assert side.log_loss.low < side.log_loss.value < side.log_loss.high
    assert found.log_loss_gain.value == pytest.approx(
        found.before.log_loss.value - found.after.log_loss.value
    )


def test_no_scaling_gains_nothing() -> None:
    targets, logits = case(100, 1.0)
    found = scaling(targets, logits, 1.0)
    assert found.before == found.after
    assert (found.log_loss_gain.low, found.log_loss_gain.high, found.ece_gain.high) == (0, 0, 0)


def test_the_error_by_chance_is_that_of_calibrated_texts() -> None:
    """The mean error of other calibrated classifiers; it shrinks with more texts."""
    errors = [metrics("", *case(150, 1.0, seed), "abcd").ece for seed in range(100)]
    by_chance = scaling(*case(150, 1.0, 500), 1.0).before.ece_by_chance
    assert by_chance == pytest.approx(np.mean([error for error in errors if error is not None]), abs=0.008)
    assert scaling(*case(2400, 1.0, 500), 1.0).before.ece_by_chance < 0.4 * by_chance


def test_intervals_of_the_gain_cover_it() -> None:
    """Of log loss: 150 samples, and the gain of 200,000 other texts."""
    targets, logits = case(200_000, 1.6, 9)
    truth = float(
        (
            text_log_losses(targets, logits) - text_log_losses(targets, (logits / 1.6).astype(np.float32))
        ).mean()
    )
    found = [scaling(*case(300, 1.6, seed), 1.6).log_loss_gain for seed in range(150)]
    inside = np.mean([each.low <= truth <= each.high for each in found])
    assert 0.87 <= inside <= 0.995
