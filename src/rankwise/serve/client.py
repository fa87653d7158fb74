"""A classifier on a server, for `rankwise predict --url`. It needs nothing but Python's own HTTP client."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from rankwise.commands.classifier import Classifier
from rankwise.commands.explain import TokenEffects
from rankwise.commands.texts import LongTexts, Texts
from rankwise.errors import DataError, Unreachable, UsageError, option
from rankwise.serve import limits
from rankwise.serve.start import TOKEN
from rankwise.tasks.labels import SEPARATOR
from rankwise.tasks.registry import task_of

CHUNK_TEXTS = 256
CHUNK_CHARACTERS = 500_000
TIMEOUT = 120.0  # seconds, for one answer
PATIENCE = 600.0
"""Seconds to go on asking a server that is overloaded."""


class RemoteClassifier(Classifier):
    """An adapter on a server. It answers as the adapter's folder would.

    Args:
        url: address of the server, such as http://127.0.0.1:8000.
        adapter: name of the adapter on the server.
        token: bearer token; by default, the environment variable `RANKWISE_TOKEN`.

    Raises:
        UsageError: the address is invalid, the token is refused, or there is no such adapter.
        Unreachable: the server does not answer.
    """

    def __init__(self, url: str, adapter: str, *, token: str | None = None) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise UsageError(f"{url}: not the address of a server", hint="such as http://127.0.0.1:8000")
        self._url, self._adapter = url.rstrip("/"), adapter
        self._token = os.environ.get(TOKEN, "").strip() if token is None else token
        self._open = urllib.request.build_opener(_NoRedirects).open
        self._parts = None
        self.temperature, self.window_stride, self.results = 1.0, None, None
        listed = self._patiently("/v1/adapters")
        with _understood(self._url):
            known = {each["name"]: each for each in listed["adapters"]}
            if adapter not in known:
                hint = f"it has {', '.join(list(known)[:20])}"
                raise UsageError(f"{url} has no adapter {adapter!r}", hint=hint)
            about = known[adapter]
            self.labels = tuple(about["labels"])
            self.task = task_of(about.get("task", "single-label"), about.get("label_separator") or SEPARATOR)
            self.text_columns = tuple(about.get("text_columns") or ())
            self.thresholds = tuple(about["thresholds"]) if self.task.several else None
            self.max_length = about["max_length"]

    def predict_proba(self, texts: Texts) -> NDArray[np.float64]:
        """(texts, classes) probabilities, each row summing to 1 unless the adapter is multi-label.

        Raises:
            DataError: a text is empty or cannot be tokenized.
            Unreachable: the server does not answer, or stays overloaded.
        """
        rows = [row for chunk in _chunks(self._as_texts(texts)) for row in self._of_chunk(chunk)]
        return np.array(rows, dtype=np.float64).reshape(-1, len(self.labels))

    def logits(self, texts: Texts) -> NDArray[np.float32]:
        """(texts, classes) logits, up to a constant for each text if it has exactly one label."""
        found = np.maximum(self.predict_proba(texts), np.finfo(np.float64).tiny)
        if self.task.several:
            return np.asarray(logit(np.minimum(found, 1 - np.finfo(np.float64).epsneg)).astype(np.float32))
        return np.log(found).astype(np.float32)

    def token_effects(self, text: str) -> TokenEffects:
        """Not available.

        Raises:
            UsageError: always.
        """
        raise UsageError("a server explains by occlusion only", hint=option("method", "occlusion"))

    def long_texts(self, texts: Sequence[str]) -> LongTexts:
        """Nothing: the server cuts long texts, and does not say which."""
        return LongTexts()

    def encoded(self, texts: Sequence[str]) -> list[str]:
        """The texts: the server tokenizes them."""
        return list(texts)

    def _of_chunk(self, texts: Sequence[str]) -> list[list[float]]:
        """Probabilities of each text; a chunk that the server finds too large is asked for in halves.

        The server counts bytes of JSON, tokens and probabilities, of which only it knows how many there are.
        """
        try:
            found = self._patiently("/v1/predict", {"texts": list(texts), "adapters": self._adapter})
        except _TooLarge as refusal:
            if len(texts) == 1:
                hint = "shorten it; the model reads only its first tokens"
                raise DataError(f"a text is too large for {self._url}: {refusal}", hint=hint) from None
            middle = len(texts) // 2
            return self._of_chunk(texts[:middle]) + self._of_chunk(texts[middle:])
        with _understood(self._url):
            answers = [
                prediction["answers"][0]["probabilities"]
                for _, prediction in zip(texts, found["predictions"], strict=True)
            ]
            by_label = [{each["label"]: float(each["probability"]) for each in answer} for answer in answers]
            return [[each[label] for label in self.labels] for each in by_label]

    def _patiently(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask for something; an overloaded server is asked again when it says so."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return self._ask(path, body)
            except _Busy as busy:
                if time.monotonic() + busy.seconds > end:
                    raise Unreachable(f"{self._url}: overloaded for {PATIENCE:.0f} seconds") from None
                time.sleep(busy.seconds)

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> Any:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        content = None if body is None else json.dumps(body).encode()
        # A server refuses it before it has read it, and the reset of the connection may overtake the refusal.
        if content is not None and len(content) > limits.BODY_BYTES:
            raise _TooLarge(f"the request has more than {limits.BODY_BYTES:,} bytes")
        headers |= {} if body is None else {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, content, headers)
        try:
            with self._open(request, timeout=TIMEOUT) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(self._url, error) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            hint = "start it with rankwise serve, or check the address"
            raise Unreachable(f"{self._url}: the server does not answer: {reason}", hint=hint) from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: urllib would send the token to whatever host they name."""

    def redirect_request(self, *arguments: Any) -> None:
        """No request, so that the response becomes an error."""


