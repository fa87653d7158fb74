"""The `export` command: an adapter, written for another library and verified with that library."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from rankwise.commands.checks import require_library
from rankwise.commands.classifier import Classifier
from rankwise.commands.known_texts import Sample
from rankwise.commands.locate import adapter_folder, beside, local_place
from rankwise.commands.verification import LEAST, sample
from rankwise.errors import ModelError, UsageError, option
from rankwise.exporting import folders, verify
from rankwise.exporting.source import Source
from rankwise.models import base as bases
from rankwise.paths import expanded
from rankwise.schema import Export
from rankwise.store import files
from rankwise.store.run_folder import RunFolder
from rankwise.tasks.task import Task

Target = Literal["merged", "onnx", "peft"]
LIBRARIES: dict[Target, str] = {"merged": "transformers", "onnx": "onnxruntime", "peft": "peft"}
"""What an export is verified with."""
TOLERANCES: dict[Target, float] = {"merged": 1e-4, "onnx": 1e-3, "peft": 1e-4}
"""Largest allowed difference of a logit in float32, and of larger logits, as a share of the largest one."""
POINTS = 0.5
"""Default limit of the loss in int8, in points of accuracy."""
CHANGED = 1.0
"""Default limit of the labels changed in int8, in percent, where the accuracy is not known."""


def export(
    adapter: PathLike[str] | str,
    to: str,
    output: PathLike[str] | str | None = None,
    *,
    int8: bool = False,
    max_loss: float | None = None,
    data: Any = None,
    columns: dict[str, Any] | None = None,
    base: PathLike[str] | str | None = None,
    labels: Sequence[str] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Export:
    """Export an adapter to another library, and compare the result with the adapter in that library.

    The comparison runs on the given texts; without any, on the validation texts of the adapter's run; without
    a run, on starter texts. There are 200 to 1,000 of them. An export that differs is not written.

    Args:
        adapter: an adapter folder, the folder of a finished run, or an adapter on the Hub.
        to: `merged`, a classifier of transformers with the adapter in its weights; `onnx`, the same as a
            model for ONNX Runtime; or `peft`, an adapter that PEFT loads with the names of the labels.
        output: folder to write; by default in `exports` of the adapter's run, or beside the adapter.
        int8: for `onnx`: whether to quantize the weights and activations of linear layers to 8 bits.
        max_loss: for `int8`: points of accuracy that may be lost [default: 0.5], or percent of the labels
            that may change where fewer than 200 texts have labels [default: 1].
        data: a file to compare on, with labels or without, or labeled data in memory.
        columns: `text_column` or `text_columns`, and `label_column` of the data, if they cannot be detected.
        base: the base model, if it cannot be found under the name stored with the adapter.
        labels: label names in the order of the outputs, for an adapter that has none.
        on_note: called with what the user should know.

    Returns:
        The folder, its files, and the differences that were measured.

    Raises:
        ModelError: the adapter or its base model cannot be used, or the export differs from the adapter.
        DataError: the data cannot be used.
        UsageError: the target is unknown, an extra is not installed, or the folder to write is not empty.
        Unreachable: the base model or the adapter must be downloaded, and the Hub does not answer.
        ResourceError: the disk is full.
    """
    target = _checked(to, int8, max_loss)
    if target != "onnx":
        require_library("peft", "exports are verified with it")
    note = on_note or (lambda text: None)
    path = adapter_folder(os.fspath(adapter))
    place = (
        expanded(os.fspath(output))
        if output
        else default_folder(local_place(os.fspath(adapter), path), target, int8)
    )
    with files.new_folder(place) as new:
        classifier = Classifier.load(
            path, base=base, labels=labels, device="cpu", precision="float32", windows=False, on_note=on_note
        )
        if classifier.trained_on_windows:
            length = classifier.max_length
            note(f"{path}: reads long texts in windows; the export cuts them at {length:,} tokens")
        texts = sample(path, data, classifier, columns=columns or {}, on_note=note)
        ours, source, task = classifier.logits(texts.texts), source_of(classifier), classifier.task
        del classifier  # frees its memory
        theirs = _written(source, target, path, new, texts, int8)
        found = _compared(target, int8, texts, ours, theirs, task, source.thresholds)
        _require_equal(found, max_loss) if int8 else _require_close(found, target, ours, task)
        if target == "peft":
            folders.point_to_base(new, place)
        sizes = {
            str(each.relative_to(new)): each.stat().st_size
            for each in sorted(new.rglob("*"))
            if each.is_file()
        }
    return found.model_copy(update={"folder": str(place), "file_bytes": sizes})


def default_folder(adapter: Path, target: Target, int8: bool) -> Path:
    """`exports/ADAPTER-TARGET` in the adapter's run; beside an adapter that is in none.

    >>> str(default_folder(Path("runs/first/adapters/r4-s110"), "onnx", True))
    'runs/first/exports/r4-s110-onnx-int8'
    """
    place = beside(adapter, f"{target}-int8" if int8 else target)
    run = RunFolder(place.parent.parent)
    return run.exports / place.name if place.parent == run.adapters else place


def source_of(classifier: Classifier) -> Source:
    """What a loaded classifier is made of."""
    parts = classifier._parts
    assert parts is not None  # it was loaded from a folder
    return Source(
        parts.saved, bases.find(parts.base), parts.tokenizer, classifier.max_length, classifier.thresholds
    )


def _checked(to: str, int8: bool, max_loss: float | None) -> Target:
    if to not in get_args(Target):
        raise UsageError(f"{option('to', to)}: give one of {', '.join(get_args(Target))}")
    if int8 and to != "onnx":
        raise UsageError(f"{option('int8', True)} is for {option('to', 'onnx')} only")
    if max_loss is not None and not int8:
        raise UsageError(f"{option('max_loss')} is for {option('int8', True)} only")
    if max_loss is not None and not 0 <= max_loss <= 100:
        raise UsageError(f"{option('max_loss', max_loss)} must be from 0 to 100")
    if to == "onnx" and (missing := [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]):
        hint = "pip install 'rankwise[export]'"
        raise UsageError(f"the export needs the package {missing[0]}, which is not installed", hint=hint)
    return cast("Target", to)


def _written(
    source: Source, target: Target, adapter: Path, folder: Path, texts: Sample, quantized: bool
) -> verify.Logits:
    """Write the export, and return the logits that its library computes."""
    labels = source.saved.labels
    if target == "merged":
        folders.write_merged(source, folder)
        return verify.merged_logits(folder, texts.texts, labels)
    if target == "peft":
        folders.write_peft(source, adapter, folder)
        return verify.peft_logits(folder, texts.texts, labels)
    folders.write_onnx(source, folder, int8=quantized)
    return verify.onnx_logits(folder / folders.MODEL, texts.texts, labels)


def _compared(
    target: Target,
    quantized: bool,
    texts: Sample,
    ours: verify.Logits,
    theirs: verify.Logits,
    task: Task,
    thresholds: Sequence[float] | None,
) -> Export:
    before, after = (task.decided(logits, thresholds).predicted for logits in (ours, theirs))
    changed = int((~task.correct(after, before)).sum())
    targets = texts.targets if texts.targets is not None and len(texts.targets) >= LEAST else None
    accuracy = exported = None
    loss = 100 * changed / len(before)
    if targets is not None:
        accuracy, exported = (float(task.correct(said, targets).mean()) for said in (before, after))
        loss = 100 * (accuracy - exported)
    library = LIBRARIES[target]
    return Export(
        folder="",
        to=target,
        int8=quantized,
        file_bytes={},
        library=f"{library} {version(library)}",
        texts=len(before),
        texts_from=texts.origin,
        largest_difference=float(np.abs(ours - theirs).max()),
        labels_changed=changed,
        accuracy=accuracy,
        exported_accuracy=exported,
        loss=loss,
    )


def _require_close(found: Export, target: Target, ours: verify.Logits, task: Task) -> None:
    """Check that logits differ by rounding only, and that no label changes.

    Thresholds are halfway between probabilities of validation texts, which may be close to each other. So
    rounding may change the labels of a text whose probability is next to a threshold.
    """
    allowed = TOLERANCES[target] * max(1.0, float(np.abs(ours).max()))
    same = task.several or not found.labels_changed
    if found.largest_difference <= allowed and same:  # a NaN is not close to anything
        return
    raise ModelError(
        f"the export differs from the adapter: in {found.library}, logits differ by up to "
        f"{found.largest_difference:.1e} ({allowed:.1e} is allowed), and {found.labels_changed:,} of "
        f"{found.texts:,} labels",
        hint="nothing was written; please report it with the name of the base model",
    )


def _require_equal(found: Export, max_loss: float | None) -> None:
    """Check that int8 loses little."""
    unit, usual = (
        ("points of accuracy", POINTS) if found.accuracy is not None else ("% of the labels", CHANGED)
    )
    allowed = usual if max_loss is None else max_loss
    if found.loss <= allowed and np.isfinite(found.largest_difference):
        return
    raise ModelError(
        f"int8 costs {found.loss:.2f} {unit} on {found.texts_from}; {allowed:g} is allowed",
        hint=f"nothing was written; export without int8, or accept it: {option('max_loss', 5.0)}",
    )
