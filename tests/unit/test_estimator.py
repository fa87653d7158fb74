"""RankwiseClassifier follows scikit-learn's conventions."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

from rankwise import DataError, RankwiseClassifier, Recipe, Results, UsageError
from tests import tiny

TEXTS, NAMES = (np.array(column) for column in zip(*tiny.rows(36, 0), strict=True))
QUICK: dict[str, Any] = {
    "ranks": (2,),
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 0.02,
    "tune": False,
    "max_length": 32,
    "device": "cpu",
    "precision": "float32",
    "settings": {"alpha": 4.0, "alpha_mode": "fixed", "baselines": False},
}


@pytest.fixture
def estimator(gpt2_base: Path) -> RankwiseClassifier:
    """An estimator that fits in about a second."""
    return RankwiseClassifier(base=str(gpt2_base), **QUICK)


@pytest.fixture(scope="module")
def fitted(gpt2_base: Path) -> RankwiseClassifier:
    """An estimator fitted to texts with names. Read-only."""
    return RankwiseClassifier(base=str(gpt2_base), **QUICK).fit(TEXTS, NAMES)


def test_its_defaults_are_the_recipes() -> None:
    defaults = Recipe().flat()
    signature = inspect.signature(RankwiseClassifier)
    given = {name: each.default for name, each in signature.parameters.items()}
    assert {name: given[name] for name in given if name not in ("settings", "folder")} == {
        name: defaults[name] for name in given if name in defaults
    }


def test_predictions(fitted: RankwiseClassifier) -> None:
    assert fitted.classes_.tolist() == sorted(tiny.LABELS)
    labels, shares = fitted.predict(TEXTS), fitted.predict_proba(TEXTS)
    assert shares.shape == (36, 3)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_array_equal(labels, fitted.classes_[shares.argmax(axis=1)])
    assert fitted.score(TEXTS, NAMES) == np.mean(labels == NAMES)
    assert fitted.predict(pd.Series(TEXTS)).tolist() == labels.tolist()


def test_what_fit_leaves(fitted: RankwiseClassifier) -> None:
    assert fitted.rank_ == 2
    assert isinstance(fitted.results_, Results)
    assert fitted.results_.recommended.adapter == "r2-s110" and fitted.results_.verdict
    assert not fitted.results_.folder.exists()
    assert not hasattr(fitted, "n_features_in_")  # texts have no fixed number of features


@pytest.mark.parametrize(
    "labels", [np.arange(36) % 3 - 1, np.arange(36) % 2 == 0, np.array(["no", "yes"] * 18, dtype=object)]
)
def test_labels_of_any_kind(estimator: RankwiseClassifier, labels: Any) -> None:
    estimator.fit(list(TEXTS), labels)
    np.testing.assert_array_equal(estimator.classes_, np.unique(labels))
    assert set(estimator.predict(TEXTS)) <= set(labels)
    assert estimator.predict(TEXTS).dtype == estimator.classes_.dtype


def test_a_folder_that_is_kept(estimator: RankwiseClassifier, tmp_path: Path) -> None:
    estimator.set_params(folder=tmp_path / "run").fit(TEXTS, NAMES)
    assert Results.load(tmp_path / "run") == estimator.results_
    with pytest.raises(UsageError, match="contains a finished sweep"):
        estimator.fit(TEXTS, NAMES)


def test_a_pickled_estimator_is_the_same(fitted: RankwiseClassifier) -> None:
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(TEXTS), fitted.predict_proba(TEXTS))
    assert again.results_ == fitted.results_ and again.results_.verdict == fitted.results_.verdict


def test_a_clone_is_not_fitted(fitted: RankwiseClassifier) -> None:
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        copy.predict(TEXTS)


def test_pipelines_cross_validation_and_grid_search(estimator: RankwiseClassifier) -> None:
    lower = FunctionTransformer(np.char.lower)
    assert len(cross_val_score(make_pipeline(lower, estimator), TEXTS, NAMES, cv=2)) == 2
    grid = GridSearchCV(estimator, {"epochs": np.array([1, 2])}, cv=2, refit=False)
    grid.fit(TEXTS, NAMES)
    assert set(grid.cv_results_["param_epochs"]) == {1, 2}
    assert np.isfinite(grid.cv_results_["mean_test_score"]).all()


def test_bad_input(estimator: RankwiseClassifier) -> None:
    with pytest.raises(ValueError, match="the target y is None"):
        estimator.fit(TEXTS)
    with pytest.raises(ValueError, match="36 texts, but 35 labels"):
        estimator.fit(TEXTS, NAMES[1:])
    with pytest.raises(ValueError, match="Unknown label type"):
        estimator.fit(TEXTS, np.linspace(0, 1, 36))
    with pytest.raises(DataError, match="row 2: the text is missing"):
        estimator.fit(np.array(["so glad", None, *TEXTS[2:]], dtype=object), NAMES)
    with pytest.raises(UsageError, match="epochs"):
        clone(estimator).set_params(epochs=0).fit(TEXTS, NAMES)
    with pytest.raises(UsageError, match="no such setting"):
        clone(estimator).set_params(settings={"epoch": 1}).fit(TEXTS, NAMES)


def test_its_tags_say_that_it_takes_strings(estimator: RankwiseClassifier) -> None:
    tags = get_tags(estimator)
    assert tags.input_tags.string and not tags.input_tags.two_d_array
    assert tags.estimator_type == "classifier" and tags.target_tags.required


class Tabular(RankwiseClassifier):
    """An estimator that claims to take tables, because scikit-learn checks no others."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


