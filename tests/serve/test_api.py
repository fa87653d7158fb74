"""Every endpoint of a real server: answers equal to offline predictions, limits, errors, token, metrics."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rankwise import Classifier
from rankwise.serve import limits
from rankwise.serve.problems import CODES
from tests import tiny
from tests.serve.made import LETTERS
from tests.serve.running import AUTHORIZED, Running

FULL = os.environ.get("RANKWISE_FAULTS") == "full"
TEXTS = [*tiny.texts(6, seed=8), "naïve 😀 日本語", "a\nline", "glad " * 40]


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers=AUTHORIZED, timeout=60) as found:
        yield found


@pytest.fixture(scope="module")
def offline(served_folder: Path) -> dict[str, np.ndarray]:
    """Adapter -> (texts, classes) probabilities."""
    loaded = {
        each.name: Classifier.load(each, device="cpu", precision="float32")
        for each in served_folder.iterdir()
    }
    return {name: classifier.predict_proba(TEXTS) for name, classifier in loaded.items()}


def in_order(answer: dict[str, Any], labels: tuple[str, ...]) -> list[float]:
    """The probabilities of an answer, in the order of the labels."""
    found = {each["label"]: each["probability"] for each in answer["probabilities"]}
    return [found[label] for label in labels]


def problem(response: httpx.Response) -> str:
    """The code of an error, checked against its status."""
    error = response.json()["error"]
    assert set(error) == {"code", "message", "hint"} and error["message"]
    assert response.status_code == CODES[error["code"]][0]
    code: str = error["code"]
    return code


# Predict


def test_one_text_by_the_default_adapter(client: httpx.Client, offline: dict[str, np.ndarray]) -> None:
    found = client.post("/v1/predict", json={"texts": TEXTS[0]}).json()
    ((answer,),) = (prediction["answers"] for prediction in found["predictions"])
    assert answer["adapter"] == "three"
    assert answer["label"] == LETTERS[int(offline["three"][0].argmax())]
    assert answer["probability"] == answer["probabilities"][0]["probability"]
    np.testing.assert_allclose(in_order(answer, LETTERS[:3]), offline["three"][0], atol=1e-5)
    assert found["tokens"] > 0


def test_all_adapters_on_many_texts(client: httpx.Client, offline: dict[str, np.ndarray]) -> None:
    found = client.post("/v1/predict", json={"texts": TEXTS, "adapters": "all"}).json()["predictions"]
    assert len(found) == len(TEXTS)
    for i, prediction in enumerate(found):
        assert [answer["adapter"] for answer in prediction["answers"]] == [
            "three", "seven", "two", "twin", "probe"
        ]  # fmt: skip
        for answer in prediction["answers"]:
            expected = offline[answer["adapter"]][i]
            np.testing.assert_allclose(
                in_order(answer, LETTERS[: len(expected)]), expected, atol=1e-5, rtol=0
            )
            assert answer["label"] == LETTERS[int(expected.argmax())]


def test_a_rank_averages_its_seeds(client: httpx.Client, offline: dict[str, np.ndarray]) -> None:
    body = {"texts": TEXTS, "ranks": 8, "adapters": ["seven"]}
    found = client.post("/v1/predict", json=body).json()["predictions"]
    for i, prediction in enumerate(found):
        one, rank = prediction["answers"]
        assert (one["adapter"], rank["adapter"]) == ("seven", "rank-8")
        mean = (offline["two"][i] + offline["twin"][i]) / 2
        np.testing.assert_allclose(in_order(rank, LETTERS[:2]), mean, atol=1e-5, rtol=0)


def test_top_k_threshold_and_bare_labels(client: httpx.Client) -> None:
    def answers(**options: Any) -> list[dict[str, Any]]:
        body = {"texts": TEXTS, "adapters": "seven", **options}
        found = client.post("/v1/predict", json=body).json()["predictions"]
        return [prediction["answers"][0] for prediction in found]

    whole, short, bare = answers(), answers(top_k=2), answers(probabilities=False)
    for full, top, plain in zip(whole, short, bare, strict=True):
        assert top["probabilities"] == full["probabilities"][:2]
        assert plain["probabilities"] is None and plain["label"] == full["label"]
        ordered = [each["probability"] for each in full["probabilities"]]
        assert ordered == sorted(ordered, reverse=True)
    median = sorted(answer["probability"] for answer in whole)[len(whole) // 2]
    abstained = answers(abstain_below=median)
    assert [answer["label"] is None for answer in abstained] == [
        answer["probability"] < median for answer in whole
    ]
    assert any(answer["label"] is None for answer in abstained)


def test_explain_leaves_out_each_word(client: httpx.Client, served_folder: Path) -> None:
    classifier = Classifier.load(served_folder / "seven", device="cpu", precision="float32")
    text = "so  very 😀 glad"
    found = client.post("/v1/explain", json={"text": text, "adapter": "seven"}).json()
    whole, *without = classifier.predict_proba(
        [text, "very 😀 glad", "so  😀 glad", "so  very glad", "so  very 😀"]
    )
    best = int(whole.argmax())
    assert found["label"] == LETTERS[best]
    assert [(word["text"], word["start"]) for word in found["words"]] == [
        ("so", 0), ("very", 4), ("😀", 9), ("glad", 11)
    ]  # fmt: skip
    effects = [word["effect"] for word in found["words"]]
    np.testing.assert_allclose(effects, [whole[best] - each[best] for each in without], atol=1e-5)
    assert problem(client.post("/v1/explain", json={"text": "glad"})) == "invalid_text"


def test_adapters_are_listed(client: httpx.Client) -> None:
    found = client.get("/v1/adapters").json()
    assert found["default"] == "three"
    listed = {each["name"]: each for each in found["adapters"]}
    assert list(listed) == ["three", "seven", "two", "twin", "probe"]
    assert listed["seven"]["labels"] == list(LETTERS) and listed["seven"]["max_length"] == 16
    assert (listed["probe"]["rank"], listed["twin"]["seed"]) == (0, 4)


# Dialects


def test_vllm_classify(client: httpx.Client, offline: dict[str, np.ndarray]) -> None:
    found = client.post("/classify", json={"model": "two", "input": TEXTS, "user": "someone"}).json()
    assert found["object"] == "list" and found["model"] == "two" and found["id"].startswith("classify-")
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] > 0
    for i, each in enumerate(found["data"]):
        assert (each["index"], each["num_classes"]) == (i, 2)
        np.testing.assert_allclose(each["probs"], offline["two"][i], atol=1e-5)
        assert each["label"] == LETTERS[int(offline["two"][i].argmax())]
    raw = client.post("/classify", json={"input": TEXTS[0], "use_activation": False}).json()
    assert sum(raw["data"][0]["probs"]) != pytest.approx(1, abs=1e-3)
    assert problem(client.post("/classify", json={"model": "none", "input": "a"})) == "unknown_adapter"


def test_tei_predict(client: httpx.Client, offline: dict[str, np.ndarray]) -> None:
    single = client.post("/predict", json={"inputs": TEXTS[0]}).json()
    batch = client.post("/predict", json={"inputs": [[text] for text in TEXTS], "truncate": True}).json()
    assert single == client.post("/predict", json={"inputs": [TEXTS[0]]}).json()
    for i, scores in enumerate(batch):
        assert [each["score"] for each in scores] == sorted((e["score"] for e in scores), reverse=True)
        by_label = {each["label"]: each["score"] for each in scores}
        np.testing.assert_allclose([by_label[x] for x in LETTERS[:3]], offline["three"][i], atol=1e-5)
    assert [each["label"] for each in single] == [each["label"] for each in batch[0]]
    assert problem(client.post("/predict", json={"inputs": ["a", "b"]})) == "invalid_request"
    long = {"inputs": "glad " * 40, "truncate": False}
    assert problem(client.post("/predict", json=long)) == "text_too_long"
    assert client.post("/predict", json={"inputs": "glad", "truncate": False}).status_code == 200


# Limits and errors


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_request"),
        ([], "invalid_request"),
        ("text", "invalid_request"),
        ({"texts": []}, "invalid_request"),
        ({"texts": [1]}, "invalid_request"),
        ({"texts": {"a": 1}}, "invalid_request"),
        ({"texts": None}, "invalid_request"),
        ({"texts": "so", "text": "so"}, "invalid_request"),
        ({"texts": "so", "top_k": 0}, "invalid_request"),
        ({"texts": "so", "top_k": 1.5}, "invalid_request"),
        ({"texts": "so", "top_k": "2"}, "invalid_request"),
        ({"texts": "so", "abstain_below": 2}, "invalid_request"),
        ({"texts": "so", "abstain_below": float("nan")}, "invalid_request"),
        ({"texts": "so", "probabilities": 1}, "invalid_request"),
        ({"texts": "so", "ranks": -1}, "invalid_request"),
        ({"texts": "so", "ranks": 3}, "unknown_adapter"),
        ({"texts": "so", "adapters": ["three", "four"]}, "unknown_adapter"),
        ({"texts": ["so", "  "]}, "invalid_text"),
        ({"texts": ""}, "invalid_request"),
        ({"texts": "\ud800"}, "invalid_request"),
        ({"\ud800": "so"}, "invalid_request"),
        ({"texts": "x" * (limits.CHARACTERS + 1)}, "text_too_long"),
        ({"texts": ["x"] * (limits.TEXTS + 1)}, "too_many_texts"),
        ({"texts": ["x"] * limits.TEXTS, "adapters": ["three"] * (limits.NAMES + 1)}, "invalid_request"),
        ({"texts": "x" * limits.BODY_BYTES}, "too_large"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_cannot_be_answered_is_refused(client: httpx.Client, body: Any, code: str) -> None:
    content = json.dumps(body).encode()
    response = client.post("/v1/predict", content=content, headers={"Content-Type": "application/json"})
    assert problem(response) == code
    assert len(response.content) < 2000


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_request"),
        (b"{", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"texts":' * 20_000, "invalid_json"),
        (b'{"texts": "so"} {"texts": "so"}', "invalid_json"),
    ],
    ids=["empty", "cut", "bytes", "nested lists", "nested objects", "two"],
)
def test_what_is_no_json_is_refused(client: httpx.Client, content: bytes, code: str) -> None:
    response = client.post("/v1/predict", content=content, headers={"Content-Type": "application/json"})
    assert problem(response) == code


def test_other_media_types_paths_and_methods(client: httpx.Client) -> None:
    plain = client.post("/v1/predict", content=b'{"texts": "so"}', headers={"Content-Type": "text/plain"})
    assert problem(plain) == "invalid_request"
    assert problem(client.get("/nothing")) == "not_found"
    wrong = client.get("/v1/predict")
    assert problem(wrong) == "method_not_allowed" and wrong.headers["allow"] == "POST"


def test_every_refusal_is_without_work(client: httpx.Client, server: Running) -> None:
    before = server.metric("rankwise_tokens_total")
    for body in ({"texts": ["x"] * 2000}, {"texts": ["so", ""]}, {"texts": "so", "adapters": "none"}):
        assert client.post("/v1/predict", json=body).status_code >= 400
    assert server.metric("rankwise_tokens_total") == before


# Token, health, metrics, log


def test_a_token_is_needed(server: Running) -> None:
    refused: tuple[dict[bytes, bytes], ...] = (
        {},
        {b"Authorization": b"Bearer wrong"},
        {b"Authorization": b"Bearer \xff"},
    )
    for headers in refused:
        found = httpx.post(f"{server.url}/v1/predict", json={"texts": "so"}, headers=headers)
        assert problem(found) == "unauthorized"
    for path in ("/v1/adapters", "/metrics", "/reports/x"):
        assert problem(httpx.get(server.url + path)) == "unauthorized"
    for path in ("/", "/docs", "/openapi.json", "/livez", "/readyz"):
        assert httpx.get(server.url + path).status_code == 200


def test_health_is_fast_while_the_model_works(client: httpx.Client, server: Running) -> None:
    host, port = server.address
    body = json.dumps({"texts": TEXTS * 100, "adapters": ["three", "seven", "two"]}).encode()
    head = (
        f"POST /v1/predict HTTP/1.1\r\nHost: {host}\r\nAuthorization: {AUTHORIZED['Authorization']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, port)) as busy:
        busy.sendall(head.encode() + body)
        seconds = []
        for _ in range(20):
            start = time.perf_counter()
            assert client.get("/livez").status_code == 200
            seconds.append(time.perf_counter() - start)
        assert busy.recv(12) == b"HTTP/1.1 200"
    assert sorted(seconds)[10] < (0.05 if FULL else 0.5)  # the quick tests share their cores


def test_answers_tell_the_time_of_the_model(client: httpx.Client, server: Running) -> None:
    asked = [
        ("/v1/predict", {"texts": TEXTS, "adapters": "seven"}),
        ("/v1/explain", {"text": "so very glad"}),
        ("/classify", {"input": TEXTS}),
        ("/predict", {"inputs": TEXTS[0]}),
    ]
    before = server.metric("rankwise_batch_seconds_sum")
    told = [client.post(path, json=body).headers["server-timing"] for path, body in asked]
    passed = server.metric("rankwise_batch_seconds_sum") - before
    assert all(each.startswith("model;dur=") for each in told)
    assert sum(float(each[10:]) for each in told) == pytest.approx(1000 * passed, abs=0.01)
    assert "server-timing" not in client.get("/v1/adapters").headers


def test_metrics_count(client: httpx.Client, server: Running) -> None:
    def counts() -> tuple[float, ...]:
        return (
            server.metric("rankwise_requests_total", path="/v1/predict", status="200"),
            server.metric("rankwise_texts_total", adapter="seven"),
            server.metric("rankwise_tokens_total"),
            server.metric("rankwise_request_seconds_count", path="/v1/predict"),
        )

    before = counts()
    tokens = client.post("/v1/predict", json={"texts": TEXTS, "adapters": "seven"}).json()["tokens"]
    after = tuple(b - a for a, b in zip(before, counts(), strict=True))
    assert after == (1, len(TEXTS), tokens, 1)
    assert server.metric("rankwise_queue_tokens") == 0
    assert server.metric("rankwise_adapters") == 5


def test_the_log_has_no_texts(client: httpx.Client, server: Running) -> None:
    client.post("/v1/predict", json={"texts": "unmistakable words"})
    client.get("/unmistakable?q=words")
    client.post("/v1/predict", json={"texts": "unmistakable", "unmistakable": 1})
    deadline = time.monotonic() + 10
    while len(server.requests) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {"time", "client", "method", "path", "status", "ms"} <= set(server.requests[-1])
    assert not any("unmistakable" in line for line in server.lines)


def test_responses_are_not_cached_or_sniffed(client: httpx.Client) -> None:
    headers = client.get("/v1/adapters").headers
    assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


# The OpenAPI document and its page


def test_the_examples_of_the_document_are_answered(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    renamed = {"r4-s110": "three", "4": "8"}
    tried = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if "requestBody" not in operation:
                continue
            reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            for example in document["components"]["schemas"][reference.rpartition("/")[2]]["examples"]:
                text = json.dumps(example)
                for old, new in renamed.items():
                    text = text.replace(f'"{old}"', f'"{new}"').replace(f": {old},", f": {new},")
                assert client.request(method, path, json=json.loads(text)).status_code == 200
                tried += 1
    assert tried >= 7


def test_the_page_of_the_api_needs_nothing_else(client: httpx.Client) -> None:
    response = client.get("/docs")
    page = response.text
    for path in client.get("/openapi.json").json()["paths"]:
        assert f"<code>{path}</code>" in page
    assert "<script" not in page and "http" not in page.replace("http://127.0.0.1:8000", "")
    assert "script-src 'none'" in response.headers["content-security-policy"]
