"""Adapters that are added, replaced or removed on disk are picked up without a lost or mixed answer."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rankwise import Classifier, UsageError
from rankwise.serve.engine import Engine
from rankwise.serve.lineup import Lineup
from rankwise.serve.loading import Loader
from tests import tiny
from tests.serve.load import connected
from tests.serve.made import LETTERS, logits_of, make_adapter
from tests.serve.running import AUTHORIZED, TOKEN, Running, running

TEXTS = tiny.texts(5, seed=3)


@pytest.fixture
def run(tmp_path: Path, gpt2_base: Path) -> Path:
    """A run folder with two adapters."""
    make_adapter(tmp_path / "run" / "adapters" / "one", gpt2_base, seed=1)
    make_adapter(tmp_path / "run" / "adapters" / "two", gpt2_base, seed=2, rank=2)
    return tmp_path / "run"


def loader(run: Path) -> Loader:
    return Loader([str(run)], device="cpu", precision="float32")


def replace(folder: Path, base: Path, **options: Any) -> None:
    """Put another adapter in the place of one."""
    new = make_adapter(folder.with_name("new") / "x", base, **options)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
    new.parent.rmdir()


def answers(lineup: Lineup, name: str) -> np.ndarray:
    served = lineup.adapters[name]
    with Engine() as engine:
        return logits_of(engine, [(served, served.encode(TEXTS))])[0]


def test_changes_are_found(run: Path, gpt2_base: Path) -> None:
    source = loader(run)
    old = source.load()
    replace(run / "adapters" / "one", gpt2_base, seed=7, labels=LETTERS)
    make_adapter(run / "adapters" / "three", gpt2_base, seed=3)
    shutil.rmtree(run / "adapters" / "two")
    new, changes = source.reload(old)
    assert (changes.added, changes.replaced, changes.removed) == (["three"], ["one"], ["two"])
    assert not changes.failed
    assert list(new.adapters) == ["one", "three"] and new.adapters["one"].labels == LETTERS
    assert list(old.adapters) == ["one", "two"]
    again, changes = source.reload(new)
    assert again.adapters["one"] is new.adapters["one"] and not changes.added + changes.replaced


def test_unchanged_adapters_keep_their_tensors(run: Path, gpt2_base: Path) -> None:
    source = loader(run)
    old = source.load()
    replace(run / "adapters" / "one", gpt2_base, seed=7)
    new, _ = source.reload(old)
    assert new.adapters["two"] is old.adapters["two"]
    assert new.adapters["one"].backbone is old.adapters["one"].backbone
    assert new.adapters["one"].tokenizer is old.adapters["one"].tokenizer


@pytest.mark.parametrize("damage", ["truncate", "empty", "config", "labels"])
def test_a_broken_adapter_leaves_the_old_one(run: Path, damage: str, gpt2_base: Path) -> None:
    source = loader(run)
    old = source.load()
    before = answers(old, "one")
    folder = run / "adapters" / "one"
    weights = folder / "adapter_model.safetensors"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "empty":
        weights.unlink()
    elif damage == "config":
        (folder / "adapter_config.json").write_text("{}")
    else:
        (folder / "classifier.json").write_text("[")
    new, changes = source.reload(old)
    assert list(changes.failed) == ["one"] and changes.failed["one"]
    np.testing.assert_array_equal(answers(new, "one"), before)


def test_an_adapter_of_another_base_is_refused(run: Path, llama_base: Path) -> None:
    source = loader(run)
    old = source.load()
    make_adapter(run / "adapters" / "llama", llama_base)
    new, changes = source.reload(old)
    assert list(changes.failed) == ["llama"] and list(new.adapters) == list(old.adapters)


def test_one_adapter_becomes_two_and_one_again(run: Path, gpt2_base: Path) -> None:
    two = run / "adapters" / "two"
    aside = two.rename(run / "aside")
    source = loader(run)
    one = source.load()
    alone = answers(one, "one")
    assert not one.adapters["one"].adapter.factors  # merged
    aside.rename(two)
    both, _ = source.reload(one)
    assert both.adapters["one"].adapter.factors
    np.testing.assert_allclose(answers(both, "one"), alone, atol=1e-4)
    shutil.rmtree(two)
    again, changes = source.reload(both)
    assert changes.removed == ["two"] and not again.adapters["one"].adapter.factors
    np.testing.assert_array_equal(answers(again, "one"), alone)


def test_the_last_adapter_stays(run: Path) -> None:
    source = loader(run)
    old = source.load()
    shutil.rmtree(run / "adapters")
    (run / "adapters").mkdir()
    with pytest.raises(UsageError, match="no adapters to serve"):
        source.reload(old)


# Over HTTP


@pytest.fixture
def server(run: Path) -> Iterator[Running]:
    with running(run, "--precision", "float32", token=TOKEN) as found:
        yield found


def reload(server: Running) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/adapters/reload", headers=AUTHORIZED, timeout=120)


def test_answers_under_load_are_old_or_new(server: Running, run: Path, gpt2_base: Path) -> None:
    folder = run / "adapters" / "one"
    versions = []
    for seed in (1, 7, 8):
        other = make_adapter(run.parent / f"v{seed}", gpt2_base, seed=seed)
        versions.append(Classifier.load(other, device="cpu", precision="float32").predict_proba(TEXTS))
    seen: list[set[int]] = []
    stop = False

    async def client() -> None:
        async with connected(server.address) as connection:
            while not stop:
                reply = await connection.ask("/v1/predict", {"texts": TEXTS, "adapters": "one"})
                assert reply.status == 200, reply.body
                found = np.array(
                    [in_order(each["answers"][0]) for each in reply.json["predictions"]]
                )  # (texts, classes)
                fits = [i for i, each in enumerate(versions) if np.allclose(found, each, atol=1e-5)]
                assert len(fits) == 1, "an answer of no version, or of a mixture"
                seen.append(set(fits))

    async def change() -> None:
        nonlocal stop
        for seed in (7, 8):
            await asyncio.sleep(0.5)
            replace(folder, gpt2_base, seed=seed)
            found = (await asyncio.to_thread(reload, server)).json()
            assert found == {"added": [], "replaced": ["one"], "removed": [], "failed": {}, "notes": []}
        await asyncio.sleep(0.5)
        stop = True

    async def both() -> None:
        await asyncio.gather(change(), *(client() for _ in range(4)))

    asyncio.run(both())
    assert set().union(*seen) == {0, 1, 2}


def in_order(answer: dict[str, Any]) -> list[float]:
    found = {each["label"]: each["probability"] for each in answer["probabilities"]}
    return [found[label] for label in LETTERS[:3]]


def test_a_failed_reload_is_told(server: Running, run: Path) -> None:
    (run / "adapters" / "one" / "adapter_model.safetensors").write_bytes(b"")
    found = reload(server).json()
    assert list(found["failed"]) == ["one"]
    shutil.rmtree(run / "adapters")
    (run / "adapters").mkdir()
    refused = reload(server)
    assert refused.status_code == 422 and refused.json()["error"]["code"] == "invalid_request"
    both = {"texts": "so glad", "adapters": ["one", "two"]}
    assert httpx.post(f"{server.url}/v1/predict", json=both, headers=AUTHORIZED).status_code == 200


def test_a_reload_needs_a_token(run: Path) -> None:
    with running(run, "--precision", "float32") as server:
        found = httpx.post(f"{server.url}/v1/adapters/reload")
        assert found.status_code == 403 and found.json()["error"]["code"] == "forbidden"
