"""Fine-tune GPT-2, and models built like it, into text classifiers with LoRA, at every rank in one pass."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankwise.commands.classifier import Classifier, Prediction
    from rankwise.commands.compare import compare
    from rankwise.commands.cut import cut
    from rankwise.commands.evaluate import evaluate
    from rankwise.commands.export import export
    from rankwise.commands.push import push
    from rankwise.commands.run_results import Recommendation, Results
    from rankwise.commands.search import search
    from rankwise.commands.sweep import sweep
    from rankwise.commands.train import train
    from rankwise.errors import (
        DataError,
        ModelError,
        RankwiseError,
        ResourceError,
        TrainingError,
        Unreachable,
        UsageError,
    )
    from rankwise.estimator import RankwiseClassifier
    from rankwise.recipe import Recipe
    from rankwise.schema import Comparison, Cut, Export, Metrics, Push, SearchResults

    __version__: str

_HOMES = {
    "Classifier": "commands.classifier",
    "Comparison": "schema",
    "Cut": "schema",
    "DataError": "errors",
    "Export": "schema",
    "Metrics": "schema",
    "ModelError": "errors",
    "Prediction": "commands.classifier",
    "Push": "schema",
    "RankwiseClassifier": "estimator",
    "RankwiseError": "errors",
    "Recipe": "recipe",
    "Recommendation": "commands.run_results",
    "ResourceError": "errors",
    "Results": "commands.run_results",
    "SearchResults": "schema",
    "TrainingError": "errors",
    "Unreachable": "errors",
    "UsageError": "errors",
    "compare": "commands.compare",
    "cut": "commands.cut",
    "evaluate": "commands.evaluate",
    "export": "commands.export",
    "push": "commands.push",
    "search": "commands.search",
    "sweep": "commands.sweep",
    "train": "commands.train",
}

__all__ = [
    "Classifier",
    "Comparison",
    "Cut",
    "DataError",
    "Export",
    "Metrics",
    "ModelError",
    "Prediction",
    "Push",
    "RankwiseClassifier",
    "RankwiseError",
    "Recipe",
    "Recommendation",
    "ResourceError",
    "Results",
    "SearchResults",
    "TrainingError",
    "Unreachable",
    "UsageError",
    "compare",
    "cut",
    "evaluate",
    "export",
    "push",
    "search",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import rankwise` stays light."""
    if name == "__version__":
        return version("rankwise")
    if name not in _HOMES:
        raise AttributeError(f"module 'rankwise' has no attribute {name!r}")
    value = getattr(import_module(f"rankwise.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
