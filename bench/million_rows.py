"""Reads, tokenizes and classifies a million rows of CSV and Parquet. Prints rows/s and peak memory.

    python -m bench.million_rows [--rows 1000000] [--only JOB]

The files, and a GPT-2 and an adapter so small that I/O dominates, are generated in a temporary folder. Each
job runs in a separate process to measure its peak memory; one job only does the imports, for comparison.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

WORDS = (
    "the",
    "of",
    "and",
    "a",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "was",
    "for",
    "on",
    "are",
    "with",
    "his",
    "they",
)
LABELS = ("joy", "anger", "fear")
CHUNK = 10_000
LIMIT_GB = 2.0


def main() -> None:
    """Generate the files, run each job, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", choices=sorted(JOBS), help="one job alone")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job == "make":
        make(given.folder, given.rows)
        return
    if given.job:
        measure(given.job, given.folder, given.rows)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_job(
            "make", folder, given.rows
        )  # in a child process, because a child's peak memory starts at its parent's size
        print(f"rows: {given.rows:,}; {versions()}\n", flush=True)
        print("| job | rows/s | seconds | peak memory, GB |\n| --- | --- | --- | --- |", flush=True)
        peaks = [run(folder, job, given.rows) for job in ([given.only] if given.only else JOBS)]
    sys.exit(0 if max(peaks) < LIMIT_GB else f"peak memory is over {LIMIT_GB} GB")


def run(folder: Path, job: str, rows: int) -> float:
    """Run a job in its own process and print its row; return its peak memory in GB."""
    found = json.loads(run_job(job, folder, rows))
    seconds, peak = float(found["seconds"]), float(found["peak_gb"])
    rate = f"{rows / seconds:,.0f}" if found["rows"] else ""
    print(f"| {job} | {rate} | {seconds:.1f} | {peak:.2f} |", flush=True)
    return peak


def run_job(job: str, folder: Path, rows: int) -> bytes:
    """The output of a job, run in a separate process."""
    command = [sys.executable, __file__, "--job", job, "--folder", str(folder), "--rows", str(rows)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def measure(job: str, folder: Path, rows: int) -> None:
    """Run a job in this process; print its measurements as JSON."""
    import rankwise.commands.predict  # noqa: F401  # imports are not what is measured

    began = time.perf_counter()
    done = JOBS[job](folder)
    seconds = time.perf_counter() - began
    assert done in (0, rows), done
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    print(json.dumps({"rows": done, "seconds": seconds, "peak_gb": peak / 1e9}))


def imports(folder: Path) -> int:
    """Do nothing, for comparison."""
    return 0


def load_csv(folder: Path) -> int:
    """Load and check a CSV file as for training, then tokenize it."""
    return _load(folder / "rows.csv", folder)


def load_parquet(folder: Path) -> int:
    """The same for a Parquet file."""
    return _load(folder / "rows.parquet", folder)


def predict_csv(folder: Path) -> int:
    """Classify a CSV file."""
    return _predict(folder, "csv")


def predict_parquet(folder: Path) -> int:
    """Classify a Parquet file."""
    return _predict(folder, "parquet")


def _load(path: Path, folder: Path) -> int:
    from rankwise.data.load import load
    from rankwise.models.tokenizer import Tokenizer
    from rankwise.recipe import Recipe

    found = load(Recipe(data=str(path)))
    tokenizer = Tokenizer.load(folder / "base")
    return sum(len(tokenizer(split.texts, 128)) for split in (found.train, found.validation))


def _predict(folder: Path, suffix: str) -> int:
    from rankwise.cli import terminal
    from rankwise.commands.classifier import Classifier
    from rankwise.commands.predict import predict_file

    classifier = Classifier.load(folder / "adapter", device="cpu", precision="float32")
    with terminal.ProgressBars() as bars:
        return predict_file(
            classifier,
            folder / f"rows.{suffix}",
            folder / f"out.{suffix}",
            on_stage=bars.begin,
            on_read=bars.advance,
            on_rows=bars.advance,
        )


def make(folder: Path, rows: int) -> None:
    """Generate both files with the same rows, and a base and an adapter."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    make_adapter(folder)
    schema = pa.schema({"id": pa.int64(), "text": pa.string(), "label": pa.string()})
    with (
        (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file,
        pq.ParquetWriter(folder / "rows.parquet", schema) as table,
    ):
        writer = csv.writer(file)
        writer.writerow(schema.names)
        for chunk in chunks(rows):
            writer.writerows(chunk)
            cells = zip(zip(*chunk, strict=True), schema.types, strict=True)
            columns = [pa.array(column, kind) for column, kind in cells]
            table.write_table(pa.Table.from_arrays(columns, schema=schema))


def chunks(rows: int) -> Iterator[list[tuple[int, str, str]]]:
    """Rows of 5 to 35 words; deterministic."""
    draw = random.Random(0)
    for first in range(0, rows, CHUNK):
        yield [
            (i, " ".join(draw.choices(WORDS, k=draw.randint(5, 35))), LABELS[i % 3])
            for i in range(first, min(first + CHUNK, rows))
        ]


def make_adapter(folder: Path) -> None:
    """A GPT-2 with random weights and one layer of width 8, and an untrained adapter of rank 0."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel

    from rankwise.models import peft_format as adapter
    from rankwise.nn.bank import AdapterSpec

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    base = folder / "base"
    config = GPT2Config(
        vocab_size=backend.get_vocab_size(), n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(base)
    backend.save(str(base / "tokenizer.json"))
    spec = AdapterSpec(0, 1.0, 0.0, 0, 0.0, ())
    saved = adapter.SavedAdapter(spec, {"score": torch.randn(len(LABELS), 8)}, LABELS, str(base), 128)
    adapter.save(
        folder / "adapter", saved, json.loads((base / "config.json").read_text()), [base / "tokenizer.json"]
    )


def versions() -> str:
    """Versions of Python and of the packages used."""
    names = ("torch", "tokenizers", "pyarrow", "rankwise")
    return f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {version(name)}" for name in names)


JOBS = {
    "imports alone": imports,
    "CSV: read and tokenized": load_csv,
    "Parquet: read and tokenized": load_parquet,
    "CSV: predicted": predict_csv,
    "Parquet: predicted": predict_parquet,
}

if __name__ == "__main__":
    main()
