"""Exports: file sizes, speed in ONNX Runtime beside rankwise and transformers, and what int8 costs.

GPT-2's 124M shape with random weights and an adapter of rank 8, or a trained adapter. Everything is on the
CPU; tokenization is included, and batches are in order of length.

    python -m bench.export [--adapter FOLDER] [--texts N] [--rounds N] [--record FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from bench import common
from bench.predict import SINGLY, Label, by_turns, one_by_one, peer
from rankwise import Classifier, Export, export
from rankwise.models import base as bases
from rankwise.models import peft_format
from rankwise.models.gpt2 import GPT2Config
from rankwise.models.registry import FAMILIES
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.bank import HEAD, AdapterSpec
from rankwise.store import files

KINDS = {
    "transformers": ("merged", False),
    "onnxruntime": ("onnx", False),
    "onnxruntime, int8": ("onnx", True),
}
"""What runs an export -> (target, whether it is in int8)."""
BATCH = 32


def main() -> None:
    """Export, then classify the same texts alternately with every library, then some one at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", type=Path, help="adapter folder, instead of random weights")
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", default="{}", help='overrides of GPT-2, such as {"n_layer": 2}')
    parser.add_argument("--record", type=Path, help="Markdown file to write the table to")
    options = parser.parse_args()
    name, texts, _ = common.labelled_texts()
    chosen = [texts[i] for i in np.random.default_rng(0).choice(len(texts), options.texts)]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        adapter = options.adapter or random_adapter(place, json.loads(options.shape))
        made = {
            what: export(adapter, to, place / f"export{i}", int8=int8, max_loss=100 if int8 else None)
            for i, (what, (to, int8)) in enumerate(KINDS.items())
        }
        ways: dict[str, Label] = {
            f"rankwise, {precision}": Classifier.load(adapter, device="cpu", precision=precision)
            for precision in ("float32", "bfloat16")
        }
        ways |= {what: running(what, Path(each.folder)) for what, each in made.items()}
        rates = {way: len(chosen) / each for way, each in by_turns(ways, chosen, options.rounds).items()}
        singly = one_by_one(ways, chosen[:SINGLY], options.rounds)
        rows = [
            [way, f"{rates[way]:.0f}", f"{1000 * singly[way]:.1f}", *measured(made.get(way))] for way in ways
        ]
    weights = f"the adapter {adapter.name}" if options.adapter else "GPT-2 124M shape, random weights, rank 8"
    given = f" --adapter {options.adapter}" if options.adapter else ""
    given += f" --shape '{options.shape}'" if options.shape != "{}" else ""
    common.write_record(
        "Exports beside rankwise",
        f"python -m bench.export{given} --texts {options.texts} --rounds {options.rounds}",
        {
            "work": f"{weights}; {len(chosen)} {name} texts, batches of {BATCH}",
            "verified on": next(iter(made.values())).texts_from,
            "libraries": ", ".join(
                f"{each} {version(each)}" for each in ("onnx", "onnxruntime", "tokenizers")
            ),
        },
        common.table(
            [
                "what",
                "texts/s",
                "one text, median ms",
                "model, MB",
                "largest difference of a logit",
                "labels changed",
            ],
            rows,
        ),
        options.record,
    )


def measured(found: Export | None) -> list[str]:
    """Size of the model's files, and differences from the adapter in float32; nothing for rankwise itself."""
    if found is None:
        return ["", "", ""]
    size = sum(each for name, each in found.file_bytes.items() if name.startswith("model"))
    changed = f"{found.labels_changed:,} of {found.texts:,}"
    return [f"{size / 1e6:.0f}", f"{found.largest_difference:.1e}", changed]


def running(what: str, folder: Path) -> Label:
    """A function that classifies texts with a library and an export."""
    return onnx(folder) if what.startswith("onnx") else merged(folder)


def merged(folder: Path) -> Label:
    """transformers' classifier, in padded batches in order of length."""
    import transformers

    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    return peer(model.eval(), tokenizer, ordered=True)


def onnx(folder: Path) -> Label:
    """ONNX Runtime with as many threads as torch, in padded batches in order of length."""
    import onnxruntime
    from tokenizers import Tokenizer as Backend

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    tokenizer = Backend.from_file(str(folder / "tokenizer.json"))

    def label(texts: Sequence[str]) -> Any:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: dict[int, Any] = {}
        for i in range(0, len(texts), BATCH):
            members = order[i : i + BATCH]
            encoded = tokenizer.encode_batch([texts[m] for m in members])
            inputs = {
                "input_ids": np.array([each.ids for each in encoded]),
                "attention_mask": np.array([each.attention_mask for each in encoded]),
            }
            found |= dict(zip(members, session.run(["logits"], inputs)[0], strict=True))
        return [found[i] for i in range(len(texts))]

    return label


def random_adapter(place: Path, shape: dict[str, Any]) -> Path:
    """An adapter folder and its base model, GPT-2 with random weights and SmolLM2's tokenizer."""
    config = GPT2Config.from_json(shape)
    base = place / "base"
    base.mkdir()
    tokenizer = Tokenizer.load(bases.find(bases.SMOLLM2).folder)
    for path in tokenizer.files():
        files.copy(path, base / path.name)
    described = {"model_type": "gpt2", **shape}
    files.write_json(base / "config.json", described)
    taken = Taken()
    FAMILIES["gpt2"].backbone(config, taken, torch.float32, "cpu")
    files.write_bytes(base / "model.safetensors", safetensors.torch.save(taken.tensors))
    modules = {name: shape for name, shape in config.module_shapes().items() if name.endswith("c_attn")}
    state = {HEAD: torch.randn(common.CLASSES, config.d_model)}
    for name, (n_in, n_out) in modules.items():
        state |= {
            f"{name}.lora_A": torch.randn(8, n_in) * 0.02,
            f"{name}.lora_B": torch.randn(n_out, 8) * 0.02,
        }
    spec = AdapterSpec(8, 16.0, 2.0, 0, 0.0, tuple(modules))
    labels = tuple(str(i) for i in range(common.CLASSES))
    saved = peft_format.SavedAdapter(spec, state, labels, str(base), 128)
    peft_format.save(place / "adapter", saved, described, tokenizer.files())
    return place / "adapter"


class Taken(common.RandomWeights):
    """Random weights that are remembered."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a random tensor of the shape."""
        self.tensors[name] = super().take(name, shape)
        return self.tensors[name]


if __name__ == "__main__":
    main()
