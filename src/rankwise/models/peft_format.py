"""Adapters on disk, in PEFT's format.

An adapter folder contains:

- ``adapter_config.json`` and ``adapter_model.safetensors`` as written by PEFT, including the score
  head;
- ``config.json``: the base model's config, with label names as in transformers (``id2label``) and
  rankwise's settings under ``rankwise``;
- the tokenizer files;
- ``sha256.json``: the digests of these files, which PEFT ignores. If it exists, all files are
  verified before they are read. Folders written by PEFT do not have it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Annotated, Any
from unicodedata import category

import safetensors
import safetensors.torch
import torch
from pydantic import AfterValidator, BaseModel, Field, ValidationError
from torch import Tensor

from rankwise.errors import ModelError
from rankwise.models.config import STRICT, Flag, Word, refusal
from rankwise.models.registry import FAMILIES, family_of, parse_config
from rankwise.models.tokenizer import FILE_NAMES
from rankwise.models.weights import DTYPES
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import HEAD, AdapterSpec, match_modules
from rankwise.store import files

WEIGHTS = "adapter_model.safetensors"
_PREFIXES = "|".join(sorted({family.prefix for family in FAMILIES.values()}))
_TABLES = "|".join(sorted({re.escape(f"{family.prefix}.{family.embedding}") for family in FAMILIES.values()}))
_FACTOR = re.compile(rf"base_model\.model\.(?:{_PREFIXES})\.(?P<module>[\w.]+)\.(?P<half>lora_[AB])\.weight")
_HEAD = re.compile(r"base_model\.model\.score\.(?:modules_to_save\.)?weight")
_EMBEDDING = re.compile(rf"base_model\.model\.(?:{_TABLES})\.weight")
_TOKENS = "tokens"
_LARGEST_WEIGHTS = 1 << 33  # bytes; embeddings saved with the adapter may be 2 GB
_LARGEST_CONFIG = 1 << 24  # bytes; enough for thousands of label names
_LARGEST_RANK = 4096  # as in a recipe
_LARGEST_HEAD = 1 << 16  # classes
_LARGEST_ALPHA = 1e6
_NEUTRAL_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initializations of A and B that do not change the base weights, unlike PEFT's pissa and others."""


def _check(value: Any, good: bool) -> Any:
    if not good:
        raise ValueError
    return value


_Unused = Annotated[
    Any,
    AfterValidator(lambda value: _check(value, not value)),
    Field(description="null, false or empty (nothing else is supported)"),
]


class _AdapterConfig(BaseModel):
    """The settings read from adapter_config.json. Only plain LoRA is supported."""

    model_config = STRICT

    peft_type: Annotated[
        str,
        AfterValidator(lambda value: _check(value, value == "LORA")),
        Field(description="LORA (nothing else is supported)"),
    ]
    use_dora: _Unused = None
    rank_pattern: _Unused = None
    alpha_pattern: _Unused = None
    layer_replication: _Unused = None
    lora_bias: _Unused = None
    use_qalora: _Unused = None
    use_bdlora: _Unused = None
    alora_invocation_tokens: _Unused = None
    arrow_config: _Unused = None
    kasa_config: _Unused = None
    monteclora_config: _Unused = None
    target_parameters: _Unused = None
    trainable_token_indices: _Unused = None
    init_lora_weights: Annotated[
        Any,
        AfterValidator(lambda value: _check(value, value in _NEUTRAL_INITS)),
        Field(description="an initialization that does not change the base weights"),
    ] = True
    r: Annotated[int, Field(ge=1, le=_LARGEST_RANK, description=f"a whole number from 1 to {_LARGEST_RANK}")]
    lora_alpha: Annotated[
        float,
        Field(
            ge=-_LARGEST_ALPHA,
            le=_LARGEST_ALPHA,
            description=f"a number from {-_LARGEST_ALPHA:g} to {_LARGEST_ALPHA:g}",
        ),
    ]
    lora_dropout: Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")] = 0.0
    use_rslora: Flag = False
    base_model_name_or_path: Word = ""


