"""The server reads an adapter and its base model as `predict` does, and says the same about them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from rankwise import Classifier
from rankwise.models.tokenizer import Tokenizer
from rankwise.serve.engine import Engine
from rankwise.serve.lineup import Lineup
from rankwise.serve.loading import Loader
from tests import tiny
from tests.serve.made import logits_of, make_adapter

TEXTS = tiny.texts(5, seed=3)


def load(*folders: Path) -> Lineup:
    return Loader([str(each) for each in folders], device="cpu", precision="float32").load()


@pytest.fixture
def base(tmp_path: Path, gpt2_base: Path) -> Path:
    """A copy of the base model, to be changed."""
    return shutil.copytree(gpt2_base, tmp_path / "base")


@pytest.fixture(params=[1, 2], ids=["alone", "together"])
def others(request: pytest.FixtureRequest, tmp_path: Path, gpt2_base: Path, base: Path) -> list[Path]:
    """Adapters beside the one in question: none, or one, with which it shares a backbone."""
    return [make_adapter(tmp_path / "other", base, seed=9)] * (request.param - 1)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_pad_tokens_at_the_end_of_a_text(tmp_path: Path, base: Path, others: list[Path]) -> None:
    """They are left out, and only the config of the base tells which token it is."""
    folder = make_adapter(tmp_path / "one", base)
    end = int(Tokenizer.load(base)([TEXTS[0]], 32)[0][-1])
    change(base / "config.json", pad_token_id=end)
    classifier = Classifier.load(folder, device="cpu", precision="float32")
    served = load(folder, *others).adapters["one"]
    ids = served.encode(TEXTS)
    assert ids[0][-1] != end
    with Engine() as engine:
        np.testing.assert_allclose(logits_of(engine, [(served, ids)])[0], classifier.logits(TEXTS), atol=1e-4)


def test_another_version_of_the_base(tmp_path: Path, base: Path, others: list[Path]) -> None:
    folder = make_adapter(tmp_path / "one", base, base_sha256="0" * 64)
    notes: list[str] = []
    Classifier.load(folder, device="cpu", on_note=notes.append)
    assert "another version" in notes[0]
    assert list(load(folder, *others).adapters["one"].notes) == notes


def test_label_names_of_the_base(tmp_path: Path, base: Path, others: list[Path]) -> None:
    folder = make_adapter(tmp_path / "one", base)
    (folder / "classifier.json").unlink()  # as PEFT saves it
    (folder / "sha256.json").unlink()
    change(base / "config.json", id2label={"0": "x", "1": "y", "2": "z"})
    assert Classifier.load(folder, device="cpu", on_note=lambda note: None).labels == ("x", "y", "z")
    served = load(folder, *others).adapters["one"]
    assert served.labels == ("x", "y", "z")
    assert served.notes == (f"{folder}: the label names are those of {base}: x, y, z",)


def test_an_adapter_of_windows(tmp_path: Path, base: Path, others: list[Path]) -> None:
    folder = make_adapter(tmp_path / "one", base, window_stride=8)
    (note,) = load(folder, *others).adapters["one"].notes
    assert note == f"{folder}: reads long texts in windows; the server cuts them at 32 tokens"


# Reload


def without_tokenizer(folder: Path) -> Path:
    """An adapter that uses the tokenizer of its base."""
    for path in [*Tokenizer.load(folder).files(), folder / "sha256.json"]:
        path.unlink()
    return folder


def with_embedding(folder: Path, base: Path, *, own: bool, added: int = 1) -> Path:
    """An adapter with embeddings, as PEFT saves them if tokens were added; its own, or those of the base."""
    weights = folder / "adapter_model.safetensors"
    table = safetensors.torch.load_file(base / "model.safetensors")["transformer.wte.weight"]
    embedding = torch.cat([table + own, torch.ones(added, table.shape[1])])
    tensors = safetensors.torch.load_file(weights)
    name = "base_model.model.transformer.wte.weight"
    safetensors.torch.save_file(tensors | {name: embedding}, weights, {"format": "pt"})
    (folder / "sha256.json").unlink()
    return folder


def test_an_adapter_without_a_tokenizer_is_added(tmp_path: Path, base: Path) -> None:
    run = tmp_path / "run"
    make_adapter(run / "adapters" / "one", base)
    loader = Loader([str(run)], device="cpu", precision="float32")
    old = loader.load()
    without_tokenizer(make_adapter(run / "adapters" / "two", base, seed=2, base_sha256="0" * 64))
    new, changes = loader.reload(old)
    assert changes.added == ["two"] and not changes.failed
    assert "another version" in changes.notes[0] and len(changes.notes) == 1
    assert new.adapters["two"].tokenizer is new.adapters["one"].tokenizer


@pytest.mark.parametrize("number", [1, 2])
def test_an_adapter_that_cannot_share_is_not_added(tmp_path: Path, base: Path, number: int) -> None:
    run = tmp_path / "run"
    for seed in range(number):
        make_adapter(run / "adapters" / f"s{seed}", base, seed=seed)
    loader = Loader([str(run)], device="cpu", precision="float32")
    old = loader.load()
    with_embedding(make_adapter(run / "adapters" / "x", base), base, own=True)
    with_embedding(make_adapter(run / "adapters" / "y", base), base, own=False)
    new, changes = loader.reload(old)
    assert changes.added == ["y"] and list(new.adapters) == [*old.adapters, "y"]
    assert list(changes.failed) == ["x"] and "embeddings of its own" in changes.failed["x"]


def test_an_old_adapter_stays_if_its_successor_cannot_share(tmp_path: Path, base: Path) -> None:
    run = tmp_path / "run"
    for seed in range(2):
        make_adapter(run / "adapters" / f"s{seed}", base, seed=seed)
    loader = Loader([str(run)], device="cpu", precision="float32")
    old = loader.load()
    shutil.rmtree(run / "adapters" / "s1")
    with_embedding(make_adapter(run / "adapters" / "s1", base, seed=3), base, own=True)
    new, changes = loader.reload(old)
    assert list(changes.failed) == ["s1"] and new.adapters["s1"] is old.adapters["s1"]