class _Busy(Exception):
    """The server is overloaded."""

    def __init__(self, seconds: float) -> None:
        super().__init__("the server is overloaded")
        self.seconds = seconds


class _TooLarge(Exception):
    """A request has more bytes, tokens or probabilities than the server accepts at once."""


@contextmanager
def _understood(url: str) -> Iterator[None]:
    """A context that reads an answer.

    Raises:
        Unreachable: the answer has another form.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError):
        raise _stranger(url, "something") from None


def _stranger(url: str, what: str) -> Unreachable:
    """The error for an answer of another service."""
    return Unreachable(f"{url}: answered {what}, which a rankwise server would not", hint="check the address")


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    """The error to raise for a response that is not 200."""
    if error.code in (429, 503):
        wait = error.headers.get("Retry-After") or ""
        return _Busy(float(wait) if wait.isdecimal() else 1.0)  # it may also be a date
    if 300 <= error.code < 400:
        hint = f"if you trust it, give the address it redirects to: {error.headers.get('Location')}"
        return Unreachable(f"{url}: redirects, which is not followed", hint=hint)
    try:
        told = json.load(error)["error"]
        code, message, hint = told["code"], told["message"], told["hint"]
    except (ValueError, KeyError, TypeError, OSError):  # of a proxy, or another service
        return _TooLarge(error.reason) if error.code == 413 else _stranger(url, str(error.code))
    if code in ("too_large", "too_many_texts"):
        return _TooLarge(message)
    if code == "unauthorized":
        return UsageError(f"{url}: {message}", hint=f"set the variable {TOKEN} to the server's token")
    if code in ("invalid_text", "text_too_long", "invalid_request"):
        return DataError(message, hint=hint)
    return Unreachable(f"{url}: {message}", hint=hint)


def _chunks(texts: Sequence[str]) -> list[list[str]]:
    """Texts in chunks that a server usually accepts."""
    if isinstance(texts, str):
        raise UsageError("give a list of texts, not one string", hint="classifier([text])")
    chunks: list[list[str]] = []
    room = 0
    for text in texts:
        if not chunks or len(chunks[-1]) == CHUNK_TEXTS or len(text) > room:
            chunks.append([])
            room = CHUNK_CHARACTERS
        chunks[-1].append(text)
        room -= len(text)
    return chunks
