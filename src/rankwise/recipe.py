"""What to train: every setting of a sweep, validated, with its default.

A recipe names the base model and has four sections::

    base      the model to fine-tune
    data      the texts, and how to find their columns and labels
    lora      the adapters: ranks, scaling, target modules
    train     how to train them
    machine   where to train them: device, precision, memory

Every setting has a unique name, so Python and the command line need no sections. These are equivalent::

    Recipe(data="reviews.csv", ranks=(1, 4), epochs=2)
    Recipe(data={"source": "reviews.csv"}, lora={"ranks": (1, 4)}, train={"epochs": 2})
    rankwise sweep --data reviews.csv --ranks 1,4 --epochs 2

A recipe comes from a preset, a TOML file or keyword arguments. The run folder stores the complete recipe. The
text under each field is its help on the command line.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from rankwise.errors import UsageError

PRESETS = ("emotion", "emotion-smollm2", "quickstart")


class _Settings(BaseModel):
    """A frozen model that rejects unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class DataSettings(_Settings):
    """The texts, and how to find their columns and labels.

    Examples of `Recipe(...)`:

        data="starter"                                  the starter texts of the package
        data="reviews.csv"                              a file
        data="emotion/"                                 a folder of train, validation and test files
        data="dair-ai/emotion", data_config="split"     a dataset on the Hub
    """

    source: str = "starter"
    """Data: starter, a file, a folder of train, validation and test files, or a Hub ID such as
    dair-ai/emotion."""
    validation: str | None = None
    """Validation file, or name of the Hub split. Without one, a share of train is used."""
    test: str | None = None
    """Test file, or name of the Hub split."""
    data_config: str | None = None
    """Configuration of the Hub dataset."""
    text_column: str | None = None
    """Name of the text column (default: detected from common names such as text or sentence)."""
    label_column: str | None = None
    """Name of the label column (default: detected from common names such as label or class)."""
    labels: tuple[str, ...] | None = None
    """Label names in the order of the model's outputs, as a line of CSV (default: the dataset's own order, or
    order of first appearance in train)."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of train to use for validation if there is no validation split."""

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
    alpha: float = Field(2.0, gt=0)
    """LoRA alpha. Its effect depends on alpha_mode."""
    alpha_mode: Literal["fixed", "ratio", "rslora"] = "ratio"
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
    epochs: int = Field(3, ge=1)
    """Passes over the training texts."""
    batch_size: int = Field(16, ge=1)
    """Texts per adapter and step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Decay of the learning rate after warmup."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warmup from a learning rate of 0."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Maximum gradient norm of each adapter. 0 turns clipping off."""
    base_dropout: bool = True
    """Apply the base model's own dropout during training (GPT-2: 0.1)."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weight of each class in the loss. balanced = inversely proportional to its frequency in train."""
    keep: Literal["last", "best"] = "last"
    """Epoch whose adapter is kept: the last one, or the one with the best validation accuracy."""
    baselines: bool = True
    """Add baselines: majority class, TF-IDF + linear SVM, untrained head, linear probe."""
    cuts: bool = True
    """After training, cut the adapters of the largest rank to every smaller rank, and evaluate these too."""
    on_nan: Literal["drop", "stop"] = "drop"
    """If an adapter's loss, gradient or weights become NaN or infinite: drop that adapter and continue with
    the others, or stop the sweep."""

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return _distinct("seeds", seeds, largest=2**63 - 1)


