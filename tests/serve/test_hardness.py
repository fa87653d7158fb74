"""Malformed requests, crowds, overload, clients that leave or are slow, and drains under load.

Numbers are small by default; `RANKWISE_FAULTS=full` uses those of the issue.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rankwise import Classifier
from rankwise.serve import limits
from tests import tiny
from tests.serve.load import Connection, Reply, ask_patiently, connected, request
from tests.serve.running import AUTHORIZED, TOKEN, Running, allow_connections, running

FULL = os.environ.get("RANKWISE_FAULTS") == "full"
MALFORMED = 20_000 if FULL else 400
CLIENTS = 1000 if FULL else 100
OVERLOAD_SECONDS = 30 if FULL else 4
DISCONNECTS = 2000 if FULL else 100
SLOW = 200 if FULL else 20
DRAINS = 20 if FULL else 1
EXAMPLES = 200 if FULL else 8
SPARE = 200 << 20
"""Bytes that memory may grow by: buffers of the allocator, and compiled products of new shapes."""


@pytest.fixture(scope="module", autouse=True)
def _many_connections() -> None:
    allow_connections()


@pytest.fixture(scope="module")
def loaded(served_folder: Path) -> Iterator[Running]:
    """A server that can be overloaded without spoiling other tests."""
    names = ("three", "seven", "two")
    options = ("--precision", "float32", "--no-access-log")
    with running(*(served_folder / name for name in names), *options, token=TOKEN) as found:
        yield found


def is_well(server: Running) -> bool:
    """Whether the server is alive, answers, and has an empty queue."""
    reply = asyncio.run(ask_patiently(server.address, {"texts": "so glad"}))
    return (
        server.process.poll() is None and reply.status == 200 and server.metric("rankwise_queue_tokens") == 0
    )


# Malformed requests


def test_schemathesis_finds_no_server_error(loaded: Running, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{loaded.url}/openapi.json"),
            *("--header", f"Authorization: {AUTHORIZED['Authorization']}", "--seed", "1"),
            *("--max-examples", str(EXAMPLES), "--request-timeout", "30", "--phases", "examples,fuzzing"),
            *("--checks", "not_a_server_error,response_schema_conformance,content_type_conformance"),
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=2400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert is_well(loaded)


def malformed(draw: random.Random) -> bytes:
    """Bytes that are no request, or one with something wrong."""
    good = request("/v1/predict", {"texts": "so glad"})
    at = draw.randrange(len(good))
    kinds = [
        draw.randbytes(draw.randint(1, 2000)),
        good[:at],
        good[:at] + draw.randbytes(draw.randint(1, 20)) + good[at:],
        good.replace(b"Content-Length", b"Content-Length: 5\r\nContent-Length"),
        good.replace(b"Content-Length: ", b"Content-Length: -"),
        good.replace(b"Content-Length: ", b"Content-Length: 99999999999999999999"),
        good.replace(b"Content-Length", b"Transfer-Encoding: chunked\r\nContent-Length"),
        good.replace(b"HTTP/1.1", draw.choice([b"HTTP/9.9", b"HTTP/1.0", b"", b"FTP/1.1"])),
        good.replace(b"POST", draw.choice([b"CONNECT", b"TRACE", b"P\x00ST", b"X" * 9000, b"OPTIONS"])),
        good.replace(b"/v1/predict", draw.choice([b"/%00", b"/" + b"a" * 70_000, b"*", b"/..%2f", b"/\xff"])),
        good.replace(b"Host", b"X: " + b"y" * draw.choice([100, 70_000]) + b"\r\nHost"),
        good.replace(b"Host", b"".join(b"X-%d: y\r\n" % i for i in range(500)) + b"Host"),
        good.replace(b"Host", b"Upgrade: websocket\r\nConnection: Upgrade\r\nHost"),
        good.replace(b"Host", b"Expect: 100-continue\r\nHost"),
        good.replace(b"\r\n", b"\n"),
        good * draw.randint(2, 5),
        b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(200),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"",
    ]  # fmt: skip
    return draw.choice(kinds)


async def send_raw(address: tuple[str, int], data: bytes, seconds: float) -> bytes:
    """Send bytes, and read for a short time."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(1 << 16), seconds)
    except (TimeoutError, ConnectionError):
        return b""
    finally:
        writer.close()


