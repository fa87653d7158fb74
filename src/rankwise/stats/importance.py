"""How much each setting of a search mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor

TREES = 200
"""Number of trees of the random forest."""


def importances(settings: Sequence[Mapping[str, Any]], losses: NDArray[np.float64]) -> dict[str, float]:
    """The share of the variance of the loss that each setting explains by itself.

    These are the main effects of a functional analysis of variance, on the predictions of a random forest
    (Hutter, Hoos and Leyton-Brown 2014, "An efficient approach for assessing hyperparameter importance"). The
    main effect of a setting is the variance of the mean prediction given its value, over the variance of the
    predictions. What is missing to 1 is due to combinations of settings. With few trials, shares are rough.

    Args:
        settings: the settings of each trial, by name; at least two trials.
        losses: (trials,) the loss of each trial.

    Returns:
        Name -> share from 0 to 1, the largest first; 0 if the losses do not differ.
    """
    names = list(dict.fromkeys(name for each in settings for name in each))
    places = np.stack([_places([each.get(name) for each in settings]) for name in names], axis=1)
    forest = RandomForestRegressor(TREES, random_state=0).fit(places, losses)
    total = float(np.var(forest.predict(places)))
    shares = {name: _explained(forest, places, i) for i, name in enumerate(names)}
    found = {name: min(1.0, share / total) if total > 0 else 0.0 for name, share in shares.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _places(values: Sequence[Any]) -> NDArray[np.float64]:
    """(trials,) the place of each trial's value among the values in order, which is all that a tree needs."""
    numbers = all(isinstance(value, int | float) or value is None for value in values)
    distinct = {str(value): value for value in values}
    ordered = sorted(
        distinct, key=lambda key: (distinct[key] is None, (distinct[key] or 0) if numbers else key)
    )
    return np.array([ordered.index(str(value)) for value in values], dtype=np.float64)


def _explained(forest: RandomForestRegressor, places: NDArray[np.float64], column: int) -> float:
    """Variance of the mean prediction given a setting, over the trials' values of it."""
    values, counts = np.unique(places[:, column], return_counts=True)
    means = []
    for value in values:
        fixed = places.copy()
        fixed[:, column] = value
        means.append(forest.predict(fixed).mean())
    return float(np.cov(means, fweights=counts, bias=True)) if len(means) > 1 else 0.0
