"""Strict validation of a model's config.json, which is untrusted input.

Each family declares its settings in a subclass of `ModelConfig`, in its own file. Undeclared settings are
neither read nor passed on, so a config.json cannot run code in another library (`auto_map`, the name of an
attention kernel). A setting either has the same meaning as in transformers, or is rejected by name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from reprlib import repr as brief
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from rankwise.errors import ModelError
from rankwise.nn.activation import ACTIVATIONS
from rankwise.nn.rotary import Llama3Scaling

STRICT = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())
T = TypeVar("T")
SHAPE = ("vocab_size", "max_positions", "d_model", "layers", "heads")
"""The fields of `ModelConfig` that the logits depend on."""

# Sizes. Each bound is several times that of the largest existing model, to reject errors and attacks.
Size = Annotated[int, Field(ge=1, le=1 << 24, description=f"a whole number from 1 to {1 << 24}")]
Layers = Annotated[int, Field(ge=1, le=1 << 10, description=f"a whole number from 1 to {1 << 10}")]
Heads = Annotated[int, Field(ge=1, le=1 << 12, description=f"a whole number from 1 to {1 << 12}")]
Width = Annotated[int, Field(ge=1, le=1 << 17, description=f"a whole number from 1 to {1 << 17}")]
Inner = Annotated[int, Field(ge=1, le=1 << 20, description=f"a whole number from 1 to {1 << 20}")]
Whole = Annotated[int, Field(description="a whole number")]
Positive = Annotated[float, Field(gt=0, lt=1e12, description="a positive number")]
Rate = Annotated[float, Field(ge=0, lt=1, description="a number from 0 to below 1")]
Share = Annotated[float, Field(gt=0, le=1, description="a number above 0 and up to 1")]
Flag = Annotated[bool, Field(description="true or false")]
Word = Annotated[str, Field(description="a string")]
Items = Annotated[list[Any], Field(description="a list")]
TokenId = Annotated[int | list[int], Field(description="a whole number or a list of whole numbers")]


def _only(wanted: Any) -> AfterValidator:
    def check(value: Any) -> Any:
        if value != wanted:
            raise ValueError
        return value

    return AfterValidator(check)


def _nothing(value: Any) -> Any:
    if value:
        raise ValueError
    return value


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ValueError
    return name


ActivationName = Annotated[
    str,
    AfterValidator(_activation),
    Field(description=f"one of {', '.join(ACTIVATIONS)} (no other is supported)"),
]
Yes = Annotated[bool, _only(True), Field(description="true (nothing else is supported)")]
No = Annotated[bool, _only(False), Field(description="false (nothing else is supported)")]
Zero = Annotated[float, _only(0), Field(description="0 (nothing else is supported)")]
Unused = Annotated[
    Any, AfterValidator(_nothing), Field(description="null, false or empty (nothing else is supported)")
]


class RotarySettings(BaseModel):
    """The object `rope_parameters`, called `rope_scaling` before transformers 5.

    Other settings have no effect, but count when two tables are compared: transformers reads one of them and
    drops the other as a whole.
    """

    model_config = ConfigDict(**STRICT | {"extra": "allow"})

    rope_type: Word | None = None
    type: Word | None = None
    rope_theta: Positive | None = None
    partial_rotary_factor: Share | None = None
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Size | None = None


Table = Annotated[RotarySettings, Field(description="an object")]


@dataclass(frozen=True)
class LayerMemory:
    """What a layer keeps per token for the backward pass, in addition to adapter inputs."""

    heads: int
    """Values in queries, keys and values, in the precision of matrix products."""
    activation: int
    """Values that the MLP's activation needs for its gradient, in that precision."""
    widest: int
    """Values in the MLP's widest intermediate result."""
    residuals: int = 2
    """Norm inputs, each d_model float32 values."""
    masks: int = 0
    """Bytes of the residual branches' dropout masks."""
    attention_masks: int = 0
    """Bytes of dropout masks per attention weight."""
    same_input: Mapping[str, str] = field(default_factory=dict)
    """Target module -> another module of the layer with the same input, which is kept only once."""


