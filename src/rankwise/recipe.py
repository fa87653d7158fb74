"""What to train: every setting of a sweep, validated, with its default.

A recipe names the base model and has five sections::

    base      the model to fine-tune
    data      the texts, and how to find their columns and labels
    lora      the adapters: ranks, scaling, target modules
    train     how to train them
    tune      how to choose each rank's learning rate and other settings
    machine   where to train them: device, precision, memory

Every setting has a unique name, so Python and the command line need no sections. These are equivalent::

    Recipe(data="reviews.csv", ranks=(1, 4), epochs=2, tune=False)
    Recipe(data={"source": "reviews.csv"}, lora={"ranks": (1, 4)}, train={"epochs": 2}, tune=False)
    rankwise sweep --data reviews.csv --ranks 1,4 --epochs 2 --no-tune

A recipe comes from a preset, a TOML file or keyword arguments. The run folder stores the complete recipe. The
text under each field is its help on the command line.
"""

from __future__ import annotations

import csv
import math
import os
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from difflib import get_close_matches
from importlib.resources import files
from itertools import product
from pathlib import Path
from reprlib import repr as brief
from types import NoneType
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import tomli_w
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from rankwise.errors import UsageError, either, option
from rankwise.in_memory import KINDS, InMemory, is_table
from rankwise.paths import expanded, require_no_url, require_text
from rankwise.schema import MetricName, TaskName

PRESETS = ("emotion", "emotion-smollm2", "quickstart")
VARIABLE = (
    *("alpha", "alpha_mode", "epochs", "last_layers", "lora_dropout", "lora_plus_ratio", "targets"),
    "weight_decay",
)
"""Settings that may differ between adapters of a rank, besides the learning rate."""
FLAT_NAMES = {"source": "data", "enabled": "tune"}
"""Name of a setting in its section -> its flat name, if they differ."""
OPTION = "option"
"""The `where` of a recipe whose settings were given as options on the command line."""
OTHER_WORDS = {
    **{"gpu": "cuda", "nvidia": "cuda", "metal": "mps", "apple": "mps"},
    **{"fp32": "float32", "float": "float32", "bf16": "bfloat16", "half": "bfloat16", "fp16": "bfloat16"},
    **{"wd": "weight_decay", "dropout": "lora_dropout", "layers": "last_layers"},
    **{"model": "base", "lr": "learning_rate", "batch": "batch_size", "length": "max_length"},
}
"""Words that people use for a choice or a setting -> the word that rankwise uses."""
OTHER_TASKS = {
    **dict.fromkeys(
        ("regression",),
        "for numbers, round them to a few classes, or use AutoModelForSequenceClassification of transformers "
        'with problem_type="regression"',
    ),
    **dict.fromkeys(
        ("token", "token-classification", "ner"),
        "it labels whole texts, not words; for labels of words, use AutoModelForTokenClassification of "
        "transformers",
    ),
    **dict.fromkeys(
        ("generation", "text-generation", "seq2seq", "summarization", "translation"),
        "it writes no text; for that, use the SFTTrainer of TRL",
    ),
}
"""Task that is refused -> what to use instead."""
LARGEST_ALPHA = 1e6
"""Largest `lora_alpha` of an adapter, at any rank."""


