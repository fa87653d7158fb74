"""The outermost layer of the application: limits, token, overload, log and metrics of every request.

It reads the whole body before the framework sees the request, so that size, time and memory are bounded in
one place. An overloaded server refuses a request here, before it reads the body.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from rankwise.serve import limits
from rankwise.serve.problems import Problem
from rankwise.serve.service import Service

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("rankwise.serve")
HEALTH = frozenset({"/livez", "/readyz"})
OPEN = HEALTH | {"/", "/docs", "/openapi.json"}
"""Paths that need no token: they tell nothing about the adapters."""
MODEL = frozenset({"/v1/predict", "/v1/explain", "/classify", "/predict"})
"""Paths that run the model."""
PATHS = OPEN | MODEL | {"/v1/adapters", "/v1/adapters/reload", "/metrics"}
LOCAL = re.compile(rb"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]*)?", re.IGNORECASE)
"""The header Host of a request that was meant for this machine."""
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """Checks each request, and records how it ended.

    Args:
        app: the application.
        service: the service, for its metrics and its state.
        token: bearer token that requests need; empty for none.
        only_local: whether to refuse requests that name another host than this machine. A page on the web can
            let the name of its own host point to 127.0.0.1 (DNS rebinding), and then read what it answers.
    """

    def __init__(self, app: App, service: Service, token: str, only_local: bool = False) -> None:
        self._app, self._service, self._only_local = app, service, only_local
        self._expected = f"Bearer {token}".encode() if token else b""
        self._held = 0  # bytes of all bodies in progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, as ASGI prescribes."""
        if scope["type"] != "http":
            return
        response = _Response(send, lambda: self._service.draining)
        start, bodies = time.perf_counter(), _Bodies(receive)
        try:
            self._check(scope)
            await self._read(scope, bodies)
            await self._app(scope, bodies.receive, response.send)
        except Problem as problem:
            await problem.response()(scope, receive, response.send)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the framework has answered 500, and lets the error through
            log.error(json.dumps({"event": "error", "error": repr(error)[:500]}), exc_info=error)
        finally:
            self._held -= len(bodies.body)
            self._record(scope, response.status, time.perf_counter() - start)

    def _check(self, scope: Scope) -> None:
        """Refuse what can be refused by the headers alone."""
        path = scope["path"]
        if self._only_local:
            _require_local(scope)
        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        if self._expected and path not in OPEN and not hmac.compare_digest(given, self._expected):
            raise Problem(
                "unauthorized", "the bearer token is missing or wrong", "Authorization: Bearer TOKEN"
            )
        length = headers.get(b"content-length", b"0")
        if len(length) > 15 or int(length) > limits.BODY_BYTES:
            raise _too_large()
        if path in MODEL and self._service.engine.is_overloaded:
            raise self._service.overload()

    async def _read(self, scope: Scope, bodies: _Bodies) -> None:
        """Read the body, within its limits."""
        try:
            async with asyncio.timeout(limits.BODY_SECONDS):
                while not bodies.complete:
                    self._held += await bodies.read()
                    if len(bodies.body) > limits.BODY_BYTES:
                        raise _too_large()
                    if self._held > limits.ALL_BODY_BYTES:
                        raise Problem("unavailable", "too many large requests at once", retry_after=1)
        except TimeoutError:
            what = f"the body did not arrive within {limits.BODY_SECONDS:.0f} seconds"
            raise Problem("request_timeout", what) from None

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in PATHS else "other"
        self._service.metrics.on_request(path, status, seconds)
        if not log.isEnabledFor(logging.INFO):
            return
        client = scope.get("client") or ("",)
        record = {
            "event": "request",
            "time": round(time.time(), 3),
            "client": client[0],
            "method": scope["method"][:16],
            "path": path,
            "status": status,
            "ms": round(1000 * seconds, 2),
        }
        log.info(json.dumps(record))


class _Bodies:
    """Reads the body of a request, and gives it to the application in one piece."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.body = bytearray()
        self.complete = self._given = False

    async def read(self) -> int:
        """Read one more piece; returns its size in bytes."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Problem("client_closed", "the client went away")
        piece = message.get("body", b"")
        self.body += piece
        self.complete = not message.get("more_body", False)
        return len(piece)

    async def receive(self) -> Message:
        """ASGI's receive: first the body, then whatever follows."""
        if self._given:
            return await self._receive()
        self._given = True
        return {"type": "http.request", "body": bytes(self.body), "more_body": False}


class _Response:
    """Sends a response with the headers that all responses have, and remembers its status."""

    def __init__(self, send: Send, is_last: Callable[[], bool]) -> None:
        self._send, self._is_last = send, is_last
        self.status = 499  # until a response has begun

    async def send(self, message: Message) -> None:
        """ASGI's send."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {name for name, _ in message.get("headers", ())}
            added = [pair for pair in HEADERS if pair[0] not in own]
            if self._is_last():
                added.append((b"connection", b"close"))
            message["headers"] = [*message.get("headers", ()), *added]
        await self._send(message)


def _require_local(scope: Scope) -> None:
    """Refuse a request for another host; a browser always names one."""
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if not all(LOCAL.fullmatch(host) for host in hosts):
        what = "without a token, the server answers to localhost, 127.0.0.1 and [::1] only"
        raise Problem("forbidden", what, "start it with RANKWISE_TOKEN or --token-file, or with --no-auth")


def _too_large() -> Problem:
    return Problem(
        "too_large", f"the body has more than {limits.BODY_BYTES} bytes", "send fewer texts at once"
    )
