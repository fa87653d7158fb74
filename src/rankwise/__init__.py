"""Fine-tune GPT-2, and models built like it, into text classifiers with LoRA, at every rank in one pass."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankwise.errors import (
        DataError,
        ModelError,
        RankwiseError,
        ResourceError,
        TrainingError,
        Unreachable,
        UsageError,
    )
    from rankwise.evaluate import Metrics, evaluate
    from rankwise.predict import Classifier, Prediction
    from rankwise.recipe import Recipe
    from rankwise.store.run import Results
    from rankwise.sweep import sweep

_HOMES = {
    "Classifier": "predict",
    "DataError": "errors",
    "Metrics": "evaluate",
    "ModelError": "errors",
    "Prediction": "predict",
    "RankwiseError": "errors",
    "Recipe": "recipe",
    "ResourceError": "errors",
    "Results": "store.run",
    "TrainingError": "errors",
    "Unreachable": "errors",
    "UsageError": "errors",
    "evaluate": "evaluate",
    "sweep": "sweep",
}

__all__ = [
    "Classifier",
    "DataError",
    "Metrics",
    "ModelError",
    "Prediction",
    "RankwiseError",
    "Recipe",
    "ResourceError",
    "Results",
    "TrainingError",
    "Unreachable",
    "UsageError",
    "evaluate",
    "sweep",
]


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the submodule `rankwise.sweep` would bind the module under the function's name.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import rankwise` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rankwise' has no attribute {name!r}")
    value = getattr(import_module(f"rankwise.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