class _Settings(BaseModel):
    """A frozen model that rejects unknown fields."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
    )


def _source(value: Any) -> Any:
    """Paths as strings, and data in memory as such."""
    if value is None or isinstance(value, InMemory):
        return value
    if isinstance(value, str | os.PathLike):
        return _expanded(value)
    if is_table(value):
        return InMemory(value)
    raise ValueError(f"give a path, a Hub ID, or {KINDS}")


def _expanded(value: Any) -> Any:
    """A path or another name as a string, with `~` replaced by the home folder."""
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    return str(expanded(value)) if isinstance(value, str) and value.startswith("~") else _readable(value)


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        require_text(value)
        require_no_url(value)
    return value


Source = Annotated[str | InMemory, BeforeValidator(_source)]
"""A path or Hub ID, or data in memory."""
OtherSource = Annotated[str | InMemory | None, BeforeValidator(_source)]
"""The same, or None."""
Name = Annotated[str, BeforeValidator(_expanded)]
"""A path, or a name that is not one."""


def _class_weights(value: Any) -> Any:
    """`none`, `balanced`, or a weight for each label, as a mapping or as `joy=1,surprise=4`."""
    if value in ("none", "balanced"):
        return value
    weights = _weights(value) if isinstance(value, str) else value
    valid = isinstance(weights, Mapping) and all(
        isinstance(weight, int | float) and math.isfinite(weight) and weight > 0
        for weight in weights.values()
    )
    if not weights or not valid:
        raise ValueError(f"{value!r} is not none or balanced, nor weights above 0 such as joy=1,surprise=4")
    return {str(label): float(weight) for label, weight in weights.items()}


def _weights(text: str) -> dict[str, float]:
    """The weights in a line of CSV; empty if it has another form."""
    try:
        (cells,) = csv.reader([text], skipinitialspace=True, strict=True)
        pairs = [cell.rpartition("=") for cell in cells]
        weights = [(label.strip(), float(weight)) for label, _, weight in pairs]
    except (csv.Error, ValueError):
        return {}
    labels = [label for label, _ in weights]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"{twice[0]!r} has two weights")
    return dict(weights)


def labels_in_order(labels: Any) -> tuple[Any, ...]:
    """The names of labels that are given for the outputs of a model, which has an order.

    Raises:
        ValueError: they have no order, as in a set, or are a mapping or a single string.
    """
    if isinstance(labels, str | bytes | Set | Mapping) or not isinstance(labels, Iterable):
        kind = type(labels).__name__
        raise ValueError(f"give the labels as a list or tuple, in the order of the outputs, not as {kind}")
    return tuple(labels)


ClassWeights = Annotated[Literal["none", "balanced"] | dict[str, float], BeforeValidator(_class_weights)]
"""Weights of the classes in the loss."""


class DataSettings(_Settings):
    """The texts, and how to find their columns and labels.

    Examples of `Recipe(...)`:

        data="starter"                                  the starter texts of the package
        data="reviews.csv"                              a file
        data="emotion/"                                 a folder of train, validation and test files
        data="dair-ai/emotion", data_config="split"     a dataset on the Hub
        data=frame, text_column="review"                a DataFrame, a Dataset, a pair (texts, labels), ...
    """

    source: Source = "starter"
    """Data: starter, a file, a folder of train, validation and test files, or a Hub ID such as
    dair-ai/emotion."""
    validation: OtherSource = None
    """Validation file, or name of the Hub split. Without one, a share of train is used."""
    test: OtherSource = None
    """Test file, or name of the Hub split."""
    data_config: str | None = None
    """Configuration of the Hub dataset."""
    text_column: str | None = None
    """Name of the text column (default: detected from common names such as text or sentence)."""
    text_columns: tuple[str, ...] | None = None
    """Names of the two columns of a pair of texts, such as premise,hypothesis, instead of text_column."""
    label_column: str | None = None
    """Name of the label column (default: detected from common names such as label or class)."""
    task: TaskName = "single-label"
    """What labels a text has: single-label = exactly one; multi-label = any number."""
    label_separator: str = "|"
    """Separator between the labels of a text, for multi-label data without lists, and in tables."""
    labels: tuple[str, ...] | None = None
    """Label names in the order of the model's outputs, as a line of CSV (default: the dataset's own order,
    numeric order for whole numbers, or order of first appearance in train)."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of train to use for validation if there is no validation split."""

    @property
    def name(self) -> str:
        """The source in words: a path or Hub ID, or `data` for data in memory."""
        return self.source if isinstance(self.source, str) else "data"

    @property
    def in_memory(self) -> bool:
        """Whether any split is data in memory."""
        return any(isinstance(each, InMemory) for each in (self.source, self.validation, self.test))

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        pair = self.text_columns
        if pair is not None and (len(pair) != 2 or len(set(pair)) != 2 or not all(pair)):
            raise ValueError("text_columns: give the names of two columns, such as premise,hypothesis")
        if pair is not None and (self.text_column or self.label_column in pair):
            other = "text_column" if self.text_column else "label_column"
            raise ValueError(f"text_columns: {option(other)} {getattr(self, other)} does not go with a pair")
        return self

    @field_validator("task", mode="before")
    @classmethod
    def _check_task(cls, task: Any) -> Any:
        if isinstance(task, str) and (instead := OTHER_TASKS.get(task)):
            raise ValueError(f"{task} is not supported, because rankwise trains classifiers: {instead}")
        return task

    @field_validator("label_separator")
    @classmethod
    def _check_separator(cls, separator: str) -> str:
        if not separator or not separator.isprintable() or '"' in separator:
            raise ValueError(f"{separator!r} is not a sign such as | or ;")
        return separator

    @field_validator("labels", mode="before")
    @classmethod
    def _order_labels(cls, labels: Any) -> Any:
        return None if labels is None else labels_in_order(labels)

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if labels is None:
            return None
        if len(set(labels)) != len(labels) or len(labels) < 2 or not all(labels):
            raise ValueError("give at least two labels, all different and none empty")
        return labels


