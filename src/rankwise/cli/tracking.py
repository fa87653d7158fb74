"""Logs losses and validation metrics to TensorBoard, Weights & Biases, MLflow or Trackio.

The trackers are accelerate's (https://huggingface.co/docs/accelerate/usage_guides/tracking), and are
configured by the usual environment variables, such as `WANDB_MODE` and `MLFLOW_TRACKING_URI`. If a tracker
fails during a sweep, it is disabled with a message, and the sweep continues.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from rankwise.errors import UsageError
from rankwise.recipe import Recipe
from rankwise.store.run_folder import RunFolder
from rankwise.training.callbacks import Callback, Validation

EVERY = 10
"""Number of steps averaged for one point of the loss curve."""
PROJECT = "rankwise"


@dataclass(frozen=True)
class _Kind:
    """A tracker supported by accelerate."""

    module: str  # required module
    install: str  # package to install with pip
    orders: bool  # whether its step numbers must not decrease


KINDS = {
    "tensorboard": _Kind("tensorboard", "tensorboard", orders=False),
    "wandb": _Kind("wandb", "wandb", orders=True),
    "mlflow": _Kind("mlflow", "mlflow", orders=False),
    "trackio": _Kind("trackio", "trackio", orders=True),
}


class Trackers(Callback):
    """Logs a sweep's losses and validation metrics to trackers, under the name of each adapter."""

    def __init__(
        self, names: Sequence[str], recipe: Recipe, run: RunFolder, say: Callable[[str], None]
    ) -> None:
        """Trackers are started at the first step.

        Args:
            names: keys of `KINDS`.
            recipe: stored with the run.
            run: folder of the run, which names it. TensorBoard's files are written to its `tracking`.
            say: called with a message if a tracker fails.

        Raises:
            UsageError: a tracker does not exist, or its package is not installed.
        """
        check(names)
        self._names, self._recipe, self._run, self._say = tuple(names), recipe, run, say
        self._started = False
        self._trackers: dict[str, Any] = {}  # name -> accelerate's
        self._losses: dict[str, list[float]] = {}  # adapter -> its losses since the last point

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for name, tracker in list(self._trackers.items()):
            self._try(name, tracker.finish)

    def step(self, adapters: Sequence[str], number: int, steps: int, losses: Sequence[float]) -> None:
        """Log the mean losses every `EVERY` steps."""
        for name, loss in zip(adapters, losses, strict=True):  # adapters leave and enter within an interval
            self._losses.setdefault(name, []).append(loss)
        if number % EVERY == 0 or number == steps:
            means = {f"train/loss/{name}": sum(each) / len(each) for name, each in self._losses.items()}
            self._losses.clear()
            self._log(number, means)

    def validation(self, found: Validation) -> None:
        """Log the metrics of a validation."""
        figures = {"accuracy": found.accuracy, "macro_f1": found.macro_f1, "log_loss": found.log_loss}
        self._log(
            found.step,
            {
                f"validation/{figure}/{name}": value
                for figure, values in figures.items()
                for name, value in zip(found.adapters, values, strict=True)
            },
        )

    def _log(self, step: int, values: dict[str, float]) -> None:
        if not self._started:
            self._started = True
            for name in self._names:
                self._try(name, partial(self._start, name))
        for name, tracker in list(self._trackers.items()):
            if KINDS[name].orders:  # every bank starts at step 1
                self._try(name, partial(tracker.log, values | {"train/step": step}))
            else:
                self._try(name, partial(tracker.log, values, step=step))

    def _start(self, name: str) -> None:
        from accelerate import PartialState, tracking

        PartialState()  # required by the logger of accelerate's trackers
        run = self._run.path.absolute()
        makers: dict[str, Callable[[], Any]] = {
            "tensorboard": partial(tracking.TensorBoardTracker, PROJECT, run / "tracking"),
            "wandb": partial(tracking.WandBTracker, PROJECT, name=run.name),
            "mlflow": partial(tracking.MLflowTracker, PROJECT, run_name=run.name),
            "trackio": partial(tracking.TrackioTracker, PROJECT, name=run.name),
        }
        tracker = makers[name]()
        tracker.start()
        self._trackers[name] = tracker
        settings = {key: str(value) for key, value in self._recipe.flat().items() if value is not None}
        tracker.store_init_configuration(settings)

    def _try(self, name: str, action: Callable[[], object]) -> None:
        """Call `action`, and disable the tracker if it fails."""
        try:
            action()
        except Exception as error:  # packages, servers and the network may raise anything
            self._trackers.pop(name, None)
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._say(f"{name} tracking has stopped, the sweep continues: {what}")


def check(names: Sequence[str]) -> None:
    """Check that trackers exist and are installed.

    Raises:
        UsageError: a tracker does not exist, or is not installed.
    """
    for name in names:
        if name not in KINDS:
            raise UsageError(f"no tracker {name!r}", hint=f"the trackers are {', '.join(KINDS)}")
    missing = [name for name in names if importlib.util.find_spec(KINDS[name].module) is None]
    if missing:
        packages = " ".join(KINDS[name].install for name in missing)
        raise UsageError(f"not installed: {', '.join(missing)}", hint=f"pip install {packages}")