_HINTS = {
    "init_lora_weights": "convert it with PEFT: "
    "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
}
"""Setting -> hint for when its value is rejected."""


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter as stored on disk."""

    spec: AdapterSpec
    state: dict[str, Tensor]  # names and shapes as in `Bank.tensors`, float32
    labels: tuple[str, ...]
    base: str  # name of the base model; empty if PEFT stored none
    max_length: int  # tokens at which texts are truncated
    embedding: Tensor | None = None
    """(vocabulary, d_model) replaces the base's embeddings. PEFT saves it if a pad token was added."""


def save(
    folder: Path, adapter: SavedAdapter, base_config: Mapping[str, Any], tokenizer_files: Sequence[Path]
) -> None:
    """Write an adapter folder atomically.

    Args:
        folder: target folder, which must be missing or empty.
        adapter: the adapter to save.
        base_config: the base model's config.json.
        tokenizer_files: the base model's tokenizer, copied beside the adapter.

    Raises:
        UsageError: the folder exists and is not empty.
        ResourceError: the disk is full.
    """
    with files.new_folder(folder) as new:
        files.write_json(new / "adapter_config.json", _peft_config(adapter, base_config))
        tensors = _peft_tensors(adapter, base_config)
        files.write_bytes(new / WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))
        files.write_json(new / "config.json", _model_config(adapter, base_config))
        for path in tokenizer_files:
            files.copy(path, new / path.name)
        _write_digests(new)


def save_from(source: Path, folder: Path, spec: AdapterSpec, state: Mapping[str, Tensor]) -> None:
    """Write a copy of an adapter folder with another rank, alpha and factors, atomically.

    Everything else is copied, whether rankwise or PEFT wrote it: the remaining settings, the score head,
    saved embeddings, config.json and the tokenizer. The model card is not, because its metrics are those of
    the source.

    Args:
        source: folder of an adapter that `load` accepts.
        folder: target folder, which must be missing or empty.
        spec: the adapter to write, with the target modules of the source and a rank above 0.
        state: its tensors, named as in `Bank.tensors`.

    Raises:
        UsageError: the target folder exists and is not empty.
        ResourceError: the disk is full.
    """
    stored = safetensors.torch.load_file(source / WEIGHTS)
    tensors = {name: state.get(_our_name(name) or "", tensor) for name, tensor in stored.items()}
    changes = {"r": spec.rank, "lora_alpha": spec.alpha, "use_rslora": False}
    with files.new_folder(folder) as new:
        config = files.read_object(source / "adapter_config.json")
        files.write_json(new / "adapter_config.json", config | changes)
        files.write_bytes(new / WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))
        if (source / "config.json").is_file():
            files.write_json(new / "config.json", _with_rank(source / "config.json", spec.rank))
        for name in FILE_NAMES:
            if (source / name).is_file():
                files.copy(source / name, new / name)
        _write_digests(new)


def _with_rank(path: Path, rank: int) -> dict[str, Any]:
    """A config.json with another rank in rankwise's settings, if it has these."""
    model = files.read_object(path, limit=_LARGEST_CONFIG)
    own = model.get("rankwise")
    return model | ({"rankwise": own | {"rank": rank}} if isinstance(own, dict) else {})


def _write_digests(folder: Path) -> None:
    digests = {path.name: files.sha256(path) for path in sorted(folder.iterdir())}
    files.write_json(folder / files.DIGESTS, digests)


def load(folder: Path) -> SavedAdapter:
    """Read an adapter folder written by rankwise or PEFT.

    Raises:
        ModelError: this is not an adapter folder, a file is damaged, the score head is missing, or the
            adapter uses an unsupported variant of LoRA.
    """
    config = _read_config(folder)
    files.verify(folder)
    state = _read_tensors(folder, config.r)
    embedding = state.pop(_TOKENS, None)
    path = folder / "config.json"
    model = files.read_object(path, limit=_LARGEST_CONFIG) if path.exists() else {}
    settings = model.get("rankwise")
    own = settings if isinstance(settings, dict) else {}
    modules = tuple(name.removesuffix(".lora_A") for name in state if name.endswith(".lora_A"))
    rank, alpha = config.r, config.lora_alpha
    if own.get("rank") == 0:  # PEFT has no rank 0: the stored factors are a placeholder of zeros
        rank, modules, state = 0, (), {HEAD: state[HEAD]}
    scale = alpha / (math.sqrt(rank) if config.use_rslora else rank) if rank else 0.0
    spec = AdapterSpec(rank, alpha, scale, _whole(own, "seed", 0), config.lora_dropout, modules)
    return SavedAdapter(
        spec,
        state,
        _labels(folder, model, classes=len(state[HEAD])),
        config.base_model_name_or_path,
        max(1, _whole(own, "max_length", 1 << 20)),
        embedding,
    )


