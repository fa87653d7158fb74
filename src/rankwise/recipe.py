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

import math
import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

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

from rankwise.errors import UsageError
from rankwise.paths import expanded, require_text

PRESETS = ("emotion", "emotion-smollm2", "quickstart")
VARIABLE = (
    *("alpha", "alpha_mode", "epochs", "last_layers", "lora_dropout", "lora_plus_ratio", "targets"),
    "weight_decay",
)
"""Settings that may differ between adapters of a rank, besides the learning rate."""
LARGEST_ALPHA = 1e6
"""Largest `lora_alpha` of an adapter, at any rank."""


class _Settings(BaseModel):
    """A frozen model that rejects unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def _expanded(value: Any) -> Any:
    """A path or another name, with `~` replaced by the home folder."""
    return str(expanded(value)) if isinstance(value, str) and value.startswith("~") else _readable(value)


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        require_text(value)
    return value


Name = Annotated[str, BeforeValidator(_expanded)]
"""A path, or a name that is not one."""


class DataSettings(_Settings):
    """The texts, and how to find their columns and labels.

    Examples of `Recipe(...)`:

        data="starter"                                  the starter texts of the package
        data="reviews.csv"                              a file
        data="emotion/"                                 a folder of train, validation and test files
        data="dair-ai/emotion", data_config="split"     a dataset on the Hub
    """

    source: Name = "starter"
    """Data: starter, a file, a folder of train, validation and test files, or a Hub ID such as
    dair-ai/emotion."""
    validation: Name | None = None
    """Validation file, or name of the Hub split. Without one, a share of train is used."""
    test: Name | None = None
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
    """Number of training texts held out to choose the settings (default: a tenth of train, but at least 20
    per class and at most 2,000)."""
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
                raise ValueError(f"{name!r} cannot vary within a rank; {', '.join(VARIABLE)} can")
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
            hint = "rankwise sweep --help lists every setting"
            raise UsageError(_explain(error, _where), hint=hint) from None

    @model_validator(mode="before")
    @classmethod
    def _into_sections(cls, values: dict[str, Any]) -> dict[str, Any]:
        return _sectioned(values)

    @model_validator(mode="after")
    def _check_alpha(self) -> Self:
        """Reject an alpha with which the adapters could not be loaded again."""
        tried = self.tune.vary.get("alpha", ()) if self.tune.enabled else ()
        modes = self.tune.vary.get("alpha_mode", ()) if self.tune.enabled else ()
        for alpha in (self.lora.alpha, *tried):
            for mode in (self.lora.alpha_mode, *modes):
                lora = self.lora.model_copy(update={"alpha": alpha, "alpha_mode": mode})
                rank = max(self.lora.ranks)
                if lora.alpha_of(rank) > LARGEST_ALPHA:
                    raise ValueError(
                        f"alpha: {alpha:g} gives rank {rank} a lora_alpha of {lora.alpha_of(rank):g}; "
                        f"the largest is {LARGEST_ALPHA:g}"
                    )
        return self

    @model_validator(mode="after")
    def _check_tuning(self) -> Self:
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
                    "give one --learning-rate, or turn it on with --tune"
                )
            return self
        if len(list(self.grid())) < 2:
            raise ValueError(
                "learning_rates: one value leaves nothing to choose: give several, "
                "or --no-tune --learning-rate X"
            )
        for setting in self.grid():
            self._with_unchecked(setting)
        return self

    def _with_unchecked(self, setting: Mapping[str, Any]) -> None:
        """Raise ValueError if a value of a varied setting is out of range."""
        for name, value in setting.items():
            section, field = _PLACES[name]
            try:
                _SECTIONS[section].model_validate({field: value})
            except ValidationError as error:
                raise ValueError(f"vary: {name}: {error.errors()[0]['msg']} (got {value!r})") from None

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
            values = tomllib.loads(expanded(path).read_text("utf-8"))
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
    "tune": TuneSettings,
    "machine": MachineSettings,
}
_PLACES: dict[str, tuple[str, str]] = {"base": ("", "base")} | {
    {"source": "data", "enabled": "tune"}.get(field, field): (section, field)
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


def _explain(error: ValidationError, where: str) -> str:
    """`where: field: what is wrong`, one line for each field."""
    lines = []
    for problem in error.errors():
        what = "no such setting" if problem["type"] == "extra_forbidden" else problem["msg"]
        what = what.removeprefix("Value error, ")
        place = [str(part) for part in problem["loc"]]
        if not place:  # settings that do not go together
            lines.append(f"{where}: {what}")
            continue
        place = place[1:] if place[0] in _SECTIONS and len(place) > 1 else place
        field = ".".join({"source": "data", "enabled": "tune"}.get(part, part) for part in place)
        got = "" if problem["type"] == "extra_forbidden" else f" (got {problem['input']!r})"
        lines.append(f"{where}: {field}: {what}{got}")
    return "\n".join(lines)
