"""Synthetic run folders in a sweep's format: many ranks and seeds without training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from scipy.special import softmax

from rankwise import Recipe
from rankwise.data.writers import csv_line
from rankwise.schema import AdapterResult, Baseline, CutResult, Diverged, Metrics, Results, Timing
from rankwise.stats.metrics import metrics
from rankwise.store import files
from rankwise.store.run_folder import RunFolder

EMOTIONS = ("sadness", "joy", "love", "anger", "fear", "surprise")
SHARES = (0.29, 0.335, 0.08, 0.145, 0.11, 0.04)
ACCURACIES = {0: 0.57, 1: 0.895, 2: 0.906, 4: 0.917, 8: 0.92, 16: 0.919}


def made_run(
    folder: Path,
    *,
    accuracies: Mapping[int, float] = ACCURACIES,
    seeds: Sequence[int] = (0, 1, 2),
    labels: Sequence[str] = EMOTIONS,
    sizes: Mapping[str, int] | None = None,
    texts: Sequence[str] = (),
    baselines: bool = True,
    cuts: Mapping[int, float] | None = None,
    diverged: Sequence[Diverged] = (),
    calibration: bool = True,
    epochs: int = 3,
) -> RunFolder:
    """Write a finished run without adapter weights.

    Args:
        folder: output folder.
        accuracies: rank -> approximate accuracy of its adapters.
        seeds: seeds of every rank.
        labels: class names.
        sizes: number of texts in validation and, optionally, test.
        texts: texts to cycle through; generated if empty.
        baselines: whether to include baselines.
        cuts: rank -> approximate accuracy of the largest rank cut to it.
        diverged: adapters that were dropped.
        calibration: whether calibration was measured.
        epochs: epochs in the history.
    """
    run, rng = RunFolder(folder), np.random.default_rng(1)
    sizes = {"validation": 300, "test": 200} if sizes is None else sizes
    shares = np.array(SHARES if len(labels) == len(SHARES) else [1.0] * len(labels))
    targets = {split: rng.choice(len(labels), size, p=shares / shares.sum()) for split, size in sizes.items()}
    noisy = {split: rng.random(size) < 0.015 for split, size in sizes.items()}
    dropped = {each.name for each in diverged}
    names = {f"r{r}-s{s}": (r, s) for s in seeds for r in accuracies if f"r{r}-s{s}" not in dropped}
    logits = {
        name: {
            split: _logits(rng, accuracies[rank], targets[split], noisy[split], len(labels))
            for split in sizes
        }
        for name, (rank, _) in names.items()
    }
    measured = {
        name: {
            split: _metrics(split, targets[split], each, labels, calibration) for split, each in of.items()
        }
        for name, of in logits.items()
    }
    largest = max(rank for rank, _ in names.values())
    cut = {
        f"{name}-cut{rank}": (name, rank, accuracy)
        for name, (of, _) in names.items()
        for rank, accuracy in (cuts or {}).items()
        if of == largest
    }
    logits |= {
        name: {s: _logits(rng, accuracy, targets[s], noisy[s], len(labels)) for s in sizes}
        for name, (_, _, accuracy) in cut.items()
    }
    recipe = Recipe(data="dair-ai/emotion", ranks=tuple(accuracies), seeds=tuple(seeds), epochs=epochs)
    results = Results(
        rankwise="0.1.0",
        base="smollm2-135m",
        labels=list(labels),
        texts={"train": 16_000, **sizes},
        notes=[],
        device="cpu",
        precision="bfloat16",
        threads=2,
        versions={"python": "3.11.7", "torch": "2.13.0"},
        adapters=[_row(name, rank, seed, measured[name]) for name, (rank, seed) in names.items()],
        baselines=_baselines(targets, labels, rng, calibration) if baselines else [],
        cuts=[
            CutResult(
                name=name,
                from_rank=largest,
                rank=rank,
                seed=names[source][1],
                kept=1 - 0.5 / rank,
                **{"test": None}
                | {s: _metrics(s, targets[s], logits[name][s], labels, calibration) for s in sizes},
            )
            for name, (source, rank, _) in cut.items()
        ],
        diverged=list(diverged),
    )
    files.write_text(run.recipe, recipe.to_toml())
    files.write_text(run.results, results.model_dump_json(indent=1) + "\n")
    files.write_text(run.timing, _timing(names).model_dump_json(indent=1) + "\n")
    for name, of in logits.items():
        files.write_bytes(run.logits / f"{name}.safetensors", safetensors.numpy.save(of))
    files.write_text(run.predictions, _predictions(targets, logits, labels, texts))
    files.write_text(run.history, _history(measured, epochs, rng))
    for name in names:
        files.write_text(run.adapters / name / "adapter_config.json", "{}")
    return run


def _logits(
    rng: np.random.Generator, accuracy: float, targets: NDArray[Any], noisy: NDArray[Any], classes: int
) -> NDArray[np.float32]:
    """(texts, classes) logits with a given accuracy, more confident if correct; noisy labels always fail."""
    confused = (targets + 1 + (rng.random(len(targets)) < 0.3)) % classes
    right = (rng.random(len(targets)) < accuracy / (1 - noisy.mean())) & ~noisy
    chosen = np.where(right, targets, np.where(noisy, (targets + 1) % classes, confused))
    height = np.where(right | noisy, 2 + 5 * rng.random(len(targets)), 1.5 + 3 * rng.random(len(targets)))
    logits = rng.normal(0, 0.6, (len(targets), classes))
    logits[np.arange(len(targets)), chosen] += height
    return logits.astype(np.float32)


def _metrics(
    split: str, targets: NDArray[Any], logits: NDArray[np.float32], labels: Sequence[str], calibration: bool
) -> Metrics:
    found = metrics(split, targets, logits, labels)
    return found if calibration else found.model_copy(update={"ece": None, "reliability": []})


def _row(name: str, rank: int, seed: int, found: Mapping[str, Metrics]) -> AdapterResult:
    trained = 3_456 + 57_600 * rank
    return AdapterResult(
        name=name,
        rank=rank,
        seed=seed,
        alpha=2.0 * rank,
        scale=2.0 if rank else 0.0,
        trainable_params=trained,
        total_params=134_515_008 + trained,
        trainable_percent=100 * trained / (134_515_008 + trained),
        merged_params=134_518_464,
        bank=1,
        adapter_bytes=4 * trained + 9_000,
        train_loss=0.4,
        kept_epoch=3,
        validation=found["validation"],
        test=found.get("test"),
    )


def _baselines(
    targets: Mapping[str, NDArray[Any]], labels: Sequence[str], rng: np.random.Generator, calibration: bool
) -> list[Baseline]:
    found = []
    for name, accuracy in (("majority class", None), ("TF-IDF + linear SVM", 0.885), ("untrained head", 0.2)):
        of = {}
        for split, each in targets.items():
            if accuracy is None:
                logits = np.zeros((len(each), len(labels)), np.float32)
                logits[:, np.bincount(each).argmax()] = 1
            else:
                logits = _logits(rng, accuracy, each, np.zeros(len(each), bool), len(labels))
            of[split] = _metrics(split, each, logits, labels, calibration)
        found.append(Baseline(name=name, validation=of["validation"], test=of.get("test")))
    return found


def _timing(names: Mapping[str, tuple[int, int]]) -> Timing:
    return Timing(
        created="2026-11-24T12:00:00+00:00",
        seconds={
            "data": 0.4, "base": 2.1, "tokens": 1.2, "load": 1.5, "train": 1800.0, "evaluate": 120.0,
            "write": 3.0, "total": 1930.0,
        },
        train_seconds={name: 1800.0 / len(names) for name in names},
        tokens_per_second=5123.4,
    )  # fmt: skip


def _predictions(
    targets: Mapping[str, NDArray[Any]],
    logits: Mapping[str, Mapping[str, NDArray[np.float32]]],
    labels: Sequence[str],
    texts: Sequence[str],
) -> str:
    columns = [column for name in logits for column in (name, f"{name} probability")]
    lines, number = [csv_line(["split", "text", "label", *columns])], 0
    for split, each in targets.items():
        of = {name: softmax(found[split].astype(np.float64), axis=-1) for name, found in logits.items()}
        for i, target in enumerate(each):
            text = texts[number % len(texts)] if texts else f"the {number}th text that somebody wrote"
            cells = [c for p in of.values() for c in (labels[int(p[i].argmax())], f"{p[i].max():.4f}")]
            lines.append(csv_line([split, text, labels[target], *cells]))
            number += 1
    return "".join(lines)


def _history(measured: Mapping[str, Mapping[str, Metrics]], epochs: int, rng: np.random.Generator) -> str:
    names, per_epoch, lines = list(measured), 40, []
    for step in range(1, epochs * per_epoch + 1):
        base = 0.25 + 1.4 * np.exp(-step / 25)
        losses = [float(base + 0.15 * abs(rng.normal())) for _ in names]
        line = {"kind": "step", "bank": 1, "adapters": names, "number": step, "epoch": step / per_epoch}
        lines.append(json.dumps(line | {"steps": epochs * per_epoch, "losses": losses}))
        if step % per_epoch == 0:
            epoch = step // per_epoch
            lines.append(json.dumps(_validation(names, measured, epoch, epochs)))
    return "\n".join(lines) + "\n"


def _validation(
    names: Sequence[str], measured: Mapping[str, Mapping[str, Metrics]], epoch: int, epochs: int
) -> dict[str, Any]:
    found = [measured[name]["validation"] for name in names]
    return {
        "kind": "validation",
        "bank": 1,
        "adapters": names,
        "epoch": epoch,
        "accuracy": [each.accuracy * (1 - 0.06 * (epochs - epoch)) for each in found],
        "macro_f1": [each.macro_f1 * (1 - 0.06 * (epochs - epoch)) for each in found],
        "log_loss": [(each.log_loss or 0.0) * (1 + 0.2 * (epochs - epoch)) for each in found],
    }
