"""A classifier on a server, for `rankwise predict --url`. It needs nothing but Python's own HTTP client."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from rankwise.commands.explain import TokenEffects
from rankwise.commands.predict import Classifier, LongTexts, Texts
from rankwise.errors import DataError, Unreachable, UsageError, option
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
        known = {each["name"]: each for each in self._ask("/v1/adapters")["adapters"]}
        if adapter not in known:
            hint = f"it has {', '.join(list(known)[:20])}"
            raise UsageError(f"{url} has no adapter {adapter!r}", hint=hint)
        self._parts = None
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
        found = self._patiently({"texts": list(texts), "adapters": self._adapter})
        answers = [prediction["answers"][0]["probabilities"] for prediction in found["predictions"]]
        by_label = [{each["label"]: each["probability"] for each in answer} for answer in answers]
        return [[each[label] for label in self.labels] for each in by_label]

    def _patiently(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for predictions; an overloaded server is asked again when it says so."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return self._ask("/v1/predict", body)
            except _Busy as busy:
                if time.monotonic() + busy.seconds > end:
                    raise Unreachable(f"{self._url}: overloaded for {PATIENCE:.0f} seconds") from None
                time.sleep(busy.seconds)

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        content = None if body is None else json.dumps(body).encode()
        headers |= {} if body is None else {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, content, headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                found: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(self._url, error) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            hint = "start it with rankwise serve, or check the address"
            raise Unreachable(f"{self._url}: the server does not answer: {reason}", hint=hint) from None
        return found


class _Busy(Exception):
    """The server is overloaded."""

    def __init__(self, seconds: float) -> None:
        super().__init__("the server is overloaded")
        self.seconds = seconds


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    """The error to raise for a response that is not 200."""
    if error.code in (429, 503):
        return _Busy(float(error.headers.get("Retry-After") or 1))
    try:
        told = json.load(error)["error"]
        code, message, hint = told["code"], told["message"], told["hint"]
    except (ValueError, KeyError, TypeError, OSError):
        return Unreachable(f"{url}: answered {error.code}, which a rankwise server would not")
    if code == "unauthorized":
        return UsageError(f"{url}: {message}", hint=f"set the variable {TOKEN} to the server's token")
    if code in ("invalid_text", "text_too_long", "invalid_request"):
        return DataError(message, hint=hint)
    return Unreachable(f"{url}: {message}", hint=hint)


def _chunks(texts: Sequence[str]) -> list[list[str]]:
    """Texts in chunks that a server accepts."""
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
