"""The training step of rankwise compared with transformers' Trainer + PEFT, on the same texts.

The shape of GPT-2 (124M) or SmolLM2-135M with random weights, LoRA rank 4 on PEFT's default target modules
of every layer, dropout as in the published recipe. Each contender is a separate process, which also reports
its memory. They alternate over several rounds, so that changes in the machine's speed affect all of them. In
each round, every contender trains on the same texts once, after a warmup step.

    python -m bench.train_step [--base NAME] [--targets NAMES] [--steps N] [--rounds N] [--batch N]
        [--only REGEX] [--full] [--record FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import common
from rankwise.models.llama import SMOLLM2
from rankwise.models.registry import KNOWN, build, family_of, parse_config
from rankwise.nn.bank import AdapterSpec, match_modules
from rankwise.nn.batch import Ids
from rankwise.recipe import Recipe
from rankwise.training.trainer import Trainer, TrainingData

RANK, EPOCH = 4, 16_000
RANKS = (1, 2, 4, 8, 16)
GPT2 = "gpt2"
BASES = {GPT2: "GPT-2 124M shape", SMOLLM2: "SmolLM2-135M shape"}


@dataclass(frozen=True)
class Way:
    """How a contender trains."""

    dtype: str
    ranks: tuple[int, ...] = (RANK,)
    padded: int | None = None  # tokens; None: to the longest text of the batch, or no padding
    grouped: bool = False


@dataclass(frozen=True)
class Work:
    """What a contender trains."""

    json: dict[str, Any]  # the base model's config.json
    targets: tuple[str, ...] = ()  # target modules; empty: PEFT's default
    batch: int = 32  # texts

    @property
    def modules(self) -> tuple[str, ...]:
        """Target modules, as PEFT names them."""
        return self.targets or family_of(self.json).default_targets


PUBLISHED = "PEFT, float32, padded to 128 (the published recipe)"
WAYS = {
    PUBLISHED: Way("float32", padded=128),
    "PEFT, float32, padded to the longest": Way("float32"),
    "PEFT, float32, grouped by length": Way("float32", grouped=True),
    "PEFT, bfloat16, grouped by length (its best)": Way("bfloat16", grouped=True),
    "rankwise, float32": Way("float32"),
    "rankwise, bfloat16": Way("bfloat16"),
    "rankwise, float32, five ranks in one pass": Way("float32", RANKS),
    "rankwise, bfloat16, five ranks in one pass": Way("bfloat16", RANKS),
}


def main() -> None:
    """Run the contenders alternately and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", choices=BASES, default=GPT2)
    parser.add_argument("--targets", default="", help="target modules, such as q_proj,v_proj or all-linear")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a turn")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each contender")
    parser.add_argument("--batch", type=int, default=32, help="texts of one adapter in a step")
    parser.add_argument(
        "--only", default="", help="only contenders whose name this regular expression is found in"
    )
    parser.add_argument("--full", action="store_true", help="a whole epoch of 16,000 texts; takes hours")
    parser.add_argument("--shape", default="{}", help='overrides of the base, such as {"n_layer": 2}')
    parser.add_argument("--record", type=Path, help="Markdown file to write the table to")
    parser.add_argument("--contender", help="for the benchmark itself: run as this one")
    options = parser.parse_args()
    if options.full:
        options.steps = EPOCH // options.batch
    targets = tuple(filter(None, options.targets.split(",")))
    work = Work(KNOWN[options.base] | json.loads(options.shape), targets, options.batch)
    if options.contender:
        return contend(options.contender, work, options.steps)
    arguments = ["-m", "bench.train_step"]
    for name in ("base", "targets", "shape", "steps", "batch"):
        arguments += [f"--{name}", str(getattr(options, name))]
    names = [name for name in WAYS if re.search(options.only, name)]
    before = rates(work, names)
    done = common.take_turns({name: [*arguments, "--contender", name] for name in names}, options.rounds)
    report(done, work, options, before)


def contend(name: str, work: Work, steps: int) -> None:
    """Run one contender."""
    texts, labels = common.draw((steps + 1) * work.batch)
    run = peer if name.startswith("PEFT") else ours
    run(WAYS[name], work, texts, labels)


def ours(way: Way, work: Work, texts: list[Ids], labels: list[int]) -> None:
    """rankwise's training loop; the last batch of texts is for the warmup step."""
    backbone, batch = build(work.json, common.RandomWeights(), getattr(torch, way.dtype)), work.batch
    modules = match_modules(list(backbone.modules()), work.modules)
    specs = [AdapterSpec(rank, 0.8, 0.8 / rank, 110, 0.1, modules, learning_rate=5e-4) for rank in way.ranks]
    settings = Recipe(epochs=1, batch_size=batch, learning_rate=5e-4).train
    names, targets = [str(i) for i in range(common.CLASSES)], np.array(labels)
    clock = common.Clock()
    clock.loaded()
    Trainer(backbone, specs, TrainingData(texts[-batch:], targets[-batch:], names), settings).step()
    trainer = Trainer(backbone, specs, TrainingData(texts[:-batch], targets[:-batch], names), settings)
    while not trainer.done:
        clock.begin()
        trainer.step()
        clock.end()
    clock.tell()


