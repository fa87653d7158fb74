"""Adapters on disk, in PEFT's format.

An adapter folder contains:

- ``adapter_config.json`` and ``adapter_model.safetensors`` as written by PEFT, including the score
  head;
- ``classifier.json``: label names as in transformers' config (``id2label``), and rankwise's settings
  under ``rankwise``. There is no ``config.json``: transformers would take the folder for a whole model;
- the tokenizer files;
- ``sha256.json``: the digests of these files. If it exists, all files are verified before they are read.

Folders written by PEFT have neither of the last two JSON files. Folders written by rankwise 0.1 have
``config.json`` instead of ``classifier.json``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as brief
from typing import Any
from unicodedata import category

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from rankwise.errors import ModelError, UsageError
from rankwise.models.family import Family
from rankwise.models.peft_config import NAME, AdapterConfig, read_config
from rankwise.models.registry import FAMILIES, family_of, parse_config
from rankwise.models.tokenizer import FILE_NAMES, WHOLE
from rankwise.models.weights import DTYPES, LARGEST, is_finite
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import HEAD, AdapterSpec, match_modules
from rankwise.recipe import labels_in_order
from rankwise.schema import TaskName
from rankwise.store import files

WEIGHTS = "adapter_model.safetensors"
OWN = "classifier.json"
"""File of the label names and of rankwise's settings."""
JOINER = "\n"
"""What stands between the texts of a pair; the same as `data.pairs.JOINER`."""
SINGLE_LABEL, MULTI_LABEL = "single_label_classification", "multi_label_classification"
"""The tasks as transformers names them in `problem_type`."""
_PREFIXES = "|".join(sorted({family.prefix for family in FAMILIES.values()}))
_TABLES = "|".join(sorted({re.escape(f"{family.prefix}.{family.embedding}") for family in FAMILIES.values()}))
_FACTOR = re.compile(rf"base_model\.model\.(?:{_PREFIXES})\.(?P<module>[\w.]+)\.(?P<half>lora_[AB])\.weight")
_HEAD = re.compile(r"base_model\.model\.score\.(?:modules_to_save\.)?weight")
_EMBEDDING = re.compile(rf"base_model\.model\.(?:{_TABLES})\.weight")
_TOKENS = "tokens"
_LARGEST_WEIGHTS = 1 << 33  # bytes; embeddings saved with the adapter may be 2 GB
_LARGEST_CONFIG = 1 << 24  # bytes; enough for thousands of label names
_LARGEST_HEAD = 1 << 16  # classes
_TEMPERATURES = 1e-3, 1e3  # beyond these bounds, probabilities could not be computed
_COPIED = ("num_labels", "id2label", "label2id", "problem_type", "rankwise")
"""What classifier.json consists of."""
_WRITTEN = (
    *("task_type", "peft_type", "base_model_name_or_path", "inference_mode", "r", "target_modules"),
    *("lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "modules_to_save"),
    "init_lora_weights",
)
"""The settings in an adapter_config.json. Others are at their defaults, and older versions of PEFT refuse
settings that they do not know."""


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
    base_sha256: str = ""
    """Digest of the base that it was trained on (`base.digest`); empty if unknown."""
    task: TaskName = "single-label"
    thresholds: tuple[float, ...] | None = None
    """Of each label, a probability; None if the largest logit decides."""
    label_separator: str = ""
    """Joins the labels of a text in a cell of a table."""
    text_columns: tuple[str, ...] = ()
    """What the texts of a pair are called, which are joined by a line break; empty for single texts."""
    config: AdapterConfig | None = None
    """What adapter_config.json says; None for an adapter that was not read from a folder."""
    temperature: float | None = None
    """Divides the logits before they become probabilities; None, which is like 1, if none was fitted."""
    window_stride: int | None = None
    """Tokens from a window of a long text to the next in training; None if long texts were truncated."""

    @property
    def problem_type(self) -> str:
        """The task as transformers names it."""
        return MULTI_LABEL if self.task == "multi-label" else SINGLE_LABEL

    @property
    def is_unnamed(self) -> bool:
        """Whether the labels have no names but LABEL_0, LABEL_1, ..."""
        return self.labels == _numbered(len(self.labels))

    def named(self, labels: Iterable[str]) -> SavedAdapter:
        """This adapter with label names, in the order of the head's outputs.

        Raises:
            UsageError: the names do not fit the head, or the adapter has names of its own.
        """
        classes = len(self.labels)
        try:
            names = labels_in_order(labels)
        except ValueError as error:
            raise UsageError(f"labels: {error}") from None
        if not self.is_unnamed and names != self.labels:
            raise UsageError(f"the adapter has label names of its own: {', '.join(self.labels)}")
        if not all(map(_is_name, names)) or not len(names) == len(set(names)) == classes:
            raise UsageError(
                f"labels: give {classes} names, all different, in the order of the head's outputs"
            )
        return replace(self, labels=names)


def with_state(adapter: SavedAdapter, spec: AdapterSpec, state: dict[str, Tensor]) -> SavedAdapter:
    """An adapter with the labels, base and maximum length of another."""
    modules = tuple(name.removesuffix(".lora_A") for name in state if name.endswith(".lora_A"))
    return replace(adapter, spec=replace(spec, modules=modules), state=state)


def save(
    folder: Path,
    adapter: SavedAdapter,
    base_config: Mapping[str, Any],
    tokenizer_files: Sequence[Path],
    tokenizer_json: str | None = None,
) -> None:
    """Write an adapter folder atomically.

    Args:
        folder: target folder, which must be missing or empty.
        adapter: the adapter to save.
        base_config: the base model's config.json.
        tokenizer_files: the base model's tokenizer, copied beside the adapter.
        tokenizer_json: contents of a tokenizer.json to add to them.

    Raises:
        UsageError: the folder exists and is not empty.
        ResourceError: the disk is full.
    """
    with files.new_folder(folder) as new:
        files.write_json(new / NAME, _peft_config(adapter, base_config))
        tensors = _peft_tensors(adapter, base_config)
        files.write_bytes(new / WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))
        files.write_json(new / OWN, own_settings(adapter))
        for path in tokenizer_files:
            files.copy(path, new / path.name)
        if tokenizer_json is not None:
            files.write_text(new / WHOLE, tokenizer_json)
        _write_digests(new)


