"""A load generator: requests over plain asyncio connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.serve.running import AUTHORIZED

HEAD = (
    "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: " + AUTHORIZED["Authorization"] + "\r\n"
    "Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
)


@dataclass(frozen=True)
class Reply:
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(path: str, body: Any = None, method: str = "POST") -> bytes:
    """The bytes of a request with a JSON body."""
    content = b"" if body is None else json.dumps(body).encode()
    return HEAD.format(method=method, path=path, length=len(content)).encode() + content


class Connection:
    """One connection that is kept alive."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, path: str, body: Any = None, method: str = "POST") -> Reply:
        """Send a request, and wait for its response."""
        self._writer.write(request(path, body, method))
        return await self.reply()

    async def reply(self) -> Reply:
        """Read a response.

        Raises:
            ConnectionError: the server closed the connection before a response began.
            asyncio.IncompleteReadError: it did so within one.
        """
        first = await self._reader.readline()
        if not first:
            raise ConnectionResetError("closed without a response")
        headers: dict[str, str] = {}
        while (line := await self._reader.readline()).strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return Reply(int(first.split()[1]), headers, body)


@asynccontextmanager
async def connected(address: tuple[str, int]) -> AsyncIterator[Connection]:
    """A connection to a server."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


async def ask_patiently(address: tuple[str, int], body: Any) -> Reply:
    """Ask for a prediction on a new connection; an overloaded server is asked again."""
    async with connected(address) as connection:
        while (reply := await connection.ask("/v1/predict", body)).status == 429:
            await asyncio.sleep(float(reply.headers["retry-after"]) / 4)
        return reply
