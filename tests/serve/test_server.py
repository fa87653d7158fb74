"""The listener and the threads of the server: nothing delays an answer."""

from __future__ import annotations

import asyncio
import resource
import shutil
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from rankwise.serve import limits
from rankwise.serve.lineup import Lineup
from rankwise.serve.loading import Changes, Loader
from rankwise.serve.server import _allow_connections, _Protocol, listening
from rankwise.serve.service import Service
from tests.serve.made import make_adapter


def test_a_connection_does_not_wait_for_acknowledgments() -> None:
    with listening("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_adapters_are_read_in_a_thread_that_ends(
    tmp_path: Path, gpt2_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its OpenMP threads end with it, and leave the cores to those of the model's thread."""
    readers: list[threading.Thread] = []
    load, reload = Loader.load, Loader.reload

    def loading(self: Loader) -> Lineup:
        readers.append(threading.current_thread())
        return load(self)

    def reloading(self: Loader, current: Lineup) -> tuple[Lineup, Changes]:
        readers.append(threading.current_thread())
        return reload(self, current)

    monkeypatch.setattr(Loader, "load", loading)
    monkeypatch.setattr(Loader, "reload", reloading)
    adapter = make_adapter(tmp_path / "one", gpt2_base)
    service = Service(Loader([str(adapter)], device="cpu", precision="float32"))
    asyncio.run(service.reload())
    assert len(readers) == 2 and not any(reader.is_alive() for reader in readers)


def test_a_small_queue_has_room_for_a_text(tmp_path: Path, gpt2_base: Path) -> None:
    """Whatever the options, the server starts, and a text that an adapter reads can be answered."""
    adapter = make_adapter(tmp_path / "served", gpt2_base, max_length=16)
    options = {"batch_tokens": 1, "queue_tokens": 1, "max_wait": 600.0}
    service = Service(Loader([str(adapter)], device="cpu", precision="float32"), **options)
    assert service.engine.capacity == 16
    with service.engine:
        service.engine.warm_up(service.lineup)
    shutil.rmtree(adapter)
    make_adapter(adapter, gpt2_base, max_length=24)
    asyncio.run(service.reload())
    assert service.engine.capacity == 24


# Clients that do not read

ASKED = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


async def large(scope: Any, receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    """An application whose answers do not fit into the buffers of a connection."""
    content = b"x" * (1 << 24)
    headers = [(b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def is_released(requests: list[bytes], seconds: float) -> bool:
    """Whether the server drops, within some seconds, a client that sends requests and reads nothing."""
    config = uvicorn.Config(large, http=_Protocol, ws="none", lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Protocol(config, state, {}), "127.0.0.1", 0)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, server.sockets[0].getsockname())
        for request in requests:
            await loop.sock_sendall(client, request)
            await asyncio.sleep(0.1)
        assert state.connections
        for _ in range(int(10 * seconds)):
            await asyncio.sleep(0.1)
            if not state.connections and not state.tasks:
                break
        released = not state.connections and not state.tasks
        for each in list(state.connections):
            each.transport.abort()
    server.close()
    await asyncio.sleep(0.1)
    return released


@pytest.mark.parametrize(
    "requests",
    [[ASKED * 300], [ASKED] * 4, [ASKED], [LAST]],
    ids=["pipelined", "one by one", "one", "last"],
)
def test_a_client_that_never_reads_is_dropped(requests: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WRITE_SECONDS", 0.6)
    assert asyncio.run(is_released(requests, 3))


# The limit of open files


@pytest.mark.parametrize(
    ("soft", "hard", "wanted"),
    [
        (1024, 4096, (4096, 4096)),
        (1024, 1 << 20, (65_536, 1 << 20)),
        (1024, resource.RLIM_INFINITY, (65_536, resource.RLIM_INFINITY)),
        (100_000, 1 << 20, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None),
    ],
)
def test_the_limit_of_open_files_is_only_raised(
    soft: int, hard: int, wanted: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append(limits))
    _allow_connections()
    assert asked == ([] if wanted is None else [wanted])


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_a_server_starts_with_the_limit_that_it_has(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS refuses some limits that it says it allows."""

    def refuse(which: int, limits: tuple[int, int]) -> None:
        raise error("not allowed")

    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    _allow_connections()
