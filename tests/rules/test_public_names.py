"""The public names: exactly these, all importable, all of the right kind."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import rankwise

PUBLIC = {
    "Classifier": "class",
    "Comparison": "class",
    "Cut": "class",
    "DataError": "class",
    "Export": "class",
    "Metrics": "class",
    "ModelError": "class",
    "Prediction": "class",
    "Push": "class",
    "RankwiseClassifier": "class",
    "RankwiseError": "class",
    "Recipe": "class",
    "Recommendation": "class",
    "ResourceError": "class",
    "Results": "class",
    "SearchResults": "class",
    "TrainingError": "class",
    "Unreachable": "class",
    "UsageError": "class",
    "compare": "function",
    "cut": "function",
    "evaluate": "function",
    "export": "function",
    "push": "function",
    "search": "function",
    "sweep": "function",
    "train": "function",
}


def test_the_list() -> None:
    assert rankwise.__all__ == list(PUBLIC)
    assert dir(rankwise) == list(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_each_is_there(name: str) -> None:
    found = getattr(rankwise, name)
    assert inspect.isclass(found) if PUBLIC[name] == "class" else inspect.isfunction(found)
    assert found.__name__ == name
    assert found.__doc__


def test_no_other() -> None:
    with pytest.raises(AttributeError, match="module 'rankwise' has no attribute 'Sweep'"):
        _ = rankwise.Sweep


def test_every_error_is_public_and_a_rankwise_error() -> None:
    from rankwise import errors

    classes = {
        name
        for name, each in vars(errors).items()
        if inspect.isclass(each) and issubclass(each, BaseException) and each.__module__ == errors.__name__
    }
    assert classes <= set(PUBLIC)
    assert all(issubclass(getattr(rankwise, name), rankwise.RankwiseError) for name in classes)


def test_a_function_is_not_hidden_by_its_module() -> None:
    """Importing a function's module must not shadow the public function of the same name."""
    code = """
import rankwise.commands.sweep
from rankwise.commands.evaluate import Metrics
from rankwise import evaluate, sweep
print(sweep.__name__, evaluate.__name__, callable(sweep) and callable(evaluate))
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert found.stdout == "sweep evaluate True\n"