class LoraSettings(_Settings):
    """The adapters: ranks, scaling, and target modules."""

    ranks: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Ranks to train. Rank 0 is a linear probe: only the score head is trained."""
    alpha: float = Field(16.0, gt=0)
    """LoRA alpha. Its effect depends on alpha_mode."""
    alpha_mode: Literal["fixed", "ratio", "rslora"] = "fixed"
    """Scale of the low-rank product: fixed = alpha / r; rslora = alpha / sqrt(r); ratio = alpha at every
    rank, that is, lora_alpha = alpha * r in PEFT."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability on the adapter's input."""
    targets: tuple[str, ...] | None = None
    """Target modules, by last part of the name or by full name, or all-linear (default: PEFT's default for
    the model family)."""
    last_layers: int | None = Field(None, ge=1)
    """Adapt only the last N layers. The backward pass stops there, which saves time (default: all layers)."""

    @field_validator("ranks")
    @classmethod
    def _check_ranks(cls, ranks: tuple[int, ...]) -> tuple[int, ...]:
        return _distinct("ranks", ranks, largest=4096)

    def scale(self, rank: int) -> float:
        """Factor on the low-rank product of an adapter of this rank. It is 0 for rank 0.

        `alpha / r` (Hu et al. 2021, arXiv 2106.09685) or `alpha / sqrt(r)` (Kalajdzievski 2023,
        arXiv 2312.03732).
        """
        if rank == 0:
            return 0.0
        return self.alpha_of(rank) / (math.sqrt(rank) if self.alpha_mode == "rslora" else rank)

    def alpha_of(self, rank: int) -> float:
        """PEFT's `lora_alpha` for an adapter of this rank."""
        return self.alpha * rank if self.alpha_mode == "ratio" else self.alpha


class TrainSettings(_Settings):
    """How to train the adapters."""

    seeds: tuple[int, ...] = (110,)
    """Seeds. Every rank is trained with every seed."""
    max_length: int = Field(128, ge=1)
    """Maximum tokens per text. Longer texts are truncated at the end."""
    windows: bool = False
    """Read longer texts in windows of max_length tokens, instead of truncating them. In the loss, a text
    counts once; its logits are the mean over its windows."""
    window_stride: int | None = Field(None, ge=1)
    """Tokens from the start of a window to that of the next (default: a window)."""
    epochs: int = Field(3, ge=1)
    """Passes over the training texts."""
    batch_size: int = Field(16, ge=1)
    """Texts per adapter and step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of AdamW. With tuning, the default learning_rates surround it."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of AdamW."""
    lora_plus_ratio: float = Field(1.0, gt=0)
    """LoRA+: learning rate of B over that of A. 1 is ordinary LoRA."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Decay of the learning rate after warmup."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warmup from a learning rate of 0."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Maximum gradient norm of each adapter. 0 turns clipping off."""
    base_dropout: bool = True
    """Apply the base model's own dropout during training (GPT-2: 0.1)."""
    class_weights: ClassWeights = "none"
    """Weight of each class in the loss: none; balanced = inversely proportional to its frequency in train; or
    weights such as joy=1,surprise=4, where labels that are left out have weight 1."""
    logit_adjustment: float = Field(0.0, ge=0)
    """In training, add this times the logarithm of each class's frequency to its logit, so that rare classes
    are predicted more often. 1 is usual."""
    metric: MetricName | None = None
    """What epochs, learning rates and ranks are compared by (default: log loss for learning rates; for epochs
    and ranks accuracy, or macro-F1 if texts have several labels)."""
    keep: Literal["last", "best"] = "last"
    """Epoch whose adapter is kept: the last one, or the best one on validation, by metric."""
    baselines: bool = True
    """Add baselines: majority class, TF-IDF + linear SVM, untrained head, linear probe."""
    cuts: bool = True
    """After training, cut the adapters of the largest rank to every smaller rank, and evaluate these too."""
    on_nan: Literal["drop", "stop"] = "drop"
    """If an adapter's loss, gradient or weights become NaN or infinite: drop that adapter and continue with
    the others, or stop the sweep."""

    @model_validator(mode="after")
    def _check_windows(self) -> Self:
        if self.window_stride is None:
            return self
        if not self.windows:
            raise ValueError(f"window_stride: texts are not read in windows: add {option('windows', True)}")
        if self.window_stride > self.max_length:
            raise ValueError(f"window_stride: a window has {self.max_length} tokens: give at most as many")
        return self

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return _distinct("seeds", seeds, largest=2**63 - 1)

    def steps_per_epoch(self, texts: int) -> int:
        """Number of steps in which an adapter trains once on each text; the last batch may be smaller."""
        return math.ceil(texts / self.batch_size)

    def schedule_steps(self, epochs: float, texts: int) -> int:
        """Number of steps of a schedule of so many epochs, which need not be whole.

        >>> [TrainSettings(batch_size=16).schedule_steps(epochs, texts=40) for epochs in (3, 0.5, 0.1)]
        [9, 2, 1]
        """
        return max(1, round(epochs * self.steps_per_epoch(texts)))


