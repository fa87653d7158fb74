"""Errors as JSON: a stable code, a message, and a hint.

Every error has the same form, whatever endpoint it comes from::

    {"error": {"code": "unknown_adapter", "message": "no adapter 'r3'", "hint": "GET /v1/adapters lists ..."}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from rankwise.errors import RankwiseError

CODES: dict[str, tuple[int, str]] = {
    "invalid_json": (400, "the body is not JSON"),
    "unauthorized": (401, "the bearer token is missing or wrong"),
    "forbidden": (403, "the server was started without a token, which this path or the header Host needs"),
    "not_found": (404, "there is no such path"),
    "unknown_adapter": (404, "there is no such adapter or rank"),
    "method_not_allowed": (405, "the path has another method"),
    "request_timeout": (408, "the body did not arrive in time"),
    "too_large": (413, "the body, or the answer, is too large"),
    "too_many_texts": (413, "too many texts, or texts times adapters"),
    "text_too_long": (413, "a text has too many characters or tokens"),
    "invalid_request": (422, "a field is unknown, missing, or has a wrong type or value"),
    "invalid_text": (422, "a text is empty or cannot be tokenized"),
    "overloaded": (429, "the queue is full; Retry-After says when to try again"),
    "client_closed": (499, "the client went away before the answer; only in the log"),
    "internal": (500, "an error in the server"),
    "unavailable": (503, "the server is shutting down, or has too many large requests"),
}
"""Code -> status and meaning."""


class Problem(HTTPException):
    """An error that ends a request."""

    def __init__(self, code: str, message: str, hint: str = "", *, retry_after: float | None = None) -> None:
        headers = None if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
        super().__init__(CODES[code][0], message, headers)
        self.code, self.message, self.hint = code, message, hint

    def response(self) -> Response:
        """The error as JSON."""
        body = {"error": {"code": self.code, "message": self.message, "hint": self.hint}}
        # ASCII, because a message may quote a lone surrogate, which UTF-8 cannot encode.
        content = json.dumps(body).encode("ascii")
        return Response(content, self.status_code, self.headers, "application/json")


def of_rankwise(error: RankwiseError) -> Problem:
    """The problem for an error in the texts of a request."""
    return Problem("invalid_text", error.message, error.hint)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Handle errors of the framework, such as an unknown path."""
    assert isinstance(error, HTTPException)
    if isinstance(error, Problem):
        return error.response()
    if error.status_code == 405:
        problem = Problem("method_not_allowed", f"{request.method} is not allowed here", "see /docs")
        return _with(problem.response(), error.headers)
    if error.status_code == 404:
        return Problem("not_found", "there is no such path", "see /docs").response()
    return Problem("invalid_json", "the body cannot be read as JSON").response()


async def on_crash(request: Request, error: Exception) -> Response:
    """Handle an error in the server; the message says nothing about it."""
    return Problem("internal", "internal error", "the server's log has the details").response()


def invalid(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """The problem for the errors of pydantic, of which the most telling one is reported.

    A field of several types has an error for each. The deepest, and the one that is not about the type,
    comes from the type that was meant.
    """
    error = max(errors, key=lambda each: (len(each["loc"]), not each["type"].endswith("_type")))
    kind, place = str(error["type"]), error["loc"]
    if not place:
        hint = "send Content-Type: application/json"
        return Problem("invalid_request", "the body must be a JSON object", hint)
    # Between the field and an index stand the names of types.
    where = ".".join([str(place[0])[:100], *(str(part) for part in place[1:] if isinstance(part, int))])
    return Problem(_code(kind, where), f"{where}: {error['msg']}"[:500], "see /docs")


def _code(kind: str, where: str) -> str:
    if kind == "string_too_long":
        return "text_too_long"
    is_texts = where in ("texts", "input", "inputs")
    return "too_many_texts" if kind == "too_long" and is_texts else "invalid_request"


def _with(response: Response, headers: Mapping[str, str] | None) -> Response:
    response.headers.update(headers or {})
    return response
