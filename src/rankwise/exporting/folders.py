"""The folders that other libraries read: a model of transformers, an adapter of PEFT, a model in ONNX.

Each function fills an existing folder. None of them checks that the library gives the right logits; `verify`
does.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch

from rankwise.exporting import decoder
from rankwise.exporting.graph import MODEL as MODEL
from rankwise.exporting.source import SCORE, Source
from rankwise.exporting.tokenizer import TokenizerFiles, tokenizer_files
from rankwise.models import peft_config, peft_format
from rankwise.models.weights import SINGLE
from rankwise.store import files

BASE = "base"
"""Folder of the base model inside an adapter for PEFT."""


def write_merged(source: Source, folder: Path) -> None:
    """A classifier of transformers with the adapter merged into its weights, in float32.

    Raises:
        ModelError: the base model's files are damaged.
        ResourceError: the disk is full.
    """
    tokenizer = tokenizer_files(source)
    tokenizer.write(folder)
    _write_model(source, folder, tokenizer, merged=True)


def write_peft(source: Source, adapter: Path, folder: Path) -> None:
    """An adapter of PEFT, and its base model with the names of the labels in the subfolder `base`.

    PEFT reads the number of labels and their names from the config.json of the base model, and nowhere else.
    The base model is looked up by the path in adapter_config.json; see `point_to_base`.

    Args:
        source: what is exported.
        adapter: folder of the adapter, written by rankwise or PEFT.
        folder: the folder to fill.

    Raises:
        ModelError: the base model's files are damaged.
        ResourceError: the disk is full.
    """
    tokenizer = tokenizer_files(source)
    tokenizer.write(folder)
    files.copy(adapter / peft_format.WEIGHTS, folder / peft_format.WEIGHTS)
    files.write_json(folder / peft_config.NAME, files.read_object(adapter / peft_config.NAME))
    files.write_json(
        folder / peft_format.OWN, peft_format.own_settings(replace(source.saved, base_sha256=""))
    )
    _write_model(source, folder / BASE, tokenizer, merged=False)
    point_to_base(folder, folder)


def point_to_base(folder: Path, place: Path) -> None:
    """Write the path of the base model into adapter_config.json, for an adapter that will be at `place`."""
    settings = files.read_object(folder / peft_config.NAME)
    path = str(place.absolute() / BASE)
    files.write_json(
        folder / peft_config.NAME, settings | {"base_model_name_or_path": path, "revision": None}
    )


def write_onnx(source: Source, folder: Path, *, int8: bool) -> None:
    """The merged classifier as an ONNX model, with its tokenizer.

    The model's metadata are `id2label` and `label2id` as JSON, `problem_type` as in transformers, for a
    multi-label classifier `thresholds` as JSON, and `max_length`, the tokens at which texts are cut.

    Args:
        source: what is exported.
        folder: the folder to fill.
        int8: whether linear layers run in int8; otherwise, everything is in float32.

    Raises:
        ModelError: the base model's files are damaged.
        ResourceError: the disk is full.
    """
    tokenizer_files(source).write(folder)
    family, own_pad = source.family, source.base_config.get("pad_token_id")
    graph = decoder.classifier(
        family.decoder(family.config.from_json(source.base_config)),
        source.tensors(merged=True),
        transposed=family.fan_in_fan_out,
        pad_id=own_pad if type(own_pad) is int and own_pad >= 0 else None,
        int8=int8,
    )
    graph.save(
        folder,
        inputs={decoder.IDS: ("batch", "length"), decoder.MASK: ("batch", "length")},
        outputs={decoder.LOGITS: ("batch", len(source.saved.labels))},
        properties={
            **{
                name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                for name, value in _task(source).items()
            },
            "max_length": str(source.max_length),
        },
    )


def _write_model(source: Source, folder: Path, tokenizer: TokenizerFiles, *, merged: bool) -> None:
    """config.json and model.safetensors."""
    files.write_json(folder / "config.json", _config(source, tokenizer.pad_id))
    prefix = source.family.prefix
    tensors = {
        name if name == SCORE else f"{prefix}.{name}": tensor.contiguous()
        for name, tensor in source.tensors(merged=merged).items()
    }
    files.write_bytes(folder / SINGLE, safetensors.torch.save(tensors, {"format": "pt"}))


def _config(source: Source, pad_id: int | None) -> dict[str, Any]:
    """config.json of the classifier."""
    own = {key: value for key, value in source.base_config.items() if key != "torch_dtype"}
    return own | {
        "architectures": [source.family.architecture],
        "dtype": "float32",
        "pad_token_id": pad_id,
        "vocab_size": source.vocabulary,
        **_task(source),
    }


def _task(source: Source) -> dict[str, Any]:
    """The task and the names of the labels, as in transformers' config.json; thresholds, if there are any."""
    labels = source.saved.labels
    return {
        "problem_type": source.saved.problem_type,
        **({} if source.thresholds is None else {"thresholds": list(source.thresholds)}),
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