class TuneSettings(_Settings):
    """How to choose each rank's settings, by log loss on texts that are taken from train.

    For each rank, every combination of values is trained on a short schedule. The best ones are then trained
    on the full schedule, and the winner's settings are used for the rank's adapters of all seeds.

    Examples of `Recipe(...)`:

        learning_rates=(1e-3, 3e-3)                     other learning rates
        vary={"weight_decay": (0, 0.01)}                four learning rates, each with two weight decays
        tune=False, learning_rate=3e-3                  one learning rate for every rank
    """

    enabled: bool = True
    """Choose each rank's learning rate before training its adapters. If off, all ranks use learning_rate."""
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Learning rates to choose from (default: learning_rate times 0.3, 1, 3 and 10). If the best one is the
    lowest or the highest, further ones are added."""
    vary: dict[str, tuple[Any, ...]] = {}
    """Other settings to choose, each with its values: alpha, alpha_mode, epochs, last_layers, lora_dropout,
    lora_plus_ratio, targets, weight_decay. The modules of targets are joined by +."""
    tuning_texts: int | None = Field(None, ge=1)
    """Number of training texts held out to choose the settings (default: a tenth of train, at most
    2,000, but at least 20 times the number of classes)."""
    tuning_share: float | None = Field(None, gt=0, le=1)
    """Length of the short schedule as a share of the full one (default: 0.25, but at least 20 steps)."""
    finalists: int = Field(2, ge=1)
    """Settings of each rank that are then trained on the full schedule. With 1, that step is left out."""

    @field_validator("learning_rates")
    @classmethod
    def _check_rates(cls, rates: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if rates is not None and (not rates or len(set(rates)) < len(rates)):
            raise ValueError("give at least one learning rate, and each only once")
        return rates and tuple(sorted(rates))

    @field_validator("vary", mode="before")
    @classmethod
    def _check_vary(cls, vary: Any) -> Any:
        if not isinstance(vary, Mapping):
            return vary
        for name, values in vary.items():
            if name not in VARIABLE:
                meant = did_you_mean(name, VARIABLE)
                raise ValueError(f"{name} cannot vary within a rank; {', '.join(VARIABLE)} can{meant}")
            if not isinstance(values, list | tuple) or not values:
                raise ValueError(f"give a list of values for {name}")
        plain = {name: [_plain(name, value) for value in values] for name, values in vary.items()}
        for name, values in plain.items():
            if any(value in values[:i] for i, value in enumerate(values)):
                raise ValueError(f"{name} contains a value twice")
        return plain


class MachineSettings(_Settings):
    """Where to train: device, precision, memory."""

    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the base model and of matrix products. auto = bfloat16 if the hardware supports it."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:N or mps."""
    memory_gb: float | None = Field(None, gt=0)
    """Memory limit of one bank in GB. Adapters that do not fit train in further banks (default: 60 % of free
    memory)."""
    bank_size: int | None = Field(None, ge=1)
    """Maximum number of adapters that train together in one bank (default: as many as fit in memory)."""

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            meant = did_you_mean(device, ("auto", "cpu", "cuda", "mps"))
            raise ValueError(f"{brief(device)} is not auto, cpu, cuda, cuda:N or mps{meant}")
        return device


