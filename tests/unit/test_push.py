"""`rankwise push`: what goes to the Hub, and refusals. A local server is the Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rankwise import Classifier, UsageError, push
from rankwise.models.hub_adapters import ADAPTER_FILES
from rankwise.store.run_folder import RunFolder
from tests import tiny
from tests.hub_server import TOKEN, Hub, answers, serving

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
    load = (
        f"rankwise.Classifier.load('me/tiny', device='cpu', precision='float32').logits({TEXTS!r}).tolist()"
    )
    calls = [
        call(adapter, "me/tiny"),
        load,
        call(adapter.with_name("r1-s110"), "me/tiny", revision="v1"),
        load,
        load.replace("me/tiny", "me/tiny@v1"),
        call(adapter.with_name("r1-s110"), "me/tiny", public=True),
        load,
    ]
    found = answers(calls, tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    new, four, branch, same, one, again, replaced = (each["value"] for each in found)
    assert new["created"] and new["url"].startswith(f"{hub.url}/me/tiny/commit/")
    assert hub.private == {"me/tiny": True}
    assert hub.messages == ["rankwise: r4-s110", "rankwise: r1-s110", "rankwise: r1-s110"]
    assert not branch["created"] and branch["revision"] == "v1"
    assert "me/tiny exists: this added a commit" in found[2]["notes"][-1]
    assert not again["created"]
    expected = {
        name: Classifier.load(adapter.with_name(name), device="cpu", precision="float32")
        .logits(TEXTS)
        .tolist()
        for name in ("r4-s110", "r1-s110")
    }
    assert four == same == expected["r4-s110"]
    assert one == replaced == expected["r1-s110"]
    files = hub.repos["me/tiny"]
    assert files.keys() <= {*ADAPTER_FILES, "README.md", "results.json"}
    assert files["results.json"] == run.results.read_bytes()


def test_the_card_loads_the_repository(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    answers([call(adapter, "me/tiny")], tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    card = hub.repos["me/tiny"]["README.md"].decode()
    assert 'Classifier.load("me/tiny")' in card
    assert 'open(hf_hub_download("me/tiny", "classifier.json"), encoding="utf-8")' in card
    assert "from huggingface_hub import hf_hub_download" in card
    assert "FOLDER" not in card


def test_refusals_of_the_hub(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    hub.refusals["me/busy"] = (503, "")
    here = {"HF_ENDPOINT": hub.url}
    calls = [call(adapter, name) for name in ("other/tiny", "me/busy")]
    other, busy = (each["value"] for each in answers(calls, tmp_path, HF_TOKEN=TOKEN, **here))
    assert other["error"] == "UsageError"
    assert other["message"] == "other/tiny: you may not write there"
    assert "other must be your user name or an organization of yours" in other["hint"]
    assert busy["error"] == "Unreachable" and "503" in busy["message"]
    (wrong,) = answers([call(adapter, "me/tiny")], tmp_path, HF_TOKEN="hf_wrong", **here)
    assert wrong["value"]["message"] == "me/tiny: the Hub does not accept the token"
    none, offline = (
        answers([call(adapter, "me/tiny")], tmp_path, **settings)[0]["value"]
        for settings in (here, here | {"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"})
    )
    assert (none["error"], none["message"]) == ("UsageError", "no token for the Hub")
    assert "hf auth login" in none["hint"] and "HF_TOKEN" in none["hint"]
    assert offline["error"] == "Unreachable"
    assert hub.repos == {}


@pytest.mark.parametrize(
    "name", ["tiny", "me/tiny/more", "me/", "/tiny", "me/a b", "me/ti--ny", "me/tiny.", ""]
)
def test_a_name_that_is_none(adapter: Path, name: str) -> None:
    with pytest.raises(UsageError, match="not the name of a repository on the Hub"):
        push(adapter, name, dry_run=True)


def test_a_damaged_adapter_stays_here(adapter: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(adapter, tmp_path / "copy")
    (copy / "classifier.json").write_text("{}")
    with pytest.raises(Exception, match="damaged: it is not as it was written"):
        push(copy, "me/tiny", dry_run=True)


def test_the_card_of_an_adapter_that_has_none(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(adapter, tmp_path / "copy", ignore=shutil.ignore_patterns("README.md"))
    answers([call(copy, "me/tiny")], tmp_path, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    card = hub.repos["me/tiny"]["README.md"].decode()
    assert card.startswith("---\n") and "library_name: peft" in card
    assert 'Classifier.load("me/tiny")' in card and "joy, anger, fear" in card.replace("\n", " ")
    assert "results.json" not in hub.repos["me/tiny"]


def test_the_command(run: RunFolder) -> None:
    from typer.testing import CliRunner

    from rankwise.cli.app import app

    done = CliRunner().invoke(app, ["push", str(run.path), "me/tiny", "--dry-run"])
    assert done.exit_code == 0, done.stderr
    assert "adapter_model.safetensors" in done.stdout and "would go to me/tiny, branch main" in done.stdout
    done = CliRunner().invoke(app, ["push", str(run.path), "me/tiny", "--dry-run", "--json", "--public"])
    assert json.loads(done.stdout)["private"] is False
