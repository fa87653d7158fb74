"""The listener and the threads of the server: nothing delays an answer."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path

import pytest

from rankwise.serve.lineup import Lineup
from rankwise.serve.loading import Changes, Loader
from rankwise.serve.server import listening
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