def test_malformed_connections_do_no_harm(loaded: Running) -> None:
    draw, statuses = random.Random(3), Counter[str]()

    async def some(number: int) -> None:
        for _ in range(number):
            found = await send_raw(loaded.address, malformed(draw), 0.5)
            statuses[found[9:12].decode("ascii", "replace")] += 1

    async def all_of_them() -> None:
        await asyncio.gather(*(some(MALFORMED // 50) for _ in range(50)))

    asyncio.run(all_of_them())
    assert sum(statuses.values()) == MALFORMED
    assert not [status for status in statuses if status.startswith("5")], statuses
    assert {"400", "404", "422"} & set(statuses)
    assert is_well(loaded)


# Crowds


def test_a_crowd_gets_its_own_answers(loaded: Running, served_folder: Path) -> None:
    names = ("three", "seven", "two")
    texts = [f"{text} {i}" for i, text in enumerate(tiny.texts(CLIENTS, seed=1))]
    classifiers = {
        name: Classifier.load(served_folder / name, device="cpu", precision="float32") for name in names
    }
    offline = {name: classifier.predict_proba(texts) for name, classifier in classifiers.items()}

    async def ask(i: int) -> np.ndarray:
        name = names[i % 3]
        reply = await ask_patiently(loaded.address, {"texts": texts[i], "adapters": name})
        assert reply.status == 200, reply.body
        ((answer,),) = (each["answers"] for each in reply.json["predictions"])
        assert answer["adapter"] == name
        found = {each["label"]: each["probability"] for each in answer["probabilities"]}
        return np.array([found[label] for label in classifiers[name].labels])

    async def crowd() -> list[np.ndarray]:
        return await asyncio.gather(*(ask(i) for i in range(CLIENTS)))

    for i, found in enumerate(asyncio.run(crowd())):
        np.testing.assert_allclose(found, offline[names[i % 3]][i], atol=1e-5, rtol=0)
    assert is_well(loaded)


# Overload


def body_of(number: int) -> dict[str, Any]:
    """A request that is mostly work for the model."""
    texts = [f"{text} {number}" for text in tiny.texts(24, seed=number % 50)]
    return {"texts": texts, "adapters": ["three", "seven", "two"], "probabilities": False}


async def closed_loop(address: tuple[str, int], clients: int, seconds: float) -> float:
    """Requests per second of clients that each wait for their answer."""
    end, done, numbers = time.monotonic() + seconds, 0, count()

    async def client() -> None:
        nonlocal done
        async with connected(address) as connection:
            while time.monotonic() < end:
                reply = await connection.ask("/v1/predict", body_of(next(numbers)))
                done += reply.status == 200

    await asyncio.gather(*(client() for _ in range(clients)))
    return done / seconds


async def open_loop(
    address: tuple[str, int], rate: float, seconds: float
) -> tuple[float, Counter[int], list[str]]:
    """Send requests at a rate, whatever the answers. Returns goodput per second, statuses, and waits."""
    statuses, waits, start = Counter[int](), list[str](), time.monotonic()

    async def one(number: int) -> None:
        async with connected(address) as connection:
            reply = await connection.ask("/v1/predict", body_of(number))
            statuses[reply.status] += 1
            if reply.status == 429:
                waits.append(reply.headers["retry-after"])

    tasks = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
        tasks.append(asyncio.create_task(one(number)))
    await asyncio.gather(*tasks)
    return statuses[200] / (time.monotonic() - start), statuses, waits


def test_an_overload_is_refused_at_once_and_forgotten(loaded: Running) -> None:
    capacity = asyncio.run(closed_loop(loaded.address, 4, 3))
    before = loaded.memory
    goodput, statuses, waits = asyncio.run(open_loop(loaded.address, 4 * capacity, OVERLOAD_SECONDS))
    assert set(statuses) <= {200, 429}
    assert all(int(wait) >= 1 for wait in waits)
    # The quick tests share their cores with the load generator and with each other.
    assert goodput >= (0.85 if FULL else 0.4) * capacity
    assert loaded.memory - before < SPARE
    start = time.monotonic()
    assert is_well(loaded)
    assert time.monotonic() - start < 2


# Clients that leave, and clients that are slow


def test_clients_that_leave_leave_nothing_behind(loaded: Running) -> None:
    assert is_well(loaded)
    before = loaded.memory
    draw = random.Random(4)

    async def leave(number: int) -> None:
        _, writer = await asyncio.open_connection(*loaded.address)
        data = request("/v1/predict", body_of(number))
        writer.write(data[: draw.choice([len(data), len(data), len(data) // 2])])
        await asyncio.sleep(draw.random() / 20)
        writer.transport.abort()

    async def all_of_them() -> None:
        for first in range(0, DISCONNECTS, 50):
            await asyncio.gather(*(leave(first + i) for i in range(50)))

    asyncio.run(all_of_them())
    assert wait_until(lambda: loaded.metric("rankwise_queue_tokens") == 0, 120)
    assert is_well(loaded)
    assert loaded.memory - before < SPARE


@pytest.mark.parametrize(
    "start",
    [
        b"GET /livez HTTP/1.1\r\nX: ",
        b"GET /",
        b"POST /v1/predict HTTP/1.1\r\nAuthorization: Bearer %s\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "
        % TOKEN.encode(),
    ],
    ids=["header", "path", "trailer"],
)
def test_what_has_no_end_is_cut_off(loaded: Running, start: bytes) -> None:
    async def send_on() -> bytes:
        reader, writer = await asyncio.open_connection(*loaded.address)
        writer.write(start)
        received = asyncio.create_task(reader.read(1 << 16))
        for _ in range(100):
            if received.done() or writer.is_closing():
                break
            writer.write(b"y" * 10_000)
            await asyncio.sleep(0.02)
        writer.close()
        return await received

    assert asyncio.run(send_on()).startswith(b"HTTP/1.1 400 ")
    assert is_well(loaded)


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_request_to_upgrade_is_answered_without(loaded: Running, pieces: int) -> None:
    """As of Java's client, which asks for HTTP/2. The connection can be used again."""
    asked = request("/v1/predict", {"texts": "so glad"})
    upgrade = asked.replace(b"Host", b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHost", 1)
    size = -(-len(upgrade) // pieces)

    async def answers() -> list[Reply]:
        reader, writer = await asyncio.open_connection(*loaded.address)
        found = []
        for data in (upgrade, asked):
            for start in range(0, len(data), size):
                writer.write(data[start : start + size])
                await asyncio.sleep(0.05)
            found.append(await Connection(reader, writer).reply())
        writer.close()
        return found

    first, second = asyncio.run(answers())
    assert first.status == 200 and first.json["predictions"] == second.json["predictions"]


def test_slow_clients_are_cut_off(loaded: Running) -> None:
    async def slow(number: int, header: bool) -> float:
        """Seconds until the server closes a connection that sends one byte at a time."""
        data, start = request("/v1/predict", {"texts": "so"}), time.monotonic()
        reader, writer = await asyncio.open_connection(*loaded.address)
        writer.write(b"" if header else data[:-5])
        closed = asyncio.create_task(reader.read(1 << 16))
        for i in range(60):
            if closed.done():
                break
            writer.write(data[i : i + 1] if header else b"")
            await asyncio.sleep(0.5)
        found = await closed
        assert header or b" 408 " in found
        writer.close()
        return time.monotonic() - start

    async def all_of_them() -> list[float]:
        async def quick() -> float:
            await asyncio.sleep(3)
            start = time.monotonic()
            reply = await ask_patiently(loaded.address, {"texts": "so glad"})
            assert reply.status == 200
            return time.monotonic() - start

        *seconds, answer = await asyncio.gather(*(slow(i, header=i % 4 != 0) for i in range(SLOW)), quick())
        assert answer < 2
        return seconds

    assert max(asyncio.run(all_of_them())) < limits.BODY_SECONDS + 8
    assert is_well(loaded)


def wait_until(condition: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


# Drains


def test_a_drain_answers_what_was_accepted(served_folder: Path) -> None:
    for _ in range(DRAINS):
        with running(served_folder / "three", "--precision", "float32", "--drain-seconds", "0.5") as server:
            early, statuses = asyncio.run(drain_under_load(server))
            assert server.process.wait(30) == 0
            assert set(statuses) == {200}
            assert early == 0, "a request that was sent before the signal was lost"
            logged = [record for record in server.requests if record["path"] == "/v1/predict"]
            assert Counter(record["status"] for record in logged) == statuses


async def drain_under_load(server: Running) -> tuple[int, Counter[int]]:
    """Send SIGTERM under load. Returns how many earlier requests were lost, and the statuses of all."""
    statuses, lost_early, signalled = Counter[int](), 0, False

    async def client() -> None:
        nonlocal lost_early
        for number in count():
            early = not signalled
            try:
                async with connected(server.address) as connection:
                    reply = await connection.ask("/v1/predict", {"texts": f"so glad {number}"})
                    statuses[reply.status] += 1
            except OSError:  # refused, or closed before it was accepted
                lost_early += early
                return

    async def stop() -> None:
        nonlocal signalled
        await asyncio.sleep(1)
        signalled = True
        server.process.send_signal(signal.SIGTERM)

    await asyncio.gather(*(client() for _ in range(16)), stop())
    return lost_early, statuses


def test_a_signal_that_was_ignored_at_the_start_stays_ignored(served_folder: Path) -> None:
    """A script starts its background jobs so. The server inherits it from here."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with running(served_folder / "three", "--drain-seconds", "0") as server:
            signal.signal(signal.SIGINT, before)
            assert httpx.get(f"{server.url}/readyz").status_code == 200  # by now it heeds signals
            server.process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                server.process.wait(1)
            assert httpx.get(f"{server.url}/readyz").status_code == 200
            assert server.stop() == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_readiness_fails_while_draining(served_folder: Path) -> None:
    async def ready(server: Running) -> tuple[int, str]:
        async with connected(server.address) as connection:
            reply = await connection.ask("/readyz", method="GET")
            assert json.loads(reply.body)
            return reply.status, reply.headers.get("connection", "")

    with running(served_folder / "three", "--drain-seconds", "300") as server:
        assert asyncio.run(ready(server)) == (200, "")
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert asyncio.run(ready(server)) == (503, "close")
        server.process.send_signal(signal.SIGTERM)  # the second one does not wait
        assert server.process.wait(60) == 0