class ModelConfig(BaseModel):
    """Base class of the families' configs. Fields have our names, with transformers' names as aliases."""

    model_config = STRICT

    layer_name: ClassVar[str]
    """Name of layer {} inside the backbone, as in transformers."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Alternative setting name in config.json -> canonical name; transformers' `attribute_map`."""
    passed_on: ClassVar[frozenset[str]] = frozenset()
    """Fields that do not change the logits, in addition to those of this class."""

    vocab_size: Size
    max_positions: int
    d_model: int
    layers: int
    heads: int
    head_std: float

    model_type: Word | None = None
    architectures: Items | None = None
    dtype: Word | None = None
    torch_dtype: Word | None = None
    transformers_version: Word | None = None
    tokenizer_class: Word | None = None
    use_cache: Flag | None = None
    tie_word_embeddings: Flag | None = None
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | None = None
    pad_token_id: TokenId | None = None
    # transformers reads these two in every family.
    is_causal: Yes = True
    per_layer_config: Unused = None

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> Self:
        """Validate the settings of a config.json. Null counts as missing, except for `is_causal`.

        Raises:
            ModelError: a value is missing, out of range, contradicts another value, or is not supported
                by the family's backbone.
        """
        if json.get("is_causal", True) is None:  # to transformers, null is false here
            raise ModelError("config.json: is_causal must be true (nothing else is supported), not None")
        values = {key: json[key] for key in cls.accepted() if json.get(key) is not None}
        for other, key in cls.renamed.items():
            if other in values:
                values[key] = one_of({key: values.get(key), other: values.pop(other)}, None)
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            raise refusal(cls, error, "config.json") from None
        config.check()
        return config

    @classmethod
    def accepted(cls) -> list[str]:
        """The keys of a config.json that are read or passed on."""
        return [*(field.alias or name for name, field in cls.model_fields.items()), *cls.renamed]

    @classmethod
    def known(cls, json: Mapping[str, Any]) -> dict[str, Any]:
        """The known keys of a config.json, which may be passed on, with their values unchanged."""
        return {key: json[key] for key in cls.accepted() if key in json}

    def check(self) -> None:
        """Check constraints between settings.

        Raises:
            ModelError: settings are inconsistent.
        """

    def decisive(self) -> dict[str, Any]:
        """The settings that the logits depend on, by our names: equal for configs with the same logits."""
        common = {name for name in ModelConfig.model_fields if name not in SHAPE}
        return self.model_dump(exclude=common | self.passed_on)

    @abstractmethod
    def layer_shapes(self) -> dict[str, tuple[int, int]]:
        """Target module within a layer -> (in, out), in the order of the forward pass."""

    @abstractmethod
    def parameters(self) -> int:
        """Parameters of the backbone, including embeddings and without any head."""

    @abstractmethod
    def layer_memory(self) -> LayerMemory:
        """What a layer keeps per token for the backward pass."""

    def module_shapes(self) -> dict[str, tuple[int, int]]:
        """Target module -> (in, out), in the order of the forward pass."""
        shapes = self.layer_shapes().items()
        return {
            f"{self.layer_name.format(i)}.{name}": shape for i in range(self.layers) for name, shape in shapes
        }

    def layer_of(self, module: str) -> int:
        """Layer index of a target module, from 0."""
        return int(module.removeprefix(self.layer_name.format("")).partition(".")[0])

    def _check_heads(self, width: str, heads: str) -> None:
        if self.d_model % self.heads:
            raise ModelError(f"config.json: {width} {self.d_model} is not a multiple of {heads} {self.heads}")


def one_of(values: Mapping[str, T | None], default: T) -> T:
    """The value of a setting that several keys may give; `default` if none does.

    Raises:
        ModelError: the keys contradict each other.
    """
    given = {key: value for key, value in values.items() if value is not None}
    if any(value != next(iter(given.values())) for value in given.values()):
        both = " and ".join(f"{key} = {brief(value)}" for key, value in given.items())
        raise ModelError(f"config.json: {both} contradict each other", hint="remove one of them")
    return next(iter(given.values()), default)


