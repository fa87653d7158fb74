"""Test data: base models with a few thousand random parameters, and texts classified by a keyword."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rankwise import Recipe

Rows = list[tuple[str, str]]  # text, label

LABELS = ("joy", "anger", "fear")
KEYWORDS = {
    "joy": ("glad", "merry", "sunny"),
    "anger": ("cross", "furious", "bitter"),
    "fear": ("scared", "shaky", "uneasy"),
}
OPENINGS = ("today i feel", "my sister was", "after the long meeting we all went home", "so", "it left me")
SIZES = {"train": 48, "validation": 18, "test": 12}
END = "<|endoftext|>"


def rows(number: int, seed: int, labels: tuple[str, ...] = LABELS) -> Rows:
    """Texts with alternating labels; each text ends with a keyword of its label."""
    draw = random.Random(seed)
    chosen = [labels[i % len(labels)] for i in range(number)]
    return [(f"{draw.choice(OPENINGS)} {draw.choice(KEYWORDS[label])}", label) for label in chosen]


def texts(number: int, seed: int) -> list[str]:
    return [text for text, _ in rows(number, seed)]


def write_csv(path: Path, content: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *content])
    return path


def data_folder(folder: Path, splits: tuple[str, ...] = tuple(SIZES)) -> Path:
    """A folder of train.csv, validation.csv and test.csv."""
    for seed, split in enumerate(splits):
        write_csv(folder / f"{split}.csv", rows(SIZES[split], seed))
    return folder


def gpt2(folder: Path) -> Path:
    """A GPT-2 without a pad token, like OpenAI's. Dropout is the default 0.1."""
    size = _tokenizer(folder, {})
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=size,
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def llama(folder: Path) -> Path:
    """A Llama with grouped queries and a pad token."""
    size = _tokenizer(folder, {"pad_token": END})
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def recipe(base: Path, data: Path, **changes: Any) -> Recipe:
    """A recipe that runs in about a second."""
    values: dict[str, Any] = {
        "base": str(base),
        "data": str(data),
        "ranks": (0, 1, 4),
        "seeds": (110,),
        "alpha": 4.0,
        "alpha_mode": "fixed",
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 0.02,
        "tune": False,
        "max_length": 32,
        "precision": "float32",
        "device": "cpu",
    }
    return Recipe(**(values | changes))


def _tokenizer(folder: Path, extra: dict[str, str]) -> int:
    """Write a byte-level BPE vocabulary and return its size."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts(60, seed=9), trainer)
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END, **extra}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    size: int = backend.get_vocab_size()
    return size


def multi_rows(number: int, seed: int) -> list[tuple[str, list[str]]]:
    """Texts with 0 to 3 labels; each text ends with a keyword of each of its labels."""
    draw = random.Random(seed)
    found = []
    for i in range(number):
        labels = draw.sample(LABELS, i % (len(LABELS) + 1))
        words = [draw.choice(KEYWORDS[label]) for label in labels] or ["nothing"]
        found.append((f"{draw.choice(OPENINGS)} {' '.join(words)}", labels))
    return found


def multi_folder(folder: Path) -> Path:
    """A folder of train.jsonl, validation.jsonl and test.jsonl, with lists of labels."""
    folder.mkdir(parents=True)
    for seed, (split, number) in enumerate({"train": 96, "validation": 48, "test": 24}.items()):
        lines = [json.dumps({"text": text, "labels": labels}) for text, labels in multi_rows(number, seed)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder
