"""A server with a multi-label adapter, an adapter for pairs, and one with a single label."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from rankwise import Classifier, DataError
from rankwise.cli.app import app
from rankwise.serve.client import RemoteClassifier
from tests import tiny
from tests.serve.made import LETTERS, make_adapter
from tests.serve.running import AUTHORIZED, TOKEN, Running, running

TEXTS = tiny.texts(6, seed=2)
PAIRS = [[a, b] for a, b in zip(TEXTS, TEXTS[::-1], strict=True)]
THRESHOLDS = (0.3, 0.5, 0.7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, gpt2_base: Path) -> Path:
    made = tmp_path_factory.mktemp("tasks")
    several: dict[str, Any] = {"task": "multi-label", "thresholds": THRESHOLDS, "label_separator": "; "}
    make_adapter(made / "several", gpt2_base, labels=LETTERS[:3], **several)
    make_adapter(made / "pairs", gpt2_base, rank=2, text_columns=("premise", "hypothesis"))
    make_adapter(made / "single", gpt2_base, rank=1)
    return made


@pytest.fixture(scope="module")
def tasks(folder: Path) -> Iterator[Running]:
    options = ("--precision", "float32", "--device", "cpu", "--max-wait", "60")
    with running(*(folder / name for name in ("several", "pairs", "single")), *options, token=TOKEN) as found:
        yield found


def ask(server: Running, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, headers=AUTHORIZED, timeout=60)


def local(folder: Path, name: str) -> Classifier:
    return Classifier.load(folder / name, device="cpu", precision="float32")


def test_a_multi_label_adapter_gives_lists(tasks: Running, folder: Path) -> None:
    found = ask(tasks, "/v1/predict", {"texts": TEXTS, "adapters": "several"}).json()["predictions"]
    expected = local(folder, "several")(TEXTS)
    for answer, prediction in zip(found, expected, strict=True):
        (each,) = answer["answers"]
        assert each["labels"] == list(prediction.labels) and each["label"] is None
        given = {one["label"]: one["probability"] for one in each["probabilities"]}
        assert given == pytest.approx(prediction.probabilities, abs=1e-5)
    assert len({tuple(each.labels) for each in expected}) > 1


def test_a_multi_label_adapter_on_a_server_does_not_abstain(tasks: Running) -> None:
    words = ["predict", "several", "so glad", "--url", tasks.url, "--abstain-below", "0.5"]
    done = CliRunner().invoke(app, words, env={"RANKWISE_TOKEN": TOKEN})
    assert done.exit_code == 2
    assert "--abstain-below 0.5: a multi-label classifier has thresholds of its own" in done.stderr


def test_a_single_label_adapter_gives_no_list(tasks: Running) -> None:
    found = ask(tasks, "/v1/predict", {"texts": TEXTS[0], "adapters": "single"}).json()
    (answer,) = found["predictions"][0]["answers"]
    assert answer["labels"] is None and answer["label"] in LETTERS


def test_adapters_name_task_thresholds_and_columns(tasks: Running) -> None:
    found = httpx.get(f"{tasks.url}/v1/adapters", headers=AUTHORIZED, timeout=60).json()["adapters"]
    about = {
        each["name"]: (each["task"], each["thresholds"], each["label_separator"], each["text_columns"])
        for each in found
    }
    assert about == {
        "several": ("multi-label", list(THRESHOLDS), "; ", None),
        "pairs": ("single-label", None, None, ["premise", "hypothesis"]),
        "single": ("single-label", None, None, None),
    }


def test_pairs(tasks: Running, folder: Path) -> None:
    found = ask(tasks, "/v1/predict", {"texts": PAIRS, "adapters": "pairs"}).json()["predictions"]
    expected = local(folder, "pairs").predict(PAIRS)
    assert [answer["answers"][0]["label"] for answer in found] == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"texts": PAIRS, "adapters": ["pairs", "single"]}, "the adapter single takes single texts"),
        ({"texts": TEXTS, "adapters": "pairs"}, "takes pairs of premise and hypothesis"),
        ({"texts": [["a", "b", "c"]], "adapters": "pairs"}, "texts"),
    ],
)
def test_mistakes_with_pairs_are_refused(tasks: Running, body: dict[str, Any], message: str) -> None:
    response = ask(tasks, "/v1/predict", body)
    assert response.status_code == 422, response.text
    assert message in response.json()["error"]["message"]


def test_a_pair_is_not_explained(tasks: Running) -> None:
    response = ask(tasks, "/v1/explain", {"text": "a b", "adapter": "pairs"})
    assert "the words of a pair" in response.json()["error"]["message"]


def test_remote_classifiers(tasks: Running, folder: Path) -> None:
    several, pairs = (RemoteClassifier(tasks.url, name, token=TOKEN) for name in ("several", "pairs"))
    here = local(folder, "several")
    assert several.predict_labels(TEXTS) == here.predict_labels(TEXTS)
    labels = [each.label for each in several(TEXTS)]
    assert labels == [each.label for each in here(TEXTS)] and any("; " in label for label in labels)
    np.testing.assert_allclose(several.logits(TEXTS), here.logits(TEXTS), atol=1e-3)
    assert pairs.predict(PAIRS) == local(folder, "pairs").predict(PAIRS)
    with pytest.raises(DataError, match="takes pairs of premise and hypothesis"):
        pairs.predict(TEXTS)
