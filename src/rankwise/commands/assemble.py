"""From a saved adapter and its base model to what predicts: label names, tokenizer, backbone and head.

`Classifier.load` and the server both go this way, so that they answer alike.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import torch

from rankwise import hardware
from rankwise.commands.quantization import to_int8
from rankwise.errors import ModelError, Unreachable, option
from rankwise.models import base as bases
from rankwise.models import peft_format as adapters
from rankwise.models.base import load_with_digest
from rankwise.models.peft_format import SavedAdapter, merge
from rankwise.models.registry import family_of
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import HEAD, Bank
from rankwise.store import files


@dataclass(frozen=True)
class Prepared:
    """An adapter with what it takes from its base model, except the weights."""

    folder: Path  # of the adapter; for messages
    saved: SavedAdapter  # with the label names of its base, if it has none
    base: bases.Base
    tokenizer: Tokenizer
    label_note: str = ""  # where the label names come from, if not from the adapter


@dataclass(frozen=True)
class Merged:
    """An adapter merged into a backbone of its own."""

    backbone: Backbone
    head: Bank
    max_length: int  # tokens
    note: str  # what the user should know; empty if nothing
    verified: str  # how its labels in int8 were verified; empty for other precisions


def find_base(saved: SavedAdapter, given: PathLike[str] | str | None, folder: Path) -> bases.Base:
    """The base model, by the name that is given or else by the one stored with the adapter.

    Raises:
        ModelError: there is no such model, or the adapter does not name one.
        Unreachable: the model must be downloaded, and the Hub does not answer.
    """
    if given:
        return bases.find(os.fspath(given))
    if not saved.base:
        hint = f"give it: {option('base')}"
        raise ModelError(f"{folder}: does not say which base model it is for", hint=hint)
    try:
        return bases.find(saved.base)
    except (ModelError, Unreachable) as error:
        raise type(error)(
            f"{folder}: its base model cannot be used: {error.message}",
            hint=f"give the base model: {option('base', 'FOLDER')}{'; or ' * bool(error.hint)}{error.hint}",
        ) from None


def prepare(
    folder: Path, saved: SavedAdapter, base: bases.Base, labels: Sequence[str] | None = None
) -> Prepared:
    """An adapter with its label names and its tokenizer, each that of its base if it has none of its own.

    Args:
        folder: folder of the adapter.
        saved: the adapter.
        base: its base model.
        labels: label names, for an adapter without any, instead of those of the base.

    Raises:
        ModelError: the tokenizer cannot be used.
        UsageError: the label names do not fit the adapter.
    """
    # The base's config tells the pad token, which is left out at the end of a text.
    tokenizer = Tokenizer.load(folder if Tokenizer.is_in(folder) else base.folder, base.folder)
    if labels is not None:
        return Prepared(folder, saved.named(labels), base, tokenizer)
    names = bases.label_names(base, len(saved.labels)) if saved.is_unnamed else None
    if names is None:
        return Prepared(folder, saved, base, tokenizer)
    note = f"the label names are those of {base.name}: {', '.join(names)}"
    return Prepared(folder, saved.named(names), base, tokenizer, note)


def load_merged(prepared: Prepared, device: torch.device, precision: str) -> Merged:
    """Load the base model, and merge the adapter into it.

    Args:
        prepared: the adapter.
        device: where it predicts.
        precision: auto, bfloat16, float32 or int8.

    Raises:
        ModelError: the adapter or its base cannot be used, or int8 changes too many labels.
        UsageError: this machine does not have the precision.
    """
    saved, dtype = prepared.saved, hardware.prediction_dtype(precision, device)
    backbone, digest = load_with_digest(prepared.base, torch.float32, device)
    check_fits(prepared, backbone)
    if saved.embedding is not None:
        backbone.tokens = saved.embedding.to(device)
    merge(backbone, saved)
    backbone.cast(dtype)
    head = head_of(saved, backbone)
    longest = min(saved.max_length, backbone.max_positions)
    verified = ""
    if precision == hardware.INT8:
        verified = to_int8(backbone, head, saved, prepared.folder, prepared.tokenizer, longest)
    return Merged(backbone, head, longest, version_note(prepared, digest), verified)


def version_note(prepared: Prepared, digest: str) -> str:
    """What the user should know if the base is not the one that the adapter was trained on; else empty.

    Args:
        prepared: the adapter.
        digest: SHA-256 of the base, from `load_with_digest`.
    """
    if prepared.saved.base_sha256 in ("", digest):
        return ""
    trained = f"{prepared.folder}: was trained on another version of {prepared.base.name}"
    return f"{trained}, so its predictions may be wrong"


def head_of(saved: SavedAdapter, backbone: Backbone) -> Bank:
    """An adapter's score head, as a bank of its own, for an adapter that is merged into the backbone."""
    spec, on = replace(saved.spec, rank=0, modules=()), backbone.tokens.device
    head = Bank([spec], backbone.modules(), backbone.d_model, len(saved.labels), device=on)
    head.load(0, {HEAD: saved.state[HEAD]})
    return head


def check_fits(prepared: Prepared, backbone: Backbone) -> None:
    """Check that an adapter fits its base model: the modules that it changes, and the shapes of its tensors.

    Raises:
        ModelError: it does not.
    """
    saved, folder = prepared.saved, prepared.folder
    family = family_of(files.read_object(prepared.base.folder / "config.json"))
    modules = backbone.modules()
    head = saved.state[HEAD]
    if head.shape[1] != backbone.d_model:
        raise ModelError(
            f"{folder}: the score head {tuple(head.shape)} does not fit a model of width {backbone.d_model}"
        )
    tokens, embedding = backbone.tokens.shape, saved.embedding
    if embedding is not None and (embedding.shape[1] != tokens[1] or len(embedding) < tokens[0]):
        raise ModelError(f"{folder}: the embeddings {tuple(embedding.shape)} do not fit the base model's")
    for module in saved.spec.modules:
        if module not in modules:
            raise ModelError(
                f"{folder}: the base model has no linear layer {module}",
                hint=f"give the right {option('base')}",
            )
        n_in, n_out = modules[module]
        a, b = saved.state[f"{module}.lora_A"], saved.state[f"{module}.lora_B"]
        if a.shape != (saved.spec.rank, n_in) or b.shape != (n_out, saved.spec.rank):
            raise ModelError(f"{folder}: the adapter's tensors at {module} do not fit the base model")
    adapters.require_whole(folder, saved, list(modules), family)