class MachineSettings(_Settings):
    """Where to train: device, precision, memory."""

    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the base model and of matrix products. auto = bfloat16 if the hardware supports it."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """Device: auto, cpu, cuda, cuda:N or mps."""
    memory_gb: float | None = Field(None, gt=0)
    """Memory limit of one bank in GB. Adapters that do not fit train in further banks (default: 60 % of free
    memory)."""


class Recipe(_Settings):
    """Everything that determines what a sweep computes, and nothing else.

    Settings may be given by name (`Recipe(data="reviews.csv", ranks=(1, 4))`) or by section
    (`Recipe(lora={"ranks": (1, 4)})`). A recipe is immutable; `replace` returns a changed copy.

    Raises:
        UsageError: a setting is unknown, has the wrong type, or is out of range.
    """

    base: str = "smollm2-135m"
    """Base model: smollm2-135m, a local folder, or a Hub ID."""
    data: DataSettings = DataSettings()
    lora: LoraSettings = LoraSettings()
    train: TrainSettings = TrainSettings()
    machine: MachineSettings = MachineSettings()

    def __init__(self, _where: str = "recipe", /, **values: Any) -> None:
        # pydantic's own error would be a second way to say that a value is wrong.
        try:
            super().__init__(**values)
        except ValidationError as error:
            hint = "rankwise sweep --help lists every setting"
            raise UsageError(_explain(error, _where), hint=hint) from None

    @model_validator(mode="before")
    @classmethod
    def _into_sections(cls, values: dict[str, Any]) -> dict[str, Any]:
        return _sectioned(values)

    @classmethod
    def settings(cls) -> dict[str, FieldInfo]:
        """Name -> field of every setting, by flat name."""
        return {name: _field(section, field) for name, (section, field) in _PLACES.items()}

    def flat(self) -> dict[str, Any]:
        """Name -> value of every setting, by flat name."""
        return {
            name: getattr(getattr(self, section) if section else self, field)
            for name, (section, field) in _PLACES.items()
        }

    def replace(self, **changes: Any) -> Self:
        """A copy of this recipe with some settings changed, by flat name."""
        return type(self)(**self.flat() | changes)

    @classmethod
    def load(cls, path: Path | str, **changes: Any) -> Self:
        """Load a recipe from a TOML file. `changes` override its settings."""
        try:
            values = tomllib.loads(Path(path).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"{path}: the recipe cannot be read: {error}") from None
        return cls(str(path), **_laid_over(values, changes))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """Load a preset that ships with rankwise (`PRESETS`). `changes` override its settings."""
        if name not in PRESETS:
            raise UsageError(f"no preset {name!r}", hint=f"available presets: {', '.join(PRESETS)}")
        text = (files("rankwise") / "assets" / "presets" / f"{name}.toml").read_text("utf-8")
        return cls(f"preset {name}", **_laid_over(tomllib.loads(text), changes))

    def to_toml(self) -> str:
        """The complete recipe as TOML. Unset settings are omitted."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


_SECTIONS: dict[str, type[_Settings]] = {
    "data": DataSettings,
    "lora": LoraSettings,
    "train": TrainSettings,
    "machine": MachineSettings,
}
_PLACES: dict[str, tuple[str, str]] = {"base": ("", "base")} | {
    "data" if field == "source" else field: (section, field)
    for section, settings in _SECTIONS.items()
    for field in settings.model_fields
}
"""Flat name of a setting -> its section and its field there."""


def _sectioned(values: Mapping[str, Any]) -> dict[str, Any]:
    """Move settings given by flat name into their sections. Sections are left as they are.

    >>> _sectioned({"data": "reviews.csv", "lora": {"ranks": [1]}, "alpha": 4})
    {'data': {'source': 'reviews.csv'}, 'lora': {'ranks': [1], 'alpha': 4}}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        section, field = _PLACES.get(name, ("", name))
        if isinstance(value, Mapping | _Settings) and name in _SECTIONS:
            found[name] = found.get(name, {}) | dict(value)
        elif section:
            found.setdefault(section, {})[field] = value
        else:
            found[name] = value
    return found


def _laid_over(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two sets of settings; `changes` win, setting by setting."""
    below, above = _sectioned(values), _sectioned(changes)
    joint = {name: below[name] | above[name] for name in _SECTIONS if name in below and name in above}
    return below | above | joint


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


def _explain(error: ValidationError, where: str) -> str:
    """`where: field: what is wrong`, one line for each field."""
    lines = []
    for problem in error.errors():
        place = [str(part) for part in problem["loc"]]
        place = place[1:] if place[0] in _SECTIONS and len(place) > 1 else place
        field = ".".join("data" if part == "source" else part for part in place)
        got = "" if problem["type"] == "extra_forbidden" else f" (got {problem['input']!r})"
        what = "no such setting" if problem["type"] == "extra_forbidden" else problem["msg"]
        lines.append(f"{where}: {field}: {what.removeprefix('Value error, ')}{got}")
    return "\n".join(lines)
