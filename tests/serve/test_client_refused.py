"""What a client does with an answer that it cannot use: too large, busy, moved, or of another service."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankwise import Classifier, DataError, Unreachable
from rankwise.serve.client import RemoteClassifier
from tests.serve.made import make_adapter
from tests.serve.running import TOKEN, Running, running

ADAPTERS = {"adapters": [{"name": "a", "labels": ["x", "y"], "max_length": 8, "thresholds": None}]}
Answer = tuple[int, dict[str, str], Any]
"""Status, headers and JSON of a response."""


def predicted(texts: list[str]) -> Answer:
    """The answer of a server whose labels are equally probable."""
    answer = {"probabilities": [{"label": label, "probability": 0.5} for label in "yx"]}
    return 200, {}, {"predictions": [{"answers": [answer]} for _ in texts]}


def refused(code: str) -> Answer:
    """The answer of a server that finds a request too large."""
    return 413, {}, {"error": {"code": code, "message": f"it is {code}", "hint": "send fewer texts at once"}}


@contextmanager
def answering(answer: Callable[[str, Any], Answer]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that answers what a function of path and body says; its URL, and the headers it was sent."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(dict(self.headers))
            length = int(self.headers.get("Content-Length") or 0)
            status, headers, found = answer(self.path, json.loads(self.rfile.read(length) or "null"))
            content = json.dumps(found).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


# Too large


@pytest.mark.parametrize("code", ["too_large", "too_many_texts"])
def test_a_chunk_that_is_too_large_is_halved(code: str) -> None:
    sizes: list[int] = []

    def answer(path: str, body: Any) -> Answer:
        if body is None:
            return 200, {}, ADAPTERS
        sizes.append(len(body["texts"]))
        return refused(code) if sizes[-1] > 2 else predicted(body["texts"])

    with answering(answer) as (url, _):
        found = RemoteClassifier(url, "a").predict_proba([f"text {i}" for i in range(7)])
    np.testing.assert_array_equal(found, np.full((7, 2), 0.5))
    assert sizes == [7, 3, 1, 2, 4, 2, 2]


def test_a_text_that_is_too_large_is_an_error_of_the_data() -> None:
    with answering(lambda path, body: refused("too_large") if body else (200, {}, ADAPTERS)) as (url, _):
        remote = RemoteClassifier(url, "a")
        with pytest.raises(DataError, match="it is too_large") as error:
            remote(["one", "two"])
    assert "shorten" in error.value.hint


def test_a_proxy_that_finds_a_request_too_large_is_asked_for_less() -> None:
    def answer(path: str, body: Any) -> Answer:
        if body is None:
            return 200, {}, ADAPTERS
        return (413, {}, "Request Entity Too Large") if len(body["texts"]) > 1 else predicted(body["texts"])

    with answering(answer) as (url, _):
        assert len(RemoteClassifier(url, "a")(["one", "two"])) == 2


def test_texts_whose_json_exceeds_a_request_are_predicted(server: Running, served_folder: Path) -> None:
    """JSON has 6 bytes for each of these characters."""
    local = Classifier.load(served_folder / "three", device="cpu", precision="float32")
    texts = [f"{i} " + "\u65e5\u672c" * 700 for i in range(256)]
    remote = RemoteClassifier(server.url, "three", token=TOKEN)
    np.testing.assert_allclose(remote.predict_proba(texts), local.predict_proba(texts), atol=1e-5)


def test_texts_with_more_tokens_than_the_queue_are_predicted(served_folder: Path) -> None:
    folder, texts = served_folder / "three", ["glad " * 40] * 20
    local = Classifier.load(folder, device="cpu", precision="float32")
    options = ("--precision", "float32", "--batch-tokens", "64", "--queue-tokens", "128")
    with running(folder, *options, "--max-wait", "600") as server:
        found = RemoteClassifier(server.url, "three").predict_proba(texts)
    np.testing.assert_allclose(found, local.predict_proba(texts), atol=1e-5)


def test_many_labels_are_predicted(tmp_path: Path, gpt2_base: Path) -> None:
    """256 texts with 800 labels are more probabilities than an answer may have."""
    labels = [f"label {i}" for i in range(800)]
    folder = make_adapter(tmp_path / "many", gpt2_base, labels=labels)
    texts = [f"so glad {i}" for i in range(256)]
    local = Classifier.load(folder, device="cpu", precision="float32")
    with running(folder, "--precision", "float32") as server:
        found = RemoteClassifier(server.url, "many").predict_proba(texts)
    np.testing.assert_allclose(found, local.predict_proba(texts), atol=1e-5)


# Busy


@pytest.mark.parametrize("wait", ["Wed, 21 Oct 2026 07:28:00 GMT", "soon", "-3", "nan", None])
def test_a_busy_server_is_asked_again(wait: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for its adapters, and whatever its Retry-After looks like."""
    asked: list[str] = []

    def answer(path: str, body: Any) -> Answer:
        asked.append(path)
        if len(asked) == 1:
            return 503, {} if wait is None else {"Retry-After": wait}, {}
        return predicted(body["texts"]) if body else (200, {}, ADAPTERS)

    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with answering(answer) as (url, _):
        assert len(RemoteClassifier(url, "a")(["so"])) == 1
    assert asked == ["/v1/adapters", "/v1/adapters", "/v1/predict"]
    assert slept == [1.0]


# Other services


@pytest.mark.parametrize(
    "found", [{}, [], None, "ok", {"adapters": [1]}, {"adapters": [{"name": "a"}]}, {"adapters": None}]
)
def test_another_service_is_told_from_a_server(found: Any) -> None:
    with (
        answering(lambda path, body: (200, {}, found)) as (url, _),
        pytest.raises(Unreachable, match="which a rankwise server would not"),
    ):
        RemoteClassifier(url, "a")


@pytest.mark.parametrize(
    "found", [{}, [], {"predictions": [{"answers": []}]}, predicted(["one", "two"])[2], {"predictions": []}]
)
def test_an_answer_of_another_form_is_told(found: Any) -> None:
    with answering(lambda path, body: (200, {}, found if body else ADAPTERS)) as (url, _):
        remote = RemoteClassifier(url, "a")
        with pytest.raises(Unreachable, match="which a rankwise server would not"):
            remote(["so"])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_token_does_not_follow_a_redirect(status: int) -> None:
    with answering(lambda path, body: (200, {}, ADAPTERS)) as (other, seen):
        away = {"Location": f"{other}/v1/adapters"}
        with (
            answering(lambda path, body: (status, away, {})) as (url, _),
            pytest.raises(Unreachable, match="redirects") as error,
        ):
            RemoteClassifier(url, "a", token=TOKEN)
    assert not seen and other in error.value.hint