def save_from(source: Path, folder: Path, spec: AdapterSpec, state: Mapping[str, Tensor]) -> None:
    """Write a copy of an adapter folder with another rank, alpha and factors, atomically.

    Everything else is copied, whether rankwise or PEFT wrote it: the remaining settings, the score head,
    saved embeddings, label names and the tokenizer. The model card is not, because its metrics are those of
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
        files.write_json(new / NAME, files.read_object(source / NAME) | changes)
        files.write_bytes(new / WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))
        if own := _with_rank(_read_own(source), spec.rank):
            files.write_json(new / OWN, own)
        for name in FILE_NAMES:
            if (source / name).is_file():
                files.copy(source / name, new / name)
        _write_digests(new)


def _with_rank(own: Mapping[str, Any], rank: int) -> dict[str, Any]:
    """The contents of classifier.json with another rank in rankwise's settings, if it has these.

    The temperature is left out, because it was fitted to the logits of the source.
    """
    kept = {key: own[key] for key in _COPIED if key in own}
    settings = own.get("rankwise")
    if not isinstance(settings, dict):
        return kept
    fitting = {key: value for key, value in settings.items() if key != "temperature"}
    return kept | {"rankwise": fitting | {"rank": rank}}


def _write_digests(folder: Path) -> None:
    digests = {path.name: files.sha256(path) for path in sorted(folder.iterdir())}
    files.write_json(folder / files.DIGESTS, digests)


def load(folder: Path) -> SavedAdapter:
    """Read an adapter folder written by rankwise or PEFT.

    Raises:
        ModelError: this is not an adapter folder, a file is damaged, the score head is missing, or the
            adapter uses an unsupported variant of LoRA.
    """
    config = read_config(folder)
    files.verify(folder)
    state = _read_tensors(folder, config.r)
    embedding = state.pop(_TOKENS, None)
    if config.saves_embedding and embedding is None:
        raise ModelError(f"{folder / WEIGHTS}: lacks the embeddings, which modules_to_save lists")
    model = _read_own(folder)
    settings = model.get("rankwise")
    own = settings if isinstance(settings, dict) else {}
    labels = _labels(folder / _own_name(folder), model, classes=len(state[HEAD]))
    modules = tuple(name.removesuffix(".lora_A") for name in state if name.endswith(".lora_A"))
    rank, alpha = config.r, config.lora_alpha
    if own.get("rank") == 0:  # PEFT has no rank 0: the stored factors are a placeholder of zeros
        rank, modules, state = 0, (), {HEAD: state[HEAD]}
    scale = alpha / (math.sqrt(rank) if config.use_rslora else rank) if rank else 0.0
    digest = own.get("base_sha256")
    return SavedAdapter(
        AdapterSpec(rank, alpha, scale, _whole(own, "seed", 0), config.lora_dropout, modules),
        state,
        labels,
        config.base_model_name_or_path,
        max(1, _whole(own, "max_length", 1 << 20)),
        embedding,
        digest if isinstance(digest, str) else "",
        *_task(folder / _own_name(folder), model, own, len(labels)),
        _text_columns(folder / _own_name(folder), own),
        config,
        _temperature(folder / _own_name(folder), own),
        _whole(own, "window_stride", 0) or None,
    )


def _own_name(folder: Path) -> str:
    """The file that has the label names: classifier.json, or config.json in folders of rankwise 0.1."""
    return OWN if (folder / OWN).exists() else "config.json"


def _read_own(folder: Path) -> dict[str, Any]:
    """Label names and rankwise's settings; empty if the folder has neither."""
    path = folder / _own_name(folder)
    return files.read_object(path, limit=_LARGEST_CONFIG) if path.exists() else {}


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
    return {key: sorted(v) if isinstance(v := stored[key], set) else v for key in _WRITTEN}


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