def peer(way: Way, work: Work, texts: list[Ids], labels: list[int]) -> None:
    """transformers' Trainer with PEFT's model, as a user would write it."""
    import peft
    import transformers

    family, batch = family_of(work.json), work.batch
    settings = work.json | {"num_labels": common.CLASSES, "pad_token_id": 0, "use_cache": False}
    config = getattr(transformers, family.peer.config)(**settings)
    model: Any = getattr(transformers, family.architecture)(config)
    alpha: Any = 0.8  # a fraction, as in the published recipe; PEFT's annotation asks for a whole number
    targets = "all-linear" if "all-linear" in work.modules else list(work.modules)
    lora = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS,
        r=RANK,
        lora_alpha=alpha,
        lora_dropout=0.1,
        target_modules=targets,
        fan_in_fan_out=family.fan_in_fan_out,
    )
    model = peft.get_peft_model(model, lora)
    rows = [{"input_ids": ids, "labels": label} for ids, label in zip(texts, labels, strict=True)]
    clock = common.Clock()
    clock.loaded()
    trainer(model, rows[-batch:], way, batch, []).train()
    trainer(model, rows[:-batch], way, batch, [clock_callback(clock)]).train()
    clock.tell()


def trainer(model: Any, rows: list[dict[str, Any]], way: Way, batch: int, callbacks: list[Any]) -> Any:
    """A Trainer with the published recipe."""
    import transformers

    def collate(members: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = way.padded or max(len(row["input_ids"]) for row in members)
        ids = torch.zeros(len(members), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(members):
            ids[i, : len(row["input_ids"])] = torch.from_numpy(row["input_ids"])
            mask[i, : len(row["input_ids"])] = 1
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": torch.tensor([r["labels"] for r in members]),
        }

    settings = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        learning_rate=5e-4,
        weight_decay=0.01,
        bf16=way.dtype == "bfloat16",
        use_cpu=True,
        train_sampling_strategy="group_by_length" if way.grouped else "random",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        seed=110,
    )
    return transformers.Trainer(
        model=model, args=settings, train_dataset=rows, data_collator=collate, callbacks=callbacks
    )


def clock_callback(clock: common.Clock) -> Any:
    """A Trainer callback that times each step."""
    import transformers

    class Callback(transformers.TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.begin()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.end()

    return Callback()


@dataclass(frozen=True)
class Rates:
    """Rates of matrix products, in GFLOP/s."""

    peak: dict[torch.dtype, dict[int, float]]  # of one large product, by dtype and rows
    own: dict[torch.dtype, dict[int, float]]  # of the base's own products


def rates(work: Work, names: Iterable[str]) -> Rates:
    """The rates at present, of the precisions of these contenders."""
    dtypes = dict.fromkeys(getattr(torch, WAYS[name].dtype) for name in names)
    own = partial(common.own_rate, config=parse_config(work.json))
    return Rates(common.rates(dtypes=dtypes), common.rates(own, dtypes))


def report(done: dict[str, common.Contender], work: Work, options: argparse.Namespace, before: Rates) -> None:
    """Print the record and write it to a file."""
    texts, _ = common.draw((options.steps + 1) * options.batch)
    lengths = [len(ids) for ids in texts[: -options.batch]]
    speed = {
        name: options.rounds * len(lengths) * len(WAYS[name].ranks) / sum(done[name].seconds) for name in done
    }
    peers = [rate for name, rate in speed.items() if name.startswith("PEFT")] or [float("nan")]
    after, flop = rates(work, done), common.train_flop(parse_config(work.json), lengths) / len(lengths)
    rows = []
    for name, rate in speed.items():
        way = WAYS[name]
        dtype, size = getattr(torch, way.dtype), 3200 if len(way.ranks) > 1 else 640
        limit, own = (
            max(a[dtype][size], b[dtype][size])
            for a, b in ((before.peak, after.peak), (before.own, after.own))
        )
        rows.append(
            [
                name,
                f"{rate:.1f}",
                f"{rate * np.mean(lengths):,.0f}",
                f"{100 * rate * flop / 1e9 / limit:.0f} %",
                f"{100 * rate * flop / 1e9 / own:.0f} %",
                f"{done[name].beyond / 1e9:.2f}",
                f"{rate / speed[PUBLISHED]:.1f}" if PUBLISHED in speed else "-",
                f"{rate / max(peers):.2f}",
            ]
        )
    header = [
        "what",
        "texts/s",
        "real tokens/s",
        "of the matrix rate",
        "of its own products' rate",
        "GB beyond the model",
        "times the published recipe",
        "times PEFT's best",
    ]
    notes = {
        "work": f"{BASES[options.base]}, random weights, LoRA rank {RANK} (or {RANKS}) on "
        f"{', '.join(work.modules)} of every layer, dropout on, "
        f"batch {options.batch}, {len(lengths)} {common.labelled_texts()[0]} texts of {np.mean(lengths):.1f} "
        f"tokens in the mean, {flop / 1e9:.2f} GFLOP a text",
        "matrix rate, GFLOP/s before": common.rates_note(before.peak),
        "and after": common.rates_note(after.peak),
        "rate of the model's own products before": common.rates_note(before.own),
        "the same after": common.rates_note(after.own),
        "CPU time": common.undisturbed(done.values()),
    }
    settings = (
        f"--base {options.base} --steps {options.steps} --rounds {options.rounds} --batch {options.batch}"
    )
    settings += f" --targets {options.targets}" if options.targets else ""
    settings += f' --only "{options.only}"' if options.only else ""
    title = "Training step: rankwise beside transformers + PEFT"
    title += "" if options.base == GPT2 else f", {BASES[options.base]}"
    common.write_record(
        title, f"python -m bench.train_step {settings}", notes, common.table(header, rows), options.record
    )


if __name__ == "__main__":
    main()