def table_of(rope_parameters: RotarySettings | None, rope_scaling: RotarySettings | None) -> RotarySettings:
    """The rotary settings from either of two keys; an empty object counts as missing.

    Raises:
        ModelError: both tables are given and differ, or a table has settings for each type of layer.
    """
    places = {"rope_parameters": rope_parameters, "rope_scaling": rope_scaling}
    filled = {key: table for key, table in places.items() if table and table.model_fields_set}
    for key, table in filled.items():
        if inner := next((name for name, each in _given(table).items() if isinstance(each, dict)), None):
            raise ModelError(f"config.json: {key}.{inner}: settings for each type of layer are not supported")
    if len(filled) == 2:
        _require_alike(*map(_given, filled.values()))
    return next(iter(filled.values()), RotarySettings())


def _given(table: RotarySettings) -> dict[str, Any]:
    return table.model_dump(exclude_unset=True)


def _require_alike(parameters: Mapping[str, Any], scaling: Mapping[str, Any]) -> None:
    """Check that two tables of rotary settings are the same; transformers would read only `rope_scaling`."""
    for key in sorted(parameters.keys() | scaling.keys()):
        one, other = (brief(table[key]) if key in table else "missing" for table in (parameters, scaling))
        if one != other:
            raise ModelError(
                f"config.json: rope_parameters and rope_scaling contradict each other: {key} is {one} "
                f"in the first and {other} in the second",
                hint="remove one of them",
            )


def scaling_of(table: RotarySettings, max_positions: int, original: int | None) -> Llama3Scaling | None:
    """The scaling of rotary wavelengths.

    Args:
        table: the rotary settings.
        max_positions: positions of the model; the default for its original training length.
        original: original training length, if config.json has it outside the table.

    Raises:
        ModelError: the rotary type is not supported, or one of its settings is missing.
    """
    kind = one_of({"rope_type": table.rope_type, "type": table.type}, "default")
    if kind == "default":
        return None
    if kind != "llama3":
        raise ModelError(f"config.json: rotary type {brief(kind)} is not supported; default and llama3 are")
    for key in ("factor", "low_freq_factor", "high_freq_factor"):
        if getattr(table, key) is None:
            raise ModelError(f"config.json: rotary type llama3 needs {key}, a positive number")
    factor, low, high = table.factor or 0.0, table.low_freq_factor or 0.0, table.high_freq_factor or 0.0
    if low >= high:
        raise ModelError(f"config.json: high_freq_factor must be above low_freq_factor {low}, not {high}")
    key = "original_max_position_embeddings"
    places = {f"rope_parameters.{key}": table.original_max_position_embeddings, key: original}
    return Llama3Scaling(factor, low, high, one_of(places, max_positions))


def refusal(model: type[BaseModel], error: ValidationError, where: str) -> ModelError:
    """The first of pydantic's errors as one sentence: file, key, allowed values, actual value."""
    first = error.errors(include_url=False, include_context=False)[0]
    names: list[str] = []
    allowed, inner = "", [model]
    for part in first["loc"]:
        fields = {each.alias or name: each for kind in inner for name, each in kind.model_fields.items()}
        if part not in fields:  # a branch of a union
            break
        parts = [fields[str(part)], *_parts_of(fields[str(part)].annotation)]
        names.append(str(part))
        allowed = next(each.description for each in parts if isinstance(each, FieldInfo) and each.description)
        inner = [each for each in parts if isinstance(each, type) and issubclass(each, BaseModel)]
    key = ".".join(names)
    found = "but is missing" if first["type"] == "missing" else f"not {brief(first['input'])}"
    return ModelError(f"{where}: {key} must be {allowed}, {found}")


def _parts_of(annotation: Any) -> Iterator[Any]:
    """All parts of a type annotation, recursively, including descriptions."""
    yield annotation
    for part in get_args(annotation):
        yield from _parts_of(part)
