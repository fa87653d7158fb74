"""Small sweeps with pinned results: `python -m tests.golden.runs` prints their digests.

A digest covers what a sweep computes: the tensors of each adapter and of its logits, predictions.csv, the
loss of every step, and the numbers of results.json. File names and JSON keys are excluded, so that
refactoring changes no digest, but any changed number does.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from rankwise import sweep
from rankwise.training.callbacks import Callback
from tests import tiny

TABLE = Path(__file__).with_name("digests.json")
FIGURES = ("accuracy", "macro_f1", "log_loss", "ece", "confusion")
PARAMETERS = ("rank", "seed", "alpha", "scale", "trainable_params", "total_params", "merged_params")


@dataclass(frozen=True)
class Case:
    """A sweep, and the step after which it is stopped and resumed."""

    base: str
    changes: dict[str, Any] = field(default_factory=dict)
    stop: int | None = None


CASES = {
    "gpt2-float32": Case("gpt2"),
    "gpt2-bfloat16": Case("gpt2", {"precision": "bfloat16"}),
    "gpt2-no-dropout": Case("gpt2", {"base_dropout": False}),
    "gpt2-lora-dropout": Case("gpt2", {"lora_dropout": 0.2, "targets": ("all-linear",), "last_layers": 1}),
    "gpt2-balanced-best": Case("gpt2", {"class_weights": "balanced", "keep": "best", "schedule": "cosine"}),
    "gpt2-resumed": Case("gpt2", {"lora_dropout": 0.1}, stop=8),
    "gpt2-without-rank-0": Case("gpt2", {"ranks": (1, 4), "keep": "best"}),
    "llama-float32": Case("llama", {"lora_dropout": 0.1, "targets": ("all-linear",)}),
    "llama-bfloat16": Case("llama", {"precision": "bfloat16"}),
    "llama-resumed": Case("llama", {"precision": "bfloat16", "alpha_mode": "rslora"}, stop=11),
    "qwen2-float32": Case("qwen2"),
    "qwen2-bfloat16": Case("qwen2", {"precision": "bfloat16", "lora_dropout": 0.1}),
}


class _Stop(Callback):
    """Interrupts a sweep after a step, as Ctrl-C does."""

    def __init__(self, after: int | None) -> None:
        self.after = after

    def step(self, adapters: Any, number: int, steps: int, losses: Any) -> None:
        """A step is done."""
        if number == self.after:
            raise KeyboardInterrupt


def platform() -> str:
    """What the last digits depend on: torch's version and the instructions that its products use."""
    able = torch.cpu.get_capabilities()
    found = [
        name for name in ("avx2", "avx512_bw", "avx512_vnni", "avx512_bf16", "amx_bf16") if able.get(name)
    ]
    return f"torch {torch.__version__.partition('+')[0]}, {able.get('architecture')}, {' '.join(found)}"


def digests(name: str, folder: Path) -> dict[str, str]:
    """What a case computes -> its SHA-256. The sweep runs in `folder`, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _digests(CASES[name], folder)
    finally:
        torch.set_num_threads(threads)


def _digests(case: Case, folder: Path) -> dict[str, str]:
    base = {"gpt2": tiny.gpt2, "llama": tiny.llama, "qwen2": qwen2}[case.base](folder / "base")
    data = tiny.data_folder(folder / "data")
    recipe = tiny.recipe(base, data, **{"seeds": (0, 110), **case.changes})
    run = folder / "run"
    if case.stop is None:
        sweep(recipe, run)
    else:
        try:
            sweep(recipe, run, _Stop(case.stop))
        except KeyboardInterrupt:
            sweep(recipe, run, resume=True)
        else:
            raise AssertionError("the sweep was to be interrupted")
    return {
        "adapters": _digest(_tensors(_asked_for(run.glob("adapters/*/adapter_model.safetensors")))),
        "logits": _digest(_tensors(_asked_for(run.glob("logits/*.safetensors")))),
        "predictions": _digest(_predictions(run)),
        "losses": _digest(_losses(run)),
        "figures": _digest(_figures(run)),
    }


def qwen2(folder: Path) -> Path:
    """A Qwen2: as the tiny Llama, with biases on query, key and value."""
    tiny.llama(folder)
    torch.manual_seed(3)
    shape = json.loads((folder / "config.json").read_text("utf-8"))
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "initializer_range", "pad_token_id",
    )  # fmt: skip
    model = Qwen2ForCausalLM(Qwen2Config(**{name: shape[name] for name in names}))
    for name, tensor in model.named_parameters():
        if name.endswith("proj.bias"):
            torch.nn.init.normal_(tensor, std=0.2)
    model.save_pretrained(folder)
    return folder


def _digest(parts: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _asked_for(paths: Iterable[Path]) -> list[Path]:
    """Without the linear probe, a baseline, whose figures are digested with those of the other baselines."""
    return sorted(path for path in paths if "linear-probe" not in str(path))


def _tensors(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        yield (path.parent.name if path.name.startswith("adapter_") else path.stem).encode()
        for name, tensor in sorted(safetensors.numpy.load_file(path).items()):
            yield f"{name} {tensor.dtype} {tensor.shape}".encode() + np.ascontiguousarray(tensor).tobytes()


def _predictions(run: Path) -> Iterator[bytes]:
    """The cells of predictions.csv, in order, without the baselines' columns."""
    with (run / "predictions.csv").open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    adapters = {path.name for path in _asked_for(run.glob("adapters/*"))}
    names = {"split", "text", "label", *adapters, *(f"{name} probability" for name in adapters)}
    columns = [i for i, name in enumerate(header) if name in names]
    yield json.dumps([[line[i] for i in columns] for line in (header, *lines)]).encode()


def _losses(run: Path) -> Iterator[bytes]:
    """Each adapter's losses, gradient norms and validation figures, in order."""
    found: dict[str, list[Any]] = {path.name: [] for path in _asked_for(run.glob("adapters/*"))}
    for line in map(json.loads, (run / "history.jsonl").read_text("utf-8").splitlines()):
        keys = [key for key in ("losses", "grad_norms", "accuracy", "macro_f1", "log_loss") if key in line]
        for k, name in enumerate(line["adapters"]):
            if name in found:
                found[name].append([line.get("number"), *(line[key][k] for key in keys)])
    yield json.dumps(found, sort_keys=True).encode()


def _figures(run: Path) -> Iterator[bytes]:
    """What results.json says of each adapter and of each baseline."""
    results = json.loads((run / "results.json").read_text("utf-8"))
    for row in results["adapters"]:
        yield json.dumps(
            [row["name"], row["train_loss"], row["kept_epoch"], *map(row.get, PARAMETERS)]
        ).encode()
    for row in [*results["adapters"], *results.get("baselines", results.get("baselines", []))]:
        for split in ("validation", "test"):
            yield json.dumps([row["name"], *map(row[split].get, FIGURES)]).encode()


def every() -> dict[str, dict[str, str]]:
    """Every case's digests."""
    found = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = digests(name, Path(folder))
    return found


if __name__ == "__main__":
    known = json.loads(TABLE.read_text("utf-8")) if TABLE.exists() else {}
    found = {platform(): every()}
    if sys.argv[1:] == ["--write"]:
        TABLE.write_text(json.dumps(known | found, indent=1, sort_keys=True) + "\n", "utf-8")
    else:
        print(json.dumps(found, indent=1, sort_keys=True))