def own_settings(adapter: SavedAdapter) -> dict[str, Any]:
    """The contents of classifier.json."""
    own: dict[str, Any] = {
        "num_labels": len(adapter.labels),
        "id2label": {str(i): label for i, label in enumerate(adapter.labels)},
        "label2id": {label: i for i, label in enumerate(adapter.labels)},
        "rankwise": {
            "rank": adapter.spec.rank,
            "seed": adapter.spec.seed,
            "max_length": adapter.max_length,
            "base_sha256": adapter.base_sha256,
            **({} if adapter.temperature is None else {"temperature": adapter.temperature}),
            **({} if adapter.window_stride is None else {"window_stride": adapter.window_stride}),
        },
    }
    if adapter.task == "multi-label":
        own["problem_type"] = adapter.problem_type
        own["rankwise"] |= {
            "thresholds": adapter.thresholds and list(adapter.thresholds),
            "label_separator": adapter.label_separator,
        }
    if adapter.text_columns:
        own["rankwise"] |= {"text_columns": list(adapter.text_columns), "text_joiner": JOINER}
    return own


def _task(
    path: Path, model: Mapping[str, Any], own: Mapping[str, Any], classes: int
) -> tuple[TaskName, tuple[float, ...] | None, str]:
    """(task, thresholds, sign between labels). The task is in `problem_type`, as in transformers' config."""
    kind = model.get("problem_type")
    if kind in (None, SINGLE_LABEL):
        return "single-label", None, ""
    if kind != MULTI_LABEL:
        hint = f"{SINGLE_LABEL} and {MULTI_LABEL} can be used"
        raise ModelError(f"{path}: problem_type is {brief(kind)}, which is no classification", hint=hint)
    found, separator = own.get("thresholds"), own.get("label_separator")
    if found is not None:
        valid = isinstance(found, list) and all(
            type(each) in (int, float) and 0 <= each <= 1 for each in found
        )
        if not valid or len(found) != classes:
            raise ModelError(f"{path}: thresholds must be a probability for each of {classes} labels")
    thresholds = None if found is None else tuple(map(float, found))
    return "multi-label", thresholds, separator if isinstance(separator, str) and separator else "|"


