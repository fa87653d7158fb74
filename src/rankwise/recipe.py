"""What to train: every setting of a sweep, checked, with its default.

A recipe is read from a preset, a TOML file or keyword arguments, and written whole into the
run folder. The text under each field is its help on the command line.
"""

from __future__ import annotations

import math
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from rankwise.errors import UsageError

PRESETS = ("emotion", "emotion-smollm2", "quickstart")


class Recipe(BaseModel):
    """Everything that decides what a sweep computes, and nothing else.

    Raises:
        UsageError: a value has the wrong type or is out of range (`Recipe.build`, `load`
            and `preset`; the bare constructor raises pydantic's ValidationError).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    base: str = "smollm2-135m"
    """Base model: a Hub id, a local folder, or smollm2-135m."""

    data: str = "starter"
    """Data: starter, a Hub id such as dair-ai/emotion, a file, or a folder of train/val/test files."""
    validation: str | None = None
    """Validation file, or the Hub split's name; cut from train where there is none."""
    test: str | None = None
    """Test file, or the Hub split's name."""
    data_config: str | None = None
    """Configuration of the Hub dataset."""
    text_column: str | None = None
    """Name of the text column (default: text, sentence, content, ... as found)."""
    label_column: str | None = None
    """Name of the label column (default: label, emotion, class, ... as found)."""
    labels: tuple[str, ...] | None = None
    """Label names in the model's order (default: the dataset's own, else order of appearance)."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of train cut off for validation where there is no validation split."""
    max_length: int = Field(128, ge=1)
    """Longest text in tokens; longer ones lose their end."""

    ranks: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Ranks to train. Rank 0 trains the score head alone."""
    seeds: tuple[int, ...] = (110,)
    """Seeds; every rank is trained at every seed."""
    alpha: float = Field(2.0, gt=0)
    """LoRA alpha; see alpha_mode."""
    alpha_mode: Literal["fixed", "ratio", "rslora"] = "ratio"
    """Scale of the adapter: fixed = alpha / r; rslora = alpha / sqrt(r); ratio = alpha, as if it were
    given as a multiple of r."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: tuple[str, ...] | None = None
    """Linear target modules that get an adapter (default: PEFT's own for the family), or all-linear."""
    last_layers: int | None = Field(None, ge=1)
    """Adapt only the last N layers; the backward pass ends there, which saves time (default: all layers)."""
    base_dropout: bool = True
    """Keep the base model's own dropout active while training (GPT-2: 0.1)."""

    epochs: int = Field(3, ge=1)
    """Passes over the training texts."""
    batch_size: int = Field(16, ge=1)
    """Texts of each adapter in a step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from 0."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Each adapter's gradient is clipped to this norm; 0 switches clipping off."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weight of each class in the loss; balanced = inverse to its frequency in train."""
    keep: Literal["last", "best"] = "last"
    """Which epoch's adapter to keep: the last, or the best on validation."""
    baselines: bool = True
    """Add baselines: majority class, TF-IDF + linear SVM, untrained head, rank 0."""

    on_nan: Literal["drop", "stop"] = "drop"
    """Where an adapter's loss, gradient or weights are no longer numbers: drop it and go on with the
    others, or stop the sweep."""

    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the base and of matrix products; auto = bfloat16 where the hardware has it."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """auto, cpu, cuda, cuda:N or mps."""
    memory_gb: float | None = Field(None, gt=0)
    """Memory that one bank may take; more adapters than fit train in several banks (default: 60 % of
    what is free)."""

    train_texts: int | None = Field(None, ge=1)
    """Number of training texts, where a plan is wanted before the data can be read."""
    tokens_per_text: float | None = Field(None, gt=0)
    """Mean tokens in a text, where a plan is wanted before the data can be read."""

    @field_validator("ranks")
    @classmethod
    def _check_ranks(cls, ranks: tuple[int, ...]) -> tuple[int, ...]:
        return _distinct("ranks", ranks, largest=4096)

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return _distinct("seeds", seeds, largest=2**63 - 1)

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if labels is None:
            return None
        if len(set(labels)) != len(labels) or len(labels) < 2 or not all(labels):
            raise ValueError("give at least two labels, each once and none empty")
        return labels

    def scale(self, rank: int) -> float:
        """Factor on the low-rank product of an adapter of this rank; 0 for rank 0.

        `alpha / r` (Hu et al. 2021, arXiv 2106.09685) or `alpha / sqrt(r)` (Kalajdzievski 2023,
        arXiv 2312.03732).
        """
        if rank == 0:
            return 0.0
        return self.alpha_of(rank) / (math.sqrt(rank) if self.alpha_mode == "rslora" else rank)

    def alpha_of(self, rank: int) -> float:
        """LoRA alpha of an adapter of this rank, as PEFT's `lora_alpha` has it."""
        return self.alpha * rank if self.alpha_mode == "ratio" else self.alpha

    @classmethod
    def build(cls, values: dict[str, Any], *, where: str = "recipe") -> Self:
        """A recipe from plain values, with one message for all that is wrong in them."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UsageError(
                _explain(error, where), hint="rankwise sweep --help lists every setting"
            ) from None

    @classmethod
    def load(cls, path: Path | str, **changes: Any) -> Self:
        """The recipe in a TOML file, with `changes` laid over it."""
        try:
            values = tomllib.loads(Path(path).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"{path}: the recipe cannot be read: {error}") from None
        return cls.build(values | changes, where=str(path))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """One of the recipes that come with rankwise (`PRESETS`), with `changes` laid over it."""
        if name not in PRESETS:
            raise UsageError(f"no preset {name!r}", hint=f"the presets are {', '.join(PRESETS)}")
        text = (files("rankwise") / "assets" / "presets" / f"{name}.toml").read_text("utf-8")
        return cls.build(tomllib.loads(text) | changes, where=f"preset {name}")

    def to_toml(self) -> str:
        """The whole recipe as TOML; settings that are not set are left out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def _distinct(name: str, values: tuple[int, ...], *, largest: int) -> tuple[int, ...]:
    if not values:
        raise ValueError(f"give at least one of {name}")
    if len(set(values)) != len(values):
        raise ValueError(f"{name} holds a value twice")
    if min(values) < 0 or max(values) > largest:
        raise ValueError(f"{name} must lie between 0 and {largest}")
    return values


def _explain(error: ValidationError, where: str) -> str:
    """`where: field: what is wrong`, one line for each field."""
    lines = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"])
        got = "" if problem["type"] == "extra_forbidden" else f" (got {problem['input']!r})"
        what = "no such setting" if problem["type"] == "extra_forbidden" else problem["msg"]
        lines.append(f"{where}: {field}: {what.removeprefix('Value error, ')}{got}")
    return "\n".join(lines)