class Recipe(_Settings):
    """Everything that determines what a sweep computes, and nothing else.

    Settings may be given by name (`Recipe(data="reviews.csv", ranks=(1, 4))`) or by section
    (`Recipe(lora={"ranks": (1, 4)})`). A recipe is immutable; `replace` returns a changed copy.

    Raises:
        UsageError: a setting is unknown, has the wrong type, or is out of range.
    """

    base: Name = "smollm2-135m"
    """Base model: smollm2-135m, a local folder, or a Hub ID."""
    data: DataSettings = DataSettings()
    lora: LoraSettings = LoraSettings()
    train: TrainSettings = TrainSettings()
    tune: TuneSettings = TuneSettings()
    machine: MachineSettings = MachineSettings()

    def __init__(self, _where: str = "recipe", /, **values: Any) -> None:
        # pydantic's own error would be a second way to say that a value is wrong.
        try:
            super().__init__(**values)
        except ValidationError as error:
            hint = either("rankwise sweep --help", "help(rankwise.Recipe)") + " lists every setting"
            raise UsageError(_explain(error, _where), hint=hint) from None

    @model_validator(mode="before")
    @classmethod
    def _into_sections(cls, values: dict[str, Any]) -> dict[str, Any]:
        return _sectioned(values)

    @model_validator(mode="after")
    def _check_task(self) -> Self:
        if self.data.task == "multi-label" and self.train.logit_adjustment:
            raise ValueError(
                "logit_adjustment: is for texts with one label: "
                f"for several, give {option('class_weights', 'balanced')}"
            )
        return self

    @model_validator(mode="after")
    def _check_tuning(self) -> Self:
        self._with_alpha_of({})
        tune = self.tune
        listed = [
            name
            for name, value in {"learning_rates": tune.learning_rates, "vary": tune.vary}.items()
            if value
        ]
        if not tune.enabled:
            if listed:
                raise ValueError(
                    f"{' and '.join(listed)}: tuning is off, so there is nothing to choose: "
                    f"give one {option('learning_rate')}, or turn it on with {option('tune', True)}"
                )
            return self
        if len(list(self.grid())) < 2:
            raise ValueError(
                "learning_rates: one value leaves nothing to choose: give several, "
                f"or {option('tune', False)} and {option('learning_rate')}"
            )
        for setting in self.grid():
            self._with_unchecked(setting)
            self._with_alpha_of(setting)
        return self

    def _with_unchecked(self, setting: Mapping[str, Any]) -> None:
        """Raise ValueError if a value of a varied setting is out of range."""
        for name, value in setting.items():
            section, field = _PLACES[name]
            try:
                _SECTIONS[section].model_validate({field: value})
            except ValidationError as error:
                raise ValueError(f"vary: {name}: {_what(error.errors()[0])}") from None

    def _with_alpha_of(self, setting: Mapping[str, Any]) -> None:
        """Raise ValueError at an alpha with which the adapters could not be loaded again."""
        own = {name: setting[name] for name in ("alpha", "alpha_mode") if name in setting}
        lora, rank = self.lora.model_copy(update=own), max(self.lora.ranks)
        if lora.alpha_of(rank) > LARGEST_ALPHA:
            raise ValueError(
                f"alpha: {lora.alpha:g} gives rank {rank} a lora_alpha of {lora.alpha_of(rank):g}; "
                f"the largest is {LARGEST_ALPHA:g}"
            )

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every combination of the values to choose from, by name of the setting.

        >>> list(Recipe(learning_rates=(1e-3, 3e-3), vary={"weight_decay": (0.0,)}).grid())
        [{'learning_rate': 0.001, 'weight_decay': 0.0}, {'learning_rate': 0.003, 'weight_decay': 0.0}]
        """
        around = tuple(float(f"{factor * self.train.learning_rate:.3g}") for factor in (0.3, 1, 3, 10))
        varied = {"learning_rate": self.tune.learning_rates or around} | self.tune.vary
        for values in product(*varied.values()):
            yield dict(zip(varied, values, strict=True))

    @classmethod
    def settings(cls) -> dict[str, FieldInfo]:
        """Name -> field of every setting, by flat name."""
        return {name: _field(section, field) for name, (section, field) in _PLACES.items()}

    @classmethod
    def section_of(cls, name: str) -> str:
        """The section of a setting; empty for `base`."""
        return _PLACES[name][0]

    def flat(self) -> dict[str, Any]:
        """Name -> value of every setting, by flat name."""
        return {
            name: getattr(getattr(self, section) if section else self, field)
            for name, (section, field) in _PLACES.items()
        }

    def replace(self, _where: str = "recipe", /, **changes: Any) -> Self:
        """A copy of this recipe with some settings changed, by flat name."""
        return type(self)(_where, **_laid_over(self.flat(), changes))

    @classmethod
    def load(cls, path: Path | str, **changes: Any) -> Self:
        """Load a recipe from a TOML file. `changes` override its settings."""
        try:
            values = tomllib.loads(expanded(path).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"{path}: the recipe cannot be read: {error}") from None
        return cls(str(path), **_laid_over(values, changes))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """Load a preset that ships with rankwise (`PRESETS`). `changes` override its settings."""
        if name not in PRESETS:
            hint = f"available presets: {', '.join(PRESETS)}"
            raise UsageError(f"no preset {name!r}{did_you_mean(name, PRESETS)}", hint=hint)
        text = (files("rankwise") / "assets" / "presets" / f"{name}.toml").read_text("utf-8")
        return cls(f"preset {name}", **_laid_over(tomllib.loads(text), changes))

    def to_toml(self) -> str:
        """The complete recipe as TOML. Unset settings are omitted.

        Raises:
            UsageError: the data is in memory.
        """
        if self.data.in_memory:
            hint = "sweep stores such data in the run folder, with a recipe that names the files"
            raise UsageError("a recipe with data in memory cannot be written as TOML", hint=hint)
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


_SECTIONS: dict[str, type[_Settings]] = {
    "data": DataSettings,
    "lora": LoraSettings,
    "train": TrainSettings,
    "tune": TuneSettings,
    "machine": MachineSettings,
}
_PLACES: dict[str, tuple[str, str]] = {"base": ("", "base")} | {
    FLAT_NAMES.get(field, field): (section, field)
    for section, settings in _SECTIONS.items()
    for field in settings.model_fields
}
"""Flat name of a setting -> its section and its field there."""


def _sectioned(values: Mapping[str, Any]) -> dict[str, Any]:
    """Move settings given by flat name into their sections.

    Sections are left as they are. So is `train = "train.csv"`, which is refused later.

    >>> _sectioned({"data": "reviews.csv", "lora": {"ranks": [1]}, "alpha": 4})
    {'data': {'source': 'reviews.csv'}, 'lora': {'ranks': [1], 'alpha': 4}}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        section, field = _PLACES.get(name, ("", name))
        if _is_section(name, value):
            found[name] = found.get(name, {}) | dict(value)
        elif section:
            found.setdefault(section, {})
            if isinstance(found[section], dict):
                found[section][field] = value
        else:
            found[name] = value
    return found


