"""Adapters from the Hub: what a name means, what is downloaded, and refusals. A local server is the Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rankwise import Classifier
from rankwise.models.hub_adapters import ADAPTER_FILES, on_hub
from tests import tiny
from tests.hub_server import Hub, answers, serving

TEXTS = tiny.texts(3, seed=4)
UNWANTED = {
    "adapter_model.bin": b"pickle",
    "training_args.bin": b"pickle",
    "modeling.py": b"code",
    "README.md": b"# card",
    "checkpoint/adapter_model.safetensors": b"older",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as server:
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("someone/reviews", ("someone/reviews", None)),
        ("someone/reviews@v1.2", ("someone/reviews", "v1.2")),
        ("someone/reviews@refs/pr/3", ("someone/reviews", "refs/pr/3")),
        ("reviews", None),
        ("./someone/reviews", None),
        ("/someone/reviews", None),
        ("someone/reviews/adapters", None),
        ("someone/reviews@", None),
        ("../reviews", None),
        ("here/there", None),
        ("here/reviews", None),
        ("here/reviews@v1", ("here/reviews", "v1")),
        ("here/there@v1", None),
    ],
)
def test_a_folder_wins(
    given: str, meant: tuple[str, str | None] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "there").mkdir(parents=True)
    (tmp_path / "here" / "there@v1").mkdir()
    assert on_hub(given) == meant


def test_an_adapter_comes_from_the_hub(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    """With its revision; and from the cache or a local folder, if the Hub cannot be reached."""
    hub.repos["me/tiny"] = contents(adapter) | UNWANTED
    other = contents(adapter.with_name("r1-s110"))
    hub.branches["me/tiny"] = {"v1": other}
    predict = "rankwise.Classifier.load({!r}, device='cpu', precision='float32').logits({!r}).tolist()"
    names = ("me/tiny", "me/tiny@v1")
    found = answers([predict.format(name, TEXTS) for name in names], tmp_path, HF_ENDPOINT=hub.url)
    ours = [
        Classifier.load(folder, device="cpu", precision="float32").logits(TEXTS).tolist()
        for folder in (adapter, adapter.with_name("r1-s110"))
    ]
    assert [each["value"] for each in found] == ours and ours[0] != ours[1]
    fetched = {path.partition("/resolve/")[2].partition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == contents(adapter).keys() & set(ADAPTER_FILES)
    shutil.copytree(adapter, tmp_path / "here" / "tiny")
    calls = [predict.format(name, TEXTS) for name in (*names, "here/tiny", "me/never")]
    *cached, never = (each["value"] for each in answers(calls, tmp_path, HF_HUB_OFFLINE="1"))
    assert cached == [*ours, ours[0]]
    assert never["error"] == "Unreachable"
    assert never["message"].startswith("me/never: not a folder here, and the Hub cannot be reached: ")
    assert never["hint"].startswith("use the folder of an adapter")


def test_the_other_commands_take_it(hub: Hub, adapter: Path, data_folder: Path, tmp_path: Path) -> None:
    hub.repos["me/tiny"] = contents(adapter)
    test = data_folder / "test.csv"
    loading = "__import__('rankwise.serve.loading').serve.loading"
    loader = f"{loading}.Loader(['me/tiny', 'v=me/tiny@main'])"
    calls = [
        f"rankwise.evaluate('me/tiny', {str(test)!r}).texts",
        f"{loader}.load().default",
        f"sorted({loader}.folders())",
        "rankwise.cut('me/tiny', 2).folder",
    ]
    found = answers(calls, tmp_path, HF_ENDPOINT=hub.url)
    assert [each["value"] for each in found] == [12, "tiny", ["tiny", "v"], "tiny-cut2"]
    assert (tmp_path / "tiny-cut2" / "adapter_config.json").is_file()  # not in the Hub's cache


def test_what_is_refused(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    hub.repos["me/model"] = {"config.json": b"{}", "model.safetensors": b"large"}
    hub.repos["me/dora"] = {
        "adapter_config.json": json.dumps(
            {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "use_dora": True}
        ).encode(),
        "adapter_model.safetensors": b"large",
    }
    pickled = contents(adapter) | {"adapter_model.bin": b"pickle"}
    del pickled["adapter_model.safetensors"], pickled["sha256.json"]
    hub.repos["me/pickled"] = pickled
    hub.repos["me/damaged"] = contents(adapter) | {"classifier.json": b"{}"}
    hub.refusals["me/gated"] = (403, "GatedRepo")
    names = ("model", "dora", "pickled", "damaged", "gated", "missing", "pickled@v9")
    calls = [f"rankwise.Classifier.load('me/{name}')" for name in names]
    found = {
        name: each["value"]
        for name, each in zip(names, answers(calls, tmp_path, HF_ENDPOINT=hub.url), strict=True)
    }
    assert {each["error"] for each in found.values()} == {"ModelError"}
    assert found["model"]["message"] == "me/model: no adapter_config.json: this is not an adapter"
    assert "use_dora must be null" in found["dora"]["message"]
    assert found["pickled"]["message"].endswith("no adapter_model.safetensors")
    assert "damaged: it is not as it was written" in found["damaged"]["message"]
    assert found["gated"]["message"] == "me/gated: access is restricted"
    assert found["missing"]["message"] == "me/missing: neither a folder here nor a model on the Hub"
    assert found["pickled@v9"]["message"] == "me/pickled: has no revision 'v9' on the Hub"
    fetched = [path for path in hub.asked if "/resolve/" in path]
    assert not any(path.endswith(".bin") or ("me/dora" in path and "safetensors" in path) for path in fetched)
