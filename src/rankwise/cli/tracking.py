"""Tracking: losses and validation figures to TensorBoard, Weights & Biases, MLflow or Trackio.

The trackers are accelerate's (https://huggingface.co/docs/accelerate/usage_guides/tracking), so what
their packages read from the environment holds here too: `WANDB_MODE`, `MLFLOW_TRACKING_URI` and so on.
A tracker that fails while a sweep runs is given up with one line; the sweep goes on.
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
"""Steps whose mean loss is one point of the curve."""
PROJECT = "rankwise"


@dataclass(frozen=True)
class _Kind:
    """A tracker that accelerate knows."""

    module: str  # that must be there
    install: str  # what pip is asked for
    orders: bool  # whether it numbers its lines itself and refuses to go back to an earlier step


KINDS = {
    "tensorboard": _Kind("tensorboard", "tensorboard", orders=False),
    "wandb": _Kind("wandb", "wandb", orders=True),
    "mlflow": _Kind("mlflow", "mlflow", orders=False),
    "trackio": _Kind("trackio", "trackio", orders=True),
}


class Trackers(Callback):
    """Hands a sweep's losses and validation figures to trackers, under each adapter's name."""

    def __init__(
        self, names: Sequence[str], recipe: Recipe, run: RunFolder, say: Callable[[str], None]
    ) -> None:
        """Nothing is opened before the first step.

        Args:
            names: of `KINDS`.
            recipe: stored with the run.
            run: its folder gives the run's name; TensorBoard's files go into its `tracking`.
            say: told once of each tracker that fails.

        Raises:
            UsageError: there is no such tracker, or its package is not installed.
        """
        check(names)
        self._names, self._recipe, self._run, self._say = tuple(names), recipe, run, say
        self._started = False
        self._trackers: dict[str, Any] = {}  # name -> accelerate's
        self._losses: list[Sequence[float]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for name, tracker in list(self._trackers.items()):
            self._try(name, tracker.finish)

    def step(self, adapters: Sequence[str], number: int, steps: int, losses: Sequence[float]) -> None:
        """These adapters of a bank have done step `number` of `steps`, from 1, with these losses."""
        self._losses.append(losses)
        if number % EVERY == 0 or number == steps:
            means = [sum(each) / len(self._losses) for each in zip(*self._losses, strict=True)]
            self._losses.clear()
            self._log(
                number, {f"train/loss/{name}": loss for name, loss in zip(adapters, means, strict=True)}
            )

    def validation(self, found: Validation) -> None:
        """These adapters of a bank have been validated after an epoch."""
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
            if KINDS[name].orders:  # a second bank begins at step 1 again
                self._try(name, partial(tracker.log, values | {"train/step": step}))
            else:
                self._try(name, partial(tracker.log, values, step=step))

    def _start(self, name: str) -> None:
        from accelerate import PartialState, tracking

        PartialState()  # without it accelerate's trackers cannot even write to their own log
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
        """Do something with a tracker, and give it up if that fails."""
        try:
            action()
        except Exception as error:  # whatever the packages, their servers and the network come up with
            self._trackers.pop(name, None)
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._say(f"tracking by {name} has stopped, the sweep goes on: {what}")


def check(names: Sequence[str]) -> None:
    """Check that trackers exist and are installed.

    Raises:
        UsageError: one does not, or is not.
    """
    for name in names:
        if name not in KINDS:
            raise UsageError(f"no tracker {name!r}", hint=f"the trackers are {', '.join(KINDS)}")
    missing = [name for name in names if importlib.util.find_spec(KINDS[name].module) is None]
    if missing:
        packages = " ".join(KINDS[name].install for name in missing)
        raise UsageError(f"not installed: {', '.join(missing)}", hint=f"pip install {packages}")