NUMERIC = "it fits an estimator to numbers, and texts are strings"
SPARSE = "it wants a message on sparse matrices, and no text is one"
EXPECTED = {
    **dict.fromkeys(
        (
            "check_classifier_data_not_an_array",
            "check_classifiers_classes",
            "check_classifiers_train",
            "check_dict_unchanged",
            "check_dont_overwrite_parameters",
            "check_dtype_object",
            "check_estimators_dtypes",
            "check_estimators_empty_data_messages",
            "check_estimators_fit_returns_self",
            "check_estimators_nan_inf",
            "check_estimators_overwrite_params",
            "check_estimators_pickle",
            "check_f_contiguous_array_estimator",
            "check_fit1d",
            "check_fit2d_1feature",
            "check_fit2d_1sample",
            "check_fit2d_predict1d",
            "check_fit_check_is_fitted",
            "check_fit_idempotent",
            "check_fit_score_takes_y",
            "check_methods_sample_order_invariance",
            "check_methods_subset_invariance",
            "check_n_features_in",
            "check_n_features_in_after_fitting",
            "check_pipeline_consistency",
            "check_positive_only_tag_during_fit",
            "check_readonly_memmap_input",
            "check_supervised_y_2d",
        ),
        NUMERIC,
    ),
    **dict.fromkeys(
        (
            "check_estimator_sparse_array",
            "check_estimator_sparse_matrix",
            "check_estimator_sparse_tag",
        ),
        SPARSE,
    ),
}


@parametrize_with_checks(  # type: ignore[untyped-decorator]
    [Tabular(**QUICK)], expected_failed_checks=lambda estimator: EXPECTED
)
def test_scikit_learns_checks(estimator: RankwiseClassifier, check: Any) -> None:
    check(estimator)


def test_fitting_again_gives_the_same(fitted: RankwiseClassifier) -> None:
    """With texts, what the checks above test with numbers: the same fit, and nothing else is changed."""
    again = clone(fitted)
    before = again.get_params()
    assert again.fit(TEXTS, NAMES) is again
    assert again.get_params() == before and all(vars(again)[name] is before[name] for name in before)
    public = {name for name in vars(again) if not name.endswith("_")}
    assert public == set(before)
    np.testing.assert_array_equal(again.predict_proba(TEXTS), fitted.predict_proba(TEXTS))


def test_predictions_do_not_depend_on_the_other_texts(fitted: RankwiseClassifier) -> None:
    kept = dict(vars(fitted))
    shares = fitted.predict_proba(TEXTS)
    np.testing.assert_allclose(fitted.predict_proba(TEXTS[::-1])[::-1], shares, atol=1e-5)
    np.testing.assert_allclose(fitted.predict_proba(TEXTS[:5]), shares[:5], atol=1e-5)
    assert vars(fitted) == kept


def test_a_column_of_labels_is_taken_with_a_warning(estimator: RankwiseClassifier) -> None:
    with pytest.warns(DataConversionWarning, match="column-vector"):
        estimator.fit(TEXTS, NAMES[:, None])
    assert estimator.classes_.tolist() == sorted(tiny.LABELS)


def test_several_labels_are_refused() -> None:
    with pytest.raises(UsageError, match="for texts with one label"):
        RankwiseClassifier(settings={"task": "multi-label"}).fit(["a", "b"], ["x", "y"])