def _peft_config(adapter: SavedAdapter, base_config: Mapping[str, Any]) -> dict[str, Any]:
    from peft import LoraConfig, TaskType

    spec, config = adapter.spec, parse_config(base_config)
    modules = spec.modules or _placeholder_modules(base_config)
    rslora = spec.rank > 1 and math.isclose(spec.scale, spec.alpha / math.sqrt(spec.rank))
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=max(spec.rank, 1),
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # annotated int, but floats work
        lora_dropout=spec.dropout,
        use_rslora=rslora,
        target_modules=_short_targets(modules, list(config.module_shapes())),
        modules_to_save=[HEAD],
        fan_in_fan_out=family_of(base_config).fan_in_fan_out,
        base_model_name_or_path=adapter.base,
        inference_mode=True,
    )
    stored: dict[str, Any] = lora.to_dict()  # type: ignore[no-untyped-call]
    # The iteration order of sets differs between processes.
    return {key: sorted(v) if isinstance(v, set) else v for key, v in stored.items()}


def _placeholder_modules(base_config: Mapping[str, Any]) -> tuple[str, ...]:
    modules = list(parse_config(base_config).module_shapes())
    return match_modules(modules, family_of(base_config).default_targets[:1])


def _short_targets(modules: Sequence[str], every: Sequence[str]) -> list[str]:
    """Short names of the target modules if these match no other module, else the full names."""
    short = sorted({module.rsplit(".", 1)[-1] for module in modules})
    return short if match_modules(every, short) == tuple(modules) else list(modules)


def _peft_tensors(adapter: SavedAdapter, base_config: Mapping[str, Any]) -> dict[str, Tensor]:
    state, prefix = dict(adapter.state), family_of(base_config).prefix
    if not adapter.spec.rank:
        shapes = parse_config(base_config).module_shapes()
        for module in _placeholder_modules(base_config):
            state[f"{module}.lora_A"] = torch.zeros(1, shapes[module][0], dtype=torch.float32)
            state[f"{module}.lora_B"] = torch.zeros(shapes[module][1], 1, dtype=torch.float32)
    return {
        f"base_model.model.{name if name == HEAD else f'{prefix}.{name}'}.weight": tensor.contiguous()
        for name, tensor in state.items()
    }


def _model_config(adapter: SavedAdapter, base_config: Mapping[str, Any]) -> dict[str, Any]:
    family = family_of(base_config)
    return family.config.known(base_config) | {
        "architectures": [family.architecture],
        "num_labels": len(adapter.labels),
        "id2label": {str(i): label for i, label in enumerate(adapter.labels)},
        "label2id": {label: i for i, label in enumerate(adapter.labels)},
        "rankwise": {"rank": adapter.spec.rank, "seed": adapter.spec.seed, "max_length": adapter.max_length},
    }


