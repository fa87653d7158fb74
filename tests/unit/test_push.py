"""`rankwise push`: what goes to the Hub, and refusals. A local server is the Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import pytest
from scipy.special import softmax
from typer.testing import CliRunner

from rankwise import Classifier, ModelError, Unreachable, UsageError, push
from rankwise.cli.app import app
from rankwise.models.hub_adapters import ADAPTER_FILES
from rankwise.store.run_folder import RunFolder
from tests import tiny
from tests.hub_server import TOKEN, Hub, answers, python, serving

TEXTS = tiny.texts(3, seed=4)
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "classifier.json", "sha256.json"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as server:
        yield server


def call(folder: Path, repository: str, **options: Any) -> str:
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return f"rankwise.push({str(folder)!r}, {repository!r}{given}, on_note=notes.append)"


def test_what_would_be_pushed(run: RunFolder, adapter: Path) -> None:
    """No token, no network; and no texts."""
    notes: list[str] = []
    found = push(run.path, "me/tiny", dry_run=True, on_note=notes.append)
    assert found.file_bytes.keys() == ADAPTER | TOKENIZER | {"README.md", "results.json"}
    assert (found.repository, found.revision, found.private) == ("me/tiny", "main", True)
    assert (found.created, found.url) == (None, None)
    weights = next(run.adapters.glob("r*")) / "adapter_model.safetensors"
    assert found.file_bytes[weights.name] > 500
    assert "the base model is a folder on this machine" in notes[0]
    merged = push(adapter, "me/tiny", merged=True, public=True, dry_run=True)
    assert merged.file_bytes.keys() == TOKENIZER | {
        "config.json", "model.safetensors", "README.md", "results.json"
    }  # fmt: skip
    assert not merged.private


def test_there_and_back(hub: Hub, adapter: Path, run: RunFolder, tmp_path: Path) -> None:
    """A new repository, another branch, another commit; and an adapter without a card."""
    other = adapter.with_name("r1-s110")
    bare = shutil.copytree(adapter, tmp_path / "bare", ignore=shutil.ignore_patterns("README.md"))
    load = (
        f"rankwise.Classifier.load('me/tiny', device='cpu', precision='float32').logits({TEXTS!r}).tolist()"
    )
    calls = [
        call(adapter, "me/tiny"),
        load,
        call(other, "me/tiny", revision="v1"),
        load,
        load.replace("me/tiny", "me/tiny@v1"),
        call(other, "me/tiny", public=True),
        load,
        call(bare, "me/bare", public=True),
    ]
    found = answers(calls, tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    new, four, branch, same, one, again, replaced, _ = (each["value"] for each in found)
    assert new["created"] and new["url"].startswith(f"{hub.url}/me/tiny/commit/")
    assert hub.private == {"me/tiny": True, "me/bare": False}
    names = ("r4-s110", "r1-s110", "r1-s110", "bare")
    assert hub.messages == [f"rankwise: {name}" for name in names]
    assert (branch["created"], branch["revision"], again["created"]) == (False, "v1", False)
    assert "me/tiny exists: this added a commit" in found[2]["notes"][-1]
    expected = {
        name: Classifier.load(adapter.with_name(name), device="cpu", precision="float32").logits(TEXTS)
        for name in ("r4-s110", "r1-s110")
    }
    assert four == same == expected["r4-s110"].tolist()
    assert one == replaced == expected["r1-s110"].tolist()
    files = hub.repos["me/tiny"]
    assert files.keys() <= {*ADAPTER_FILES, "README.md", "results.json"}
    assert files["results.json"] == run.results.read_bytes()
    card = files["README.md"].decode()
    assert 'Classifier.load("me/tiny")' in card and "FOLDER" not in card
    assert 'open(hf_hub_download("me/tiny", "classifier.json"), encoding="utf-8")' in card
    assert "from huggingface_hub import hf_hub_download" in card
    assert "results.json" not in hub.repos["me/bare"]  # it is in no run
    card = hub.repos["me/bare"]["README.md"].decode()
    assert card.startswith("---\n") and "library_name: peft" in card
    assert 'Classifier.load("me/bare")' in card and ", ".join(Classifier.load(bare).labels) in card


LABEL = """
import json, sys
from huggingface_hub import snapshot_download
from transformers import pipeline
classify = pipeline("text-classification", snapshot_download("me/merged"))
print(json.dumps(classify(sys.argv[1:])))
"""


def test_a_merged_model_there_and_back(hub: Hub, adapter: Path, run: RunFolder, tmp_path: Path) -> None:
    """What others download is a model of transformers, with the adapter's labels and probabilities."""
    pushing = call(adapter, "me/merged", merged=True, public=True)
    (pushed,) = answers([pushing], tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert pushed["value"]["created"] and hub.messages == ["rankwise: r4-s110, merged into its base model"]
    files = hub.repos["me/merged"]
    assert files.keys() == TOKENIZER | {"config.json", "model.safetensors", "README.md", "results.json"}
    assert {name: len(content) for name, content in files.items()} == pushed["value"]["file_bytes"]
    assert files["results.json"] == run.results.read_bytes()
    card = files["README.md"].decode()
    assert "library_name: transformers" in card and '"me/merged"' in card
    found = python(LABEL, tmp_path, *TEXTS, HF_ENDPOINT=hub.url)
    classifier = Classifier.load(adapter, device="cpu", precision="float32")
    assert [each["label"] for each in found] == classifier.predict(TEXTS)
    expected = softmax(classifier.logits(TEXTS), axis=1).max(axis=1)
    assert [each["score"] for each in found] == pytest.approx(expected.tolist(), abs=1e-5)


def test_refusals_of_the_hub(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    hub.refusals["me/busy"] = (503, "")
    environment = "__import__('os').environ"
    calls = [
        call(adapter, "other/tiny"),
        call(adapter, "me/busy"),
        f"{environment}.update(HF_TOKEN='hf_wrong')",
        call(adapter, "me/tiny"),
        f"{environment}.pop('HF_TOKEN')",
        call(adapter, "me/tiny"),
    ]
    found = answers(calls, tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    other, busy, _, wrong, _, none = (each["value"] for each in found)
    assert (other["error"], other["message"]) == ("UsageError", "other/tiny: you may not write there")
    assert "other must be your user name or an organization of yours" in other["hint"]
    assert busy["error"] == "Unreachable" and "503" in busy["message"]
    assert wrong["message"] == "me/tiny: the Hub does not accept the token"
    assert (none["error"], none["message"]) == ("UsageError", "no token for the Hub")
    assert "hf auth login" in none["hint"] and "HF_TOKEN" in none["hint"]
    assert hub.repos == {}


def test_a_push_that_fails_after_creating_the_repository(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    """The user is told what is left on the Hub, and a second push fills it."""
    hub.full = True
    refused, again = answers(
        [call(adapter, "me/tiny"), call(adapter, "me/tiny")], tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN
    )
    assert hub.repos == {"me/tiny": {}}
    left = "the private repository me/tiny was created, and is empty: push again, or delete it"
    assert refused["value"]["error"] == "UsageError" and refused["value"]["hint"] == left
    assert again["value"]["hint"] == ""  # the repository was there before
    hub.full = False
    (filled,) = answers([call(adapter, "me/tiny")], tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert filled["value"]["created"] is False and hub.repos["me/tiny"]


def test_no_hub(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object, **options: object) -> NoReturn:
        raise ConnectionError("no route")

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(Unreachable, match="me/tiny: the Hub cannot be reached: no route"):
        push(adapter, "me/tiny")


@pytest.mark.parametrize(
    "name", ["tiny", "me/tiny/more", "me/", "/tiny", "me/a b", "me/ti--ny", "me/tiny.", ""]
)
def test_a_name_that_is_none(adapter: Path, name: str) -> None:
    with pytest.raises(UsageError, match="not the name of a repository on the Hub"):
        push(adapter, name, dry_run=True)


def test_a_damaged_adapter_stays_here(adapter: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(adapter, tmp_path / "copy")
    (copy / "classifier.json").write_text("{}")
    with pytest.raises(ModelError, match="damaged: it is not as it was written"):
        push(copy, "me/tiny", dry_run=True)


def test_the_command(run: RunFolder) -> None:
    done = CliRunner().invoke(app, ["push", str(run.path), "me/tiny", "--dry-run"])
    assert done.exit_code == 0, done.stderr
    assert "adapter_model.safetensors" in done.stdout and "would go to me/tiny, branch main" in done.stdout
    done = CliRunner().invoke(app, ["push", str(run.path), "me/tiny", "--dry-run", "--json", "--public"])
    assert json.loads(done.stdout)["private"] is False
