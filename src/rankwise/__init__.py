"""Fine-tune GPT-2, and models built like it, into text classifiers with LoRA, at every rank in one pass."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankwise.commands.cut import cut
    from rankwise.commands.evaluate import evaluate
    from rankwise.commands.predict import Classifier, Prediction
    from rankwise.commands.search import search
    from rankwise.commands.sweep import sweep
    from rankwise.errors import (
        DataError,
        ModelError,
        RankwiseError,
        ResourceError,
        TrainingError,
        Unreachable,
        UsageError,
    )
    from rankwise.recipe import Recipe
    from rankwise.schema import Cut, Metrics, Results, SearchResults

_HOMES = {
    "Classifier": "commands.predict",
    "Cut": "schema",
    "DataError": "errors",
    "Metrics": "schema",
    "ModelError": "errors",
    "Prediction": "commands.predict",
    "RankwiseError": "errors",
    "Recipe": "recipe",
    "ResourceError": "errors",
    "Results": "schema",
    "SearchResults": "schema",
    "TrainingError": "errors",
    "Unreachable": "errors",
    "UsageError": "errors",
    "cut": "commands.cut",
    "evaluate": "commands.evaluate",
    "search": "commands.search",
    "sweep": "commands.sweep",
}

__all__ = [
    "Classifier",
    "Cut",
    "DataError",
    "Metrics",
    "ModelError",
    "Prediction",
    "RankwiseError",
    "Recipe",
    "ResourceError",
    "Results",
    "SearchResults",
    "TrainingError",
    "Unreachable",
    "UsageError",
    "cut",
    "evaluate",
    "search",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import rankwise` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rankwise' has no attribute {name!r}")
    value = getattr(import_module(f"rankwise.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
