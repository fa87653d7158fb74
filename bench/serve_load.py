"""Serving: `rankwise serve` beside a transformers pipeline behind FastAPI, under the same load, in one run.

Both servers run at the same time and are loaded in turn, by a load generator in a process of its own. Each
client waits for its answer before it sends the next text; one that is refused (429) asks again when the
server says, and its latency counts from the first time. The adapters have random weights; texts are of the
starter data or of emotion. The peer answers one request at a time, as such servers usually do, and switches
PEFT adapters between requests. The load generator runs on the same cores; the last column says how busy it
keeps one of them.

    python -m bench.serve_load [--base NAME] [--adapters 1,5,100] [--clients 1,8,64] [--record FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import torch

from bench import common
from rankwise.commands.classifier import Classifier
from rankwise.models import base as bases
from rankwise.models import peft_format
from rankwise.models.base import load_backbone
from rankwise.models.peft_format import SavedAdapter
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.bank import AdapterSpec, match_modules, tensor_shapes
from rankwise.store import files

LABELS = ("sadness", "joy", "love", "anger", "fear", "surprise")
RANKS = (4, 8, 16)
MAX_LENGTH = 64
OFFLINE_TEXTS = 512
SINGLY = 40


@dataclass(frozen=True)
class Measured:
    """What a server did under one load, in one round."""

    rate: float  # texts per second
    middle: float  # median latency, seconds
    slow: float  # 99th percentile
    added: float = 0.0  # median of latency less the time of the model; only of a server that tells it
    load: float = 0.0  # cores that the load generator kept busy


def main() -> None:
    """Measure every number of adapters and clients."""
    options = parse()
    if options.part == "peer":
        return serve_peer(options.folder, options.port)
    if options.part == "offline":
        return print(json.dumps(offline(options.folder, options.texts_file)))
    if options.part == "load":
        return print(json.dumps(asyncio.run(generate(options))))
    with tempfile.TemporaryDirectory() as name:
        rows, notes = compare(options, Path(name))
    header = ["adapters", "clients", "server", "texts/s", "of offline", "of the peer", "median ms", "99 % ms"]
    header.append("load, % of a core")
    command = f"python -m bench.serve_load --base {options.base} --adapters {options.adapters}"
    common.write_record(
        "Serving: rankwise beside a transformers pipeline",
        f"{command} --clients {options.clients} --seconds {options.seconds:g} --rounds {options.rounds}",
        notes,
        common.table(header, rows),
        options.record,
    )


def parse() -> argparse.Namespace:
    """The arguments. `--part` is for the processes that the benchmark starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=bases.SMOLLM2, help="base model")
    parser.add_argument("--adapters", default="1,5,100", help="numbers of adapters")
    parser.add_argument("--clients", default="1,8,64", help="numbers of clients")
    parser.add_argument("--seconds", type=float, default=20, help="seconds of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", type=Path, help="Markdown file to write the table to")
    parser.add_argument("--part", choices=["peer", "offline", "load"], help=argparse.SUPPRESS)
    for name in ("--folder", "--texts-file"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--names", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(options: argparse.Namespace, folder: Path) -> tuple[list[list[str]], dict[str, str]]:
    """(rows of the table, notes)."""
    numbers, clients = ([int(n) for n in given.split(",")] for given in (options.adapters, options.clients))
    name, texts, _ = common.labelled_texts()
    chosen = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:4096]]
    listed = folder / "texts.json"
    listed.write_text(json.dumps(chosen), encoding="utf-8")
    made = make_adapters(folder / "adapters", options.base, max(numbers))
    before = part("offline", "--folder", made[0], "--texts-file", listed)
    rows: list[list[str]] = []
    added = 0.0
    for number in numbers:
        with servers(made[:number]) as urls:
            for each in clients:
                found = rounds(options, urls, each, [path.name for path in made[:number]], listed)
                rows += rows_of(number, each, found, before["rate"])
                if number == each == 1:
                    added = found["rankwise"].added
    after = part("offline", "--folder", made[0], "--texts-file", listed)
    return rows, {
        "work": f"{options.base}, {name} texts, one per request; adapters of ranks "
        f"{', '.join(map(str, RANKS))} in turn, random weights, bfloat16 if the CPU has it",
        "offline": f"Classifier on {OFFLINE_TEXTS} of the texts: {before['rate']:.0f} texts/s before and "
        f"{after['rate']:.0f} after; one text {1000 * before['one']:.1f} ms in the median",
        "added by the server": f"{1000 * added:.2f} ms in the median over requests to the time of the "
        "forward pass, with one client and one adapter: HTTP, JSON, tokenizing, queue, and the client itself",
    }


