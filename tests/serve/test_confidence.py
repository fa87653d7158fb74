"""A server uses the adapters' temperatures, and its own threshold if a request names none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from rankwise import Classifier, UsageError
from rankwise.models import peft_format
from rankwise.models.tokenizer import Tokenizer
from rankwise.serve.client import RemoteClassifier
from rankwise.serve.start import serve
from rankwise.store import files
from tests import tiny
from tests.serve.made import make_adapter
from tests.serve.running import Running, running

TEXTS = tiny.texts(6, seed=8)
BELOW = 0.6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, gpt2_base: Path) -> Path:
    """Two seeds of a rank, at temperatures 2 and 0.5."""
    made = tmp_path_factory.mktemp("warm")
    config, tokenizer = files.read_object(gpt2_base / "config.json"), Tokenizer.load(gpt2_base).files()
    for seed, temperature in ((1, 2.0), (2, 0.5)):
        cold = peft_format.load(make_adapter(made / f"cold{seed}", gpt2_base, seed=seed))
        peft_format.save(made / f"s{seed}", replace(cold, temperature=temperature), config, tokenizer)
    return made


@pytest.fixture(scope="module")
def warm(folder: Path) -> Iterator[Running]:
    options = ("--precision", "float32", "--device", "cpu", "--abstain-below", BELOW)
    with running(folder / "s1", folder / "s2", *options) as found:
        yield found


@pytest.fixture(scope="module")
def offline(folder: Path) -> list[Classifier]:
    return [Classifier.load(folder / name, device="cpu", precision="float32") for name in ("s1", "s2")]


def ask(server: Running, path: str, **body: object) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=60).raise_for_status()


def test_each_adapter_has_its_own_temperature(warm: Running, offline: list[Classifier]) -> None:
    one, other = (RemoteClassifier(warm.url, name).predict_proba(TEXTS) for name in ("s1", "s2"))
    np.testing.assert_allclose(one, offline[0].predict_proba(TEXTS), atol=1e-5)
    np.testing.assert_allclose(other, offline[1].predict_proba(TEXTS), atol=1e-5)
    found = ask(warm, "/v1/predict", texts=TEXTS, ranks=4).json()["predictions"]
    best = [prediction["answers"][0]["probability"] for prediction in found]
    np.testing.assert_allclose(best, ((one + other) / 2).max(axis=1), atol=1e-5)


def test_dialects_and_explanations_have_it_and_raw_logits_do_not(
    warm: Running, offline: list[Classifier]
) -> None:
    data = ask(warm, "/classify", input=TEXTS, model="s1").json()["data"]
    np.testing.assert_allclose([each["probs"] for each in data], offline[0].predict_proba(TEXTS), atol=1e-5)
    raw = ask(warm, "/classify", input=TEXTS, model="s1", use_activation=False).json()["data"]
    np.testing.assert_allclose([each["probs"] for each in raw], offline[0].logits(TEXTS), atol=1e-4)
    found = ask(warm, "/v1/explain", text="so very glad", adapter="s1").json()
    assert found["probability"] == pytest.approx(offline[0].explain("so very glad").probability, abs=1e-5)


def test_the_servers_threshold_holds_unless_a_request_names_one(warm: Running) -> None:
    def labels(**options: object) -> list[tuple[bool, float]]:
        found = ask(warm, "/v1/predict", texts=TEXTS, adapters=["s1", "s2"], **options).json()["predictions"]
        answers = [answer for prediction in found for answer in prediction["answers"]]
        return [(answer["label"] is not None, answer["probability"]) for answer in answers]

    usual = labels()
    assert [given for given, _ in usual] == [probability >= BELOW for _, probability in usual]
    assert {given for given, _ in usual} == {True, False}
    assert all(given for given, _ in labels(abstain_below=0))
    assert not any(given for given, _ in labels(abstain_below=1))


def test_what_a_server_cannot_do(warm: Running, folder: Path) -> None:
    with pytest.raises(UsageError, match="occlusion only"):
        RemoteClassifier(warm.url, "s1").explain("so very glad", method="gradient")
    with pytest.raises(UsageError, match="not a probability"):
        serve([str(folder / "s1")], abstain_below=1.5)