def _read_config(folder: Path) -> _AdapterConfig:
    """Read and validate adapter_config.json. Null counts as missing."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise ModelError(
            f"{folder}: no adapter_config.json: this is not an adapter folder",
            hint="pass a folder such as runs/NAME/adapters/rR-sS",
        )
    given = {key: value for key, value in files.read_object(path).items() if value is not None}
    try:
        return _AdapterConfig.model_validate(given)
    except ValidationError as error:
        refused = refusal(_AdapterConfig, error, str(path))
        hint = _HINTS.get(str(error.errors(include_url=False)[0]["loc"][0]), "")
        raise ModelError(refused.message, hint=hint) from None


def _whole(json: Mapping[str, Any], key: str, default: int) -> int:
    value = json.get(key)
    return value if type(value) is int else default


def _labels(folder: Path, model: Mapping[str, Any], *, classes: int) -> tuple[str, ...]:
    """Label names in the head's order: transformers' id2label, or LABEL_0, LABEL_1, ..."""
    names = model.get("id2label")
    if not names:
        return tuple(f"LABEL_{i}" for i in range(classes))
    found = [names.get(str(i)) for i in range(classes)] if isinstance(names, dict) else []
    if not len(names) == classes == len(found) == len({name for name in found if isinstance(name, str)}):
        raise ModelError(f"{folder / 'config.json'}: id2label must name each of {classes} classes")
    if odd := next((name for name in found if not _is_name(name)), None):
        raise ModelError(f"{folder / 'config.json'}: id2label: {brief(odd)} contains a control character")
    return tuple(map(str, found))


def _is_name(value: Any) -> bool:
    """Whether a label is a string without control characters and lone surrogates."""
    return isinstance(value, str) and not any(category(sign) in ("Cc", "Cs") for sign in value)


def _our_name(name: str) -> str | None:
    """The bank's name, or `_TOKENS`, for PEFT's name of a tensor; None if it is unknown."""
    if factor := _FACTOR.fullmatch(name):
        return f"{factor['module']}.{factor['half']}"
    if _HEAD.fullmatch(name):
        return HEAD
    return _TOKENS if _EMBEDDING.fullmatch(name) else None


def _read_tensors(folder: Path, rank: int) -> dict[str, Tensor]:
    """Bank name -> float32 tensor. Names and shapes are checked before tensors are read."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise ModelError(f"{folder}: no {WEIGHTS}", hint="pickle files are not read")
    if path.stat().st_size > _LARGEST_WEIGHTS:
        raise ModelError(f"{path}: larger than {_LARGEST_WEIGHTS} bytes")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = _checked_names(path, {name: file.get_slice(name) for name in file.keys()}, rank)  # noqa: SIM118
            stored = {ours: file.get_tensor(name) for name, ours in names.items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: damaged or unreadable: {error}") from None
    for name, ours in names.items():
        if not torch.isfinite(stored[ours]).all():
            raise ModelError(f"{path}: damaged: {name} is not a matrix of finite numbers")
    return {ours: tensor.float() for ours, tensor in stored.items()}


def _checked_names(path: Path, headers: Mapping[str, Any], rank: int) -> dict[str, str]:
    """Stored name -> bank name. Rejects unexpected tensors and invalid shapes."""
    if not any(map(_HEAD.fullmatch, headers)):
        raise ModelError(
            f"{path}: the score head is missing; with a random head, predictions would be random",
            hint='train with task_type SEQ_CLS, or modules_to_save=["score"], so that PEFT saves it',
        )
    names: dict[str, str] = {}
    for name, header in headers.items():
        ours, shape = _our_name(name), header.get_shape()
        if ours is None:
            raise ModelError(f"{path}: unexpected tensor {brief(name)}")
        if ours in names.values():
            raise ModelError(f"{path}: contains the tensor {ours} twice")
        if len(shape) != 2 or 0 in shape or header.get_dtype() not in DTYPES:
            raise ModelError(f"{path}: damaged: {name} is not a matrix of finite numbers")
        _check_shape(path, ours, shape, rank)
        names[name] = ours
    halves = [{name[:-1] for name in names.values() if name.endswith(end)} for end in ("lora_A", "lora_B")]
    if not halves[0] or halves[0] != halves[1]:
        raise ModelError(f"{path}: lora_A or lora_B tensors are missing: they must come in pairs")
    return names


def _check_shape(path: Path, name: str, shape: Sequence[int], rank: int) -> None:
    if name == HEAD and not 2 <= shape[0] <= _LARGEST_HEAD:
        raise ModelError(
            f"{path}: the score head has {shape[0]} outputs, but a classifier needs 2 to {_LARGEST_HEAD}"
        )
    found = shape[0] if name.endswith("lora_A") else shape[1] if name.endswith("lora_B") else rank
    if found != rank:
        raise ModelError(f"{path}: the tensors do not fit r = {rank}: {name} has rank {found}")


def merge(backbone: Backbone, saved: SavedAdapter) -> None:
    """Add an adapter's low-rank products to the backbone's weights, which should be float32."""
    for linear in backbone.linears():
        for module in linear.modules:
            if module in saved.spec.modules:
                a, b = saved.state[f"{module}.lora_A"], saved.state[f"{module}.lora_B"]
                linear.merge(module, (saved.spec.scale * (b @ a)).to(linear.weight.device))