def rows_of(adapters: int, clients: int, found: dict[str, Measured], offline: float) -> Iterator[list[str]]:
    """A row for each server."""
    for name, each in found.items():
        yield [
            str(adapters),
            str(clients),
            name,
            f"{each.rate:.1f}",
            f"{100 * each.rate / offline:.0f} %",
            f"{each.rate / found['pipeline'].rate:.2f}",
            f"{1000 * each.middle:.1f}",
            f"{1000 * each.slow:.1f}",
            f"{100 * each.load:.1f}",
        ]


def rounds(
    options: argparse.Namespace, urls: dict[str, str], clients: int, names: Sequence[str], texts: Path
) -> dict[str, Measured]:
    """The medians over rounds in which the servers take turns."""
    found: dict[str, list[Measured]] = {name: [] for name in urls}
    load = ["--clients", str(clients), "--seconds", str(options.seconds), "--names", ",".join(names)]
    for _ in range(options.rounds):
        for name, url in urls.items():
            measured = part("load", "--url", url, "--texts-file", texts, *load)
            found[name].append(Measured(**measured))
            print(
                f"{name}, {len(names)} adapters, {clients} clients: {measured['rate']:.1f}", file=sys.stderr
            )
    return {
        name: Measured(
            *(median(getattr(each, what) for each in all_of_them) for what in vars(all_of_them[0]))
        )
        for name, all_of_them in found.items()
    }


