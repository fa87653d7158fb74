"""The process of the server: socket, timeouts, signals, and the way it stops.

SIGTERM or Ctrl-C drains the server. It still answers for `drain_seconds`, tells every client to close its
connection, and fails its readiness check, so that a load balancer stops sending. Then it stops listening,
answers what it has accepted, and exits. A second signal ends it at once. A signal that the process was
started to ignore, as a background job of a script is, stays ignored.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import HANDLED_SIGNALS

from rankwise.errors import UsageError
from rankwise.serve import limits
from rankwise.serve.app import create_app
from rankwise.serve.service import Service

STOP_SECONDS = 30.0
"""Time for the answers in progress, after the server has stopped listening."""
_BACKLOG = 2048
_OPEN_FILES = 65_536
_HEAD_BYTES = 1 << 16
"""Most bytes of a request's line and headers, or of anything else that the parser collects beside a body."""


def run(
    service: Service,
    *,
    host: str,
    port: int,
    token: str,
    only_local: bool,
    access_log: bool,
    drain_seconds: float,
    on_listening: Callable[[str], None],
) -> None:
    """Serve until a signal stops the process.

    Args:
        service: the adapters and the engine.
        host: address to listen on.
        port: port to listen on; 0 for any free one.
        token: bearer token that requests need; empty for none.
        only_local: whether to refuse requests whose header Host names another host than this machine.
        access_log: whether to log each request as a line of JSON to stderr.
        drain_seconds: time between the signal and the end of listening.
        on_listening: called with the URL once the server listens.

    Raises:
        UsageError: the address cannot be listened on.
    """
    _log_to_stderr(access_log)
    _allow_connections()
    sys.setswitchinterval(0.001)  # the model's thread must not keep health checks waiting
    with listening(host, port) as listener, service.engine:
        service.engine.warm_up(service.lineup)
        gc.freeze()  # what is there by now stays, so the garbage collector need not search it
        config = uvicorn.Config(
            create_app(service, token, only_local=only_local),
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(limits.IDLE_SECONDS),
            timeout_graceful_shutdown=int(STOP_SECONDS),
            backlog=_BACKLOG,
        )
        on_listening(_url(listener))
        _Server(config, service, drain_seconds).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Drains before it stops."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float) -> None:
        super().__init__(config)
        self._service, self._drain_seconds = service, drain_seconds
        self._stop_at = float("inf")

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals within the block, as uvicorn does, but not those that are ignored."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heeded = [number for number in HANDLED_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self.handle_exit) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; at the second signal, stop."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
        self._service.draining = True
        self._stop_at = time.monotonic() + self._drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; whether to stop listening."""
        if time.monotonic() >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)


class _Protocol(HttpToolsProtocol):
    """A connection that is closed if its client is too slow, or if it sends a head without end."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None
        self._unparsed = 0  # bytes since the last complete head or part of a body

    # asyncio declares BaseTransport here. A TCP server always passes a Transport, which uvicorn declares too.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect(limits.HEADER_SECONDS)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._feed(data)
        in_progress = self.cycle is not None and not self.cycle.response_complete
        if in_progress:
            self._expect(None)
        elif self._deadline is None:
            self._expect(limits.HEADER_SECONDS)

    def _feed(self, data: bytes) -> None:
        self._unparsed += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            self._feed_without_upgrade(data[stop.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("The request is not HTTP.")
        else:
            if self._unparsed > _HEAD_BYTES:
                self.send_400_response("The headers are too long.")

    def _feed_without_upgrade(self, rest: bytes) -> None:
        """Parse a head again without its request to upgrade, as of Java's client, which asks for HTTP/2.

        The parser takes what follows such a head for another protocol, and not for the body.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if method == b"CONNECT":
            return self.send_400_response("This is no proxy.")
        kept = [each for each in self.headers if each[0] not in (b"connection", b"upgrade")]
        head = [b"%s %s HTTP/%s" % (method, self.url, version.encode()), *map(b": ".join, kept)]
        self.parser = httptools.HttpRequestParser(self)
        return self._feed(b"\r\n".join(head) + b"\r\n\r\n" + rest)

    def on_headers_complete(self) -> None:
        self._unparsed = 0
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect(limits.WRITE_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._expect(None)

    def on_response_complete(self) -> None:
        # A connection that is to be closed still waits until the client has read everything.
        self._expect(limits.WRITE_SECONDS if self.transport.is_closing() else None)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)  # there is nothing left to be written
        self._expect(None)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._expect(limits.WRITE_SECONDS)

    def _expect(self, seconds: float | None) -> None:
        """Abort the connection after some seconds, unless something is called before.

        While a client does not read, its deadline stays: its next request would wait for it without one.
        """
        if seconds is None and self.flow.write_paused:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)


def listening(host: str, port: int) -> socket.socket:
    """A listener on an address.

    Raises:
        UsageError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        hint = "choose another --port, or stop the server that uses it"
        raise UsageError(f"cannot listen on {host}:{port}: {reason}", hint=hint) from None
    # Connections inherit it. Without it, the body of an answer waits until the client acknowledges its
    # headers, which takes up to 40 ms. asyncio sets it for listeners of its own only.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _log_to_stderr(access_log: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("rankwise.serve")
    log.handlers[:], log.propagate = [handler], False
    log.setLevel(logging.INFO if access_log else logging.ERROR)
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # it warns about every malformed request
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


def _allow_connections() -> None:
    """Raise the limit of open files, of which each connection is one, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with suppress(ValueError, OSError):  # macOS refuses some limits although there is no hard one
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