def _text_columns(path: Path, own: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the texts of a pair; empty for single texts."""
    found = own.get("text_columns")
    if found is None:
        return ()
    if not isinstance(found, list) or len(found) != 2 or not all(map(_is_name, found)):
        raise ModelError(f"{path}: text_columns must be the names of two columns")
    if own.get("text_joiner") != JOINER:
        raise ModelError(f"{path}: joins pairs of texts in a way that this version of rankwise does not know")
    return tuple(found)


def _whole(json: Mapping[str, Any], key: str, default: int) -> int:
    value = json.get(key)
    return value if type(value) is int else default


def stored_temperature(folder: Path) -> float | None:
    """The temperature in an adapter folder; None if none is stored.

    Raises:
        ModelError: classifier.json is damaged.
    """
    settings = _read_own(folder).get("rankwise")
    return _temperature(folder / _own_name(folder), settings if isinstance(settings, dict) else {})


def _temperature(path: Path, own: Mapping[str, Any]) -> float | None:
    value, (low, high) = own.get("temperature"), _TEMPERATURES
    if value is None:
        return None
    if type(value) not in (int, float) or not low <= value <= high:
        raise ModelError(f"{path}: temperature must be a number from {low:g} to {high:g}, not {brief(value)}")
    return float(value)


def _numbered(classes: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{i}" for i in range(classes))


def _labels(path: Path, model: Mapping[str, Any], *, classes: int) -> tuple[str, ...]:
    """Label names in the head's order: transformers' id2label, or LABEL_0, LABEL_1, ..."""
    names = model.get("id2label")
    if not names:
        return _numbered(classes)
    found = [names.get(str(i)) for i in range(classes)] if isinstance(names, dict) else []
    if not len(names) == classes == len(found) == len({name for name in found if isinstance(name, str)}):
        raise ModelError(f"{path}: id2label must name each of {classes} classes")
    if odd := next((name for name in found if not _is_name(name)), None):
        raise ModelError(f"{path}: id2label: {brief(odd)} contains a control character")
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
        if not is_finite(stored[ours]):  # float64 has numbers that are infinite in float32
            raise ModelError(f"{path}: damaged: {name} is not a matrix of finite numbers below {LARGEST:.2g}")
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


def require_whole(folder: Path, saved: SavedAdapter, modules: Sequence[str], family: Family) -> None:
    """Check that an adapter has exactly the modules that its adapter_config.json names.

    PEFT would leave out a missing one, and ignore one that is not named.

    Args:
        folder: folder of the adapter.
        saved: the adapter.
        modules: the backbone's linear layers.
        family: the backbone's family.

    Raises:
        ModelError: a module is missing, or not named.
    """
    if saved.config is None or not saved.spec.rank:
        return
    named, found = saved.config.targets(modules, family), saved.spec.modules
    if missing := next((module for module in named if module not in found), None):
        raise ModelError(f"{folder / WEIGHTS}: lacks the tensors of {missing}, which target_modules names")
    if extra := next((module for module in found if module not in named), None):
        raise ModelError(f"{folder / WEIGHTS}: has tensors of {extra}, which target_modules does not name")


def merge(backbone: Backbone, saved: SavedAdapter) -> None:
    """Add an adapter's low-rank products to the backbone's weights, which should be float32."""
    for linear in backbone.linears():
        for module in linear.modules:
            if module in saved.spec.modules:
                a, b = saved.state[f"{module}.lora_A"], saved.state[f"{module}.lora_B"]
                linear.merge(module, (saved.spec.scale * (b @ a)).to(linear.weight.device))
