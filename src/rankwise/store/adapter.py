"""Adapters on disk, in PEFT's format.

An adapter folder holds ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT writes
them, the score head among the tensors; ``config.json``, the base model's with the label names as
transformers keeps them (``id2label``) and rankwise's own settings under ``rankwise``; and the
tokenizer's files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from rankwise.errors import ModelError
from rankwise.nn.families import parse_config, trunk_class
from rankwise.nn.lora import HEAD, AdapterSpec, match_sites
from rankwise.store import files

_FACTOR = re.compile(
    r"base_model\.model\.(?:transformer|model)\.(?P<site>[\w.]+)\.(?P<half>lora_[AB])\.weight"
)
_HEAD = re.compile(r"base_model\.model\.score\.(?:modules_to_save\.)?weight")
_UNSUPPORTED = ("use_dora", "rank_pattern", "alpha_pattern", "layer_replication", "lora_bias", "use_qalora")


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter as it is stored."""

    spec: AdapterSpec
    state: dict[str, Tensor]  # names and shapes as in `Bank.tensors`, float32
    labels: tuple[str, ...]
    base: str  # name of the base model
    max_length: int  # tokens at which texts are cut


def save(
    folder: Path, adapter: SavedAdapter, base_config: Mapping[str, Any], tokenizer_files: Sequence[Path]
) -> None:
    """Write an adapter folder, whole or not at all.

    Args:
        folder: where; must not exist, or be empty.
        adapter: what to store.
        base_config: the base model's config.json.
        tokenizer_files: the base model's tokenizer, copied beside the adapter.

    Raises:
        UsageError: the folder exists and is not empty.
        ResourceError: it cannot be written.
    """
    with files.new_folder(folder) as new:
        files.write_json(new / "adapter_config.json", _peft_config(adapter, base_config))
        prefix = trunk_class(parse_config(base_config)).head_prefix
        tensors = _peft_tensors(adapter, base_config, prefix)
        files.write_bytes(
            new / "adapter_model.safetensors", safetensors.torch.save(tensors, {"format": "pt"})
        )
        files.write_json(new / "config.json", _model_config(adapter, base_config))
        for path in tokenizer_files:
            files.copy(path, new / path.name)


def load(folder: Path) -> SavedAdapter:
    """Read an adapter folder that rankwise or PEFT wrote.

    Raises:
        ModelError: it is no such folder, a file is damaged, its score head is missing, or it asks
            for a variant of LoRA that is not supported.
    """
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder}: no adapter_config.json: this is no adapter folder",
            hint="give runs/NAME/adapters/rR-sS",
        )
    config = files.read_object(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{folder}: peft_type is {config.get('peft_type')!r}; only LORA is supported")
    for key in _UNSUPPORTED:
        if config.get(key):
            raise ModelError(f"{folder / 'adapter_config.json'}: {key} is not supported")
    state = _read_tensors(folder)
    model = files.read_object(folder / "config.json") if (folder / "config.json").exists() else {}
    own = model.get("rankwise", {})
    sites = tuple(name.removesuffix(".lora_A") for name in state if name.endswith(".lora_A"))
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    if own.get("rank") == 0:  # PEFT has no rank 0: the stored factors are a placeholder of zeros
        rank, sites, state = 0, (), {HEAD: state[HEAD]}
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank) if rank else 0.0
    spec = AdapterSpec(
        rank, alpha, scale, int(own.get("seed", 0)), float(config.get("lora_dropout", 0)), sites
    )
    names = model.get("id2label", {})
    classes = state[HEAD].shape[0]
    labels = tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(classes))
    return SavedAdapter(
        spec, state, labels, str(config["base_model_name_or_path"]), int(own.get("max_length", 1 << 20))
    )


def _peft_config(adapter: SavedAdapter, base_config: Mapping[str, Any]) -> dict[str, Any]:
    from peft import LoraConfig, TaskType

    spec, config = adapter.spec, parse_config(base_config)
    sites = spec.sites or _placeholder_sites(base_config)
    rslora = spec.rank > 1 and spec.scale == spec.alpha / spec.rank**0.5
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=max(spec.rank, 1),
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # annotated int, computed with as it is
        lora_dropout=spec.dropout,
        use_rslora=rslora,
        target_modules=_short_targets(sites, list(config.site_shapes())),
        modules_to_save=[HEAD],
        fan_in_fan_out=base_config["model_type"] == "gpt2",  # Conv1D keeps weights as (in, out)
        base_model_name_or_path=adapter.base,
        inference_mode=True,
    )
    stored: dict[str, Any] = lora.to_dict()  # type: ignore[no-untyped-call]
    # PEFT's sets come out in an order that changes from process to process.
    return {key: sorted(v) if isinstance(v, set) else v for key, v in stored.items()}


def _placeholder_sites(base_config: Mapping[str, Any]) -> tuple[str, ...]:
    config = parse_config(base_config)
    return match_sites(list(config.site_shapes()), trunk_class(config).default_targets[:1])


def _short_targets(sites: Sequence[str], every: Sequence[str]) -> list[str]:
    """The last parts of the sites' names, where these name just them; else the whole names."""
    short = sorted({site.rsplit(".", 1)[-1] for site in sites})
    return short if match_sites(every, short) == tuple(sites) else list(sites)


def _peft_tensors(adapter: SavedAdapter, base_config: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    state = dict(adapter.state)
    if not adapter.spec.rank:
        shapes = parse_config(base_config).site_shapes()
        for site in _placeholder_sites(base_config):
            state[f"{site}.lora_A"] = torch.zeros(1, shapes[site][0])
            state[f"{site}.lora_B"] = torch.zeros(shapes[site][1], 1)
    return {
        f"base_model.model.{name if name == HEAD else f'{prefix}.{name}'}.weight": tensor.contiguous()
        for name, tensor in state.items()
    }


def _model_config(adapter: SavedAdapter, base_config: Mapping[str, Any]) -> dict[str, Any]:
    architecture = {"gpt2": "GPT2", "llama": "Llama", "qwen2": "Qwen2"}[base_config["model_type"]]
    return dict(base_config) | {
        "architectures": [f"{architecture}ForSequenceClassification"],
        "num_labels": len(adapter.labels),
        "id2label": {str(i): label for i, label in enumerate(adapter.labels)},
        "label2id": {label: i for i, label in enumerate(adapter.labels)},
        "rankwise": {"rank": adapter.spec.rank, "seed": adapter.spec.seed, "max_length": adapter.max_length},
    }


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / "adapter_model.safetensors"
    try:
        stored = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise ModelError(
            f"{folder}: no adapter_model.safetensors", hint="pickle files are not read"
        ) from None
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: damaged or unreadable: {error}") from None
    state: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        factor = _FACTOR.fullmatch(name)
        if not factor and not _HEAD.fullmatch(name):
            raise ModelError(f"{path}: unexpected tensor {name}")
        state[f"{factor['site']}.{factor['half']}" if factor else HEAD] = tensor.float()
    if HEAD not in state:
        raise ModelError(
            f"{path}: the score head is missing; with a random head every answer would be noise",
            hint='train with task_type SEQ_CLS, or modules_to_save=["score"], so that PEFT saves it',
        )
    return state