def _is_section(name: str, value: Any) -> bool:
    """Whether a value is the settings of a section, rather than the value of the setting of that name."""
    if name not in _SECTIONS:
        return False
    if isinstance(value, Mapping):
        splits = value.keys() <= {"validation", "test"}  # data without train, which is refused later
        return not is_table(value) or (value.keys() <= _SECTIONS[name].model_fields.keys() and not splits)
    return isinstance(value, _Settings)


def _laid_over(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two sets of settings; `changes` win, setting by setting.

    Turning tuning off also removes the values to choose from, which have no use then.
    """
    below, above = _sectioned(values), _sectioned(changes)
    if above.get("tune", {}).get("enabled") is False and "tune" in below:
        below["tune"] = {k: v for k, v in below["tune"].items() if k not in ("learning_rates", "vary")}
    for name in below.keys() & above.keys() & _SECTIONS.keys():
        no_section = [value for value in (below[name], above[name]) if not isinstance(value, dict)]
        above[name] = no_section[0] if no_section else below[name] | above[name]
    return below | above


def _plain(name: str, value: Any) -> Any:
    """A value of `vary`; texts, as the command line gives them, become numbers or lists of target modules."""
    if value is None:
        raise ValueError(f"{name}: None is no value to try")
    if name == "targets":
        modules = value.split("+") if isinstance(value, str) else value
        if not isinstance(modules, list | tuple) or not all(isinstance(each, str) for each in modules):
            raise ValueError(f"targets: {value!r} is no list of target modules")
        return tuple(modules)
    if isinstance(value, str) and name != "alpha_mode":
        try:
            return int(value) if name in ("epochs", "last_layers") else float(value)
        except ValueError:
            raise ValueError(f"{name}: {value!r} is not a number") from None
    return value


def _field(section: str, field: str) -> FieldInfo:
    return (_SECTIONS[section] if section else Recipe).model_fields[field]


def _distinct(name: str, values: tuple[int, ...], *, largest: int) -> tuple[int, ...]:
    if not values:
        raise ValueError(f"give at least one value for {name}")
    if len(set(values)) != len(values):
        raise ValueError(f"{name} contains a value twice")
    if min(values) < 0 or max(values) > largest:
        raise ValueError(f"{name} must be between 0 and {largest}")
    return values


def did_you_mean(word: str, choices: Collection[str]) -> str:
    """The end of a message that names the choice nearest to a word; empty if none is near.

    >>> did_you_mean("linaer", ("linear", "cosine"))
    '; did you mean linear?'
    """
    usual = OTHER_WORDS.get(word.lower(), "")
    near = [usual] if usual in choices else get_close_matches(word.lower(), choices, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _explain(error: ValidationError, where: str) -> str:
    """One line for each field: `where: field: what is wrong`, or `--field: what is wrong` for options."""
    return "\n".join(_line(problem, where) for problem in error.errors())


def _line(problem: Any, where: str) -> str:
    place = [str(part) for part in problem["loc"]]
    place = place[1:] if len(place) > 1 and place[0] in _SECTIONS else place
    line = _what(problem)
    if place:  # otherwise, settings that do not go together, which the message names
        line = f"{FLAT_NAMES.get(place[0], place[0])}: {line}"
    if where != OPTION:
        return f"{where}: {line}"
    named = re.match(r"(\w+)(?:: | and )", line)
    option = named and named[1] in Recipe.settings()
    return f"--{line[: named.end(1)].replace('_', '-')}{line[named.end(1) :]}" if named and option else line


def _what(problem: Any) -> str:
    """What is wrong with a value: `'three' is not a whole number of at least 1`."""
    kind, value, place = problem["type"], problem["input"], problem["loc"]
    if kind == "extra_forbidden":
        return f"no such setting{did_you_mean(str(place[-1]), [*Recipe.settings(), *_SECTIONS])}"
    if kind == "value_error":
        return str(problem["msg"]).removeprefix("Value error, ")
    annotation, bounds = _declared([part for part in place if isinstance(part, str)])
    if any(isinstance(part, int) for part in place):  # one element of a list
        annotation, bounds = _element(annotation)
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    meant = did_you_mean(value, choices) if isinstance(value, str) else ""
    finite = "finite " if kind == "finite_number" else ""
    return f"{brief(value)} is not {_allowed(annotation, bounds, finite)}{meant}"


def _declared(names: list[str]) -> tuple[Any, list[Any]]:
    """Type and bounds of the field at a place; the parts of a place below the field are ignored."""
    section, fields = (
        (_SECTIONS[names[0]], names[1:]) if names[0] in _SECTIONS and names[1:] else (None, names)
    )
    known: Mapping[str, FieldInfo] = section.model_fields if section else Recipe.model_fields
    field = known.get(fields[0]) or Recipe.settings()[fields[0]]
    kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    is_optional = NoneType in get_args(field.annotation)
    return (kinds[0] if is_optional else field.annotation), field.metadata


def _element(annotation: Any) -> tuple[Any, list[Any]]:
    """Type and bounds of the elements of a list."""
    inner = get_args(annotation)[0]
    if get_origin(inner) is Annotated:
        return inner.__origin__, list(inner.__metadata__[0].metadata)
    return inner, []


def _allowed(annotation: Any, bounds: list[Any], finite: str) -> str:
    """The values that a type and its bounds allow: `a number above 0 and below 1`."""
    if get_origin(annotation) is Literal:
        *most, last = get_args(annotation)
        return f"{', '.join(most)} or {last}"
    if get_origin(annotation) is tuple:
        return {int: "a list of whole numbers", str: "a list of words"}.get(
            get_args(annotation)[0], "a list of numbers"
        )
    names = {bool: "true or false", int: "a whole number", float: f"a {finite}number", str: "text"}
    name = names.get(annotation, "a group of settings")
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    limits = [
        f"{word} {getattr(bound, sign):g}"
        for bound in bounds
        for sign, word in words.items()
        if hasattr(bound, sign)
    ]
    return f"{name} {' and '.join(limits)}".rstrip()