def part(name: str, *arguments: object) -> Any:
    """Run a part of the benchmark in a process of its own, and return what it prints."""
    command = [sys.executable, "-W", "ignore", "-m", "bench.serve_load", "--part", name]
    done = subprocess.run([*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def make_adapters(folder: Path, base: str, number: int) -> list[Path]:
    """Adapter folders with random tensors."""
    found = bases.find(base)
    backbone = load_backbone(found, torch.float32, torch.device("cpu"))
    modules = match_modules(list(backbone.modules()), backbone.default_targets)
    config = files.read_object(found.folder / "config.json")
    tokenizer = Tokenizer.load(found.folder).files()
    made = []
    for i in range(number):
        rank = RANKS[i % len(RANKS)]
        spec = AdapterSpec(rank, 16.0, 16.0 / rank, i, 0.0, modules)
        shapes = tensor_shapes(spec, backbone.modules(), backbone.d_model, len(LABELS))
        draw = torch.Generator().manual_seed(i)
        state = {name: 0.02 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
        saved = SavedAdapter(spec, state, LABELS, str(found.folder), MAX_LENGTH)
        made.append(folder / f"a{i}")
        peft_format.save(made[-1], saved, config, tokenizer)
    return made


@contextmanager
def servers(adapters: Sequence[Path]) -> Iterator[dict[str, str]]:
    """Both servers on free ports: name -> URL."""
    serve = [sys.executable, "-m", "rankwise", "serve", *map(str, adapters), "--port", "0", "--no-access-log"]
    peer = [sys.executable, "-W", "ignore", "-m", "bench.serve_load", "--part", "peer"]
    with (
        started(serve, r" at (http://\S+) ") as ours,
        started(
            [*peer, "--folder", str(adapters[0].parent), "--port", str(len(adapters))], r"^(http://\S+)"
        ) as theirs,
    ):
        yield {"rankwise": ours, "pipeline": theirs}


@contextmanager
def started(command: list[str], pattern: str) -> Iterator[str]:
    """Start a process, and wait for the URL in a line of its stderr."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if match := re.search(pattern, line):
                break
        else:
            raise SystemExit("".join(lines))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield match[1]
    finally:
        process.kill()
        process.wait()


def offline(folder: Path, texts_file: Path) -> dict[str, float]:
    """What a Classifier does without a server: texts per second, and median seconds of one text."""
    classifier = Classifier.load(folder)
    texts = json.loads(texts_file.read_text("utf-8"))[:OFFLINE_TEXTS]
    classifier(texts[:64])
    start = time.perf_counter()
    classifier(texts)
    rate = len(texts) / (time.perf_counter() - start)
    seconds = []
    for text in texts[:SINGLY]:
        start = time.perf_counter()
        classifier([text])
        seconds.append(time.perf_counter() - start)
    return {"rate": rate, "one": median(seconds)}


# The load generator


async def generate(options: argparse.Namespace) -> dict[str, float]:
    """Load a server, and return its rate and latencies. The first tenth of the time does not count."""
    texts, names = json.loads(options.texts_file.read_text("utf-8")), options.names.split(",")
    clients, numbers = int(options.clients), count()
    began, busy = time.perf_counter(), time.process_time()
    begin = time.perf_counter() + options.seconds / 10
    end = begin + options.seconds
    seconds: list[float] = []
    added: list[float] = []
    answered: list[float] = []

    async def client() -> None:
        url = urlsplit(options.url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        while (start := time.perf_counter()) < end:
            i = next(numbers)
            body = {"texts": texts[i % len(texts)], "adapters": names[i % len(names)]}
            content = json.dumps(body).encode()
            while (reply := await ask(reader, writer, content)).wait:
                await asyncio.sleep(reply.wait)
            answered.append(time.perf_counter())
            if answered[-1] >= begin:  # a slow server answers no request that began later
                seconds.append(answered[-1] - start)
                added.append(seconds[-1] - reply.model)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    middle, slow = np.quantile(seconds, [0.5, 0.99]).tolist()
    load = (time.process_time() - busy) / (time.perf_counter() - began)
    return {
        "rate": steady_rate([began, *answered], begin, end),
        "middle": middle,
        "slow": slow,
        "added": median(added),
        "load": load,
    }


def steady_rate(times: Sequence[float], begin: float, end: float) -> float:
    """Answers per second between the last one before `begin` and the last one before `end`.

    Servers answer in batches. A span that cut one would count its time and not its answers.

    Args:
        times: when the load began, and when each answer came, in this order.
        begin: when the measurement begins.
        end: when the clients stop to ask.
    """
    counted = [time for time in times if time <= end]
    first = max(i for i, time in enumerate(counted) if time <= begin)
    span = counted[-1] - counted[first]
    return (len(counted) - 1 - first) / span if span else 0.0


class Reply(NamedTuple):
    """What a response says of time, in seconds."""

    wait: int = 0  # until to ask again, if the server has too much to do; 0 if this is the answer
    model: float = 0.0  # of the forward passes; 0 if the server does not tell


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> Reply:
    """Send a request, and wait for the whole response."""
    head = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    status = (await reader.readline()).split()[1]
    headers: dict[bytes, bytes] = {}
    while line := (await reader.readline()).strip():
        name, _, value = line.partition(b":")
        headers[name.lower()] = value
    content = await reader.readexactly(int(headers[b"content-length"]))
    if status == b"429":
        return Reply(wait=int(headers[b"retry-after"]))
    assert status == b"200", content
    return Reply(model=float(headers.get(b"server-timing", b"=0").rpartition(b"=")[2]) / 1000)


# The peer


def serve_peer(folder: Path, number: int) -> None:
    """A transformers pipeline behind FastAPI, with a PEFT adapter for each name; prints its URL to stderr."""
    import socket

    import uvicorn
    from fastapi import Body, FastAPI

    label = peer_pipeline([folder / f"a{i}" for i in range(number)])
    app, lock = FastAPI(), threading.Lock()

    @app.post("/v1/predict")
    def predict(texts: str = Body(), adapters: str = Body()) -> list[Any]:
        with lock:  # the active adapter is a state of the model
            found: list[Any] = label(texts, adapters)
            return found

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as uvicorn's own have it
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
        config = uvicorn.Config(app, log_level="critical", access_log=False)
        uvicorn.Server(config).run(sockets=[listener])


def peer_pipeline(folders: Sequence[Path]) -> Any:
    """(text, adapter) -> labels and scores. A single adapter is merged, as rankwise does."""
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoTokenizer, pipeline

    from rankwise.hardware import dtype

    labels = dict(enumerate(LABELS))
    model: Any = AutoPeftModelForSequenceClassification.from_pretrained(
        str(folders[0]), adapter_name=folders[0].name, num_labels=len(labels), id2label=labels
    )
    for each in folders[1:]:
        model.load_adapter(str(each), adapter_name=each.name)
    model = (model.merge_and_unload() if len(folders) == 1 else model).to(dtype("auto", torch.device("cpu")))
    run: Any = pipeline(
        "text-classification", model=model.eval(), tokenizer=AutoTokenizer.from_pretrained(folders[0])
    )

    def label(text: str, adapter: str) -> Any:
        if len(folders) > 1:
            model.set_adapter(adapter)
        with torch.inference_mode():
            return run([text], truncation=True, max_length=MAX_LENGTH, top_k=None)

    return label


if __name__ == "__main__":
    main()
