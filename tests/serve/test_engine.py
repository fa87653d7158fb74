"""Answers do not depend on the texts, adapters and threads beside them; the queue gives back its room."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from rankwise import Classifier, ModelError, UsageError
from rankwise.nn.batch import Ids
from rankwise.nn.mixed import mixed_logits
from rankwise.serve import engine as engines
from rankwise.serve.engine import Batch, Engine
from rankwise.serve.lineup import Lineup, Served
from rankwise.serve.loading import Loader
from rankwise.serve.queue import Job, QueueFull, TokenQueue
from rankwise.store.run_folder import RunFolder
from tests import tiny
from tests.serve.made import LETTERS, logits_of, make_adapter

TEXTS = [*tiny.texts(40, seed=5), "x", "glad " * 40, "naïve 😀 日本語", "a\nline"]
WAIT = 600.0
"""Seconds. Longer than any wait on a busy machine, for tests that are not about overload."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, gpt2_base: Path) -> Path:
    """Adapters of several ranks and label sets on one base. Read-only."""
    folder = tmp_path_factory.mktemp("served")
    make_adapter(folder / "three", gpt2_base, rank=4, labels=LETTERS[:3])
    make_adapter(folder / "seven", gpt2_base, rank=2, labels=LETTERS, seed=2, max_length=16)
    make_adapter(folder / "two", gpt2_base, rank=8, labels=LETTERS[:2], seed=3, last_layers=1)
    make_adapter(folder / "probe", gpt2_base, rank=0, labels=LETTERS[:4], seed=4)
    return folder


def load(*folders: Path, precision: str = "float32") -> Lineup:
    return Loader([str(each) for each in folders], device="cpu", precision=precision).load()


@pytest.fixture(scope="module")
def lineup(folder: Path) -> Lineup:
    return load(*sorted(folder.iterdir()))


@pytest.fixture(scope="module")
def offline(folder: Path) -> dict[str, np.ndarray]:
    """Adapter -> (texts, classes) probabilities of `Classifier` for `TEXTS`."""
    loaded = {
        each.name: Classifier.load(each, device="cpu", precision="float32") for each in folder.iterdir()
    }
    return {name: classifier.predict_proba(TEXTS) for name, classifier in loaded.items()}


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(batch_tokens=256, max_wait=WAIT) as running:
        yield running


def probabilities(engine: Engine, served: Served, texts: list[str]) -> np.ndarray:
    (logits,) = logits_of(engine, [(served, served.encode(texts))])
    found: np.ndarray = softmax(logits.astype(np.float64), axis=-1)
    return found


# Answers


def test_all_adapters_at_once_answer_as_offline(
    engine: Engine, lineup: Lineup, offline: dict[str, np.ndarray]
) -> None:
    found = logits_of(engine, [(each, each.encode(TEXTS)) for each in lineup.adapters.values()])
    for name, logits in zip(lineup.adapters, found, strict=True):
        np.testing.assert_allclose(softmax(logits, axis=-1), offline[name], atol=1e-5, rtol=0)
        assert (logits.argmax(-1) == offline[name].argmax(-1)).all()


def test_a_single_adapter_is_merged(
    engine: Engine, folder: Path, lineup: Lineup, offline: dict[str, np.ndarray]
) -> None:
    (alone,) = load(folder / "three").adapters.values()
    assert not alone.adapter.factors and lineup.adapters["three"].adapter.factors
    np.testing.assert_array_equal(probabilities(engine, alone, TEXTS), offline["three"])


def test_the_texts_beside_a_text_do_not_matter(
    engine: Engine, lineup: Lineup, offline: dict[str, np.ndarray]
) -> None:
    draw = random.Random(1)
    names = list(lineup.adapters)
    for _ in range(20):
        picked = [(draw.choice(names), draw.sample(range(len(TEXTS)), draw.randint(1, 9))) for _ in range(5)]
        tasks = [(lineup.adapters[name], texts_at(lineup.adapters[name], rows)) for name, rows in picked]
        for (name, rows), logits in zip(picked, logits_of(engine, tasks), strict=True):
            np.testing.assert_allclose(softmax(logits, axis=-1), offline[name][rows], atol=1e-5, rtol=0)


def texts_at(served: Served, rows: list[int]) -> list[Ids]:
    return served.encode([TEXTS[row] for row in rows])


def test_bfloat16_answers_depend_little_on_the_batch(folder: Path) -> None:
    lineup = load(*sorted(folder.iterdir()), precision="bfloat16")
    with Engine() as engine:
        for served in lineup.adapters.values():
            together = probabilities(engine, served, TEXTS)
            alone = np.concatenate([probabilities(engine, served, [text]) for text in TEXTS])
            np.testing.assert_allclose(together, alone, atol=1e-2, rtol=0)


def test_many_threads_get_their_own_answers(
    engine: Engine, lineup: Lineup, offline: dict[str, np.ndarray]
) -> None:
    def ask(number: int) -> tuple[str, int, np.ndarray]:
        name = list(lineup.adapters)[number % len(lineup.adapters)]
        row = number % len(TEXTS)
        return name, row, probabilities(engine, lineup.adapters[name], [TEXTS[row]])[0]

    with ThreadPoolExecutor(16) as pool:
        for name, row, found in pool.map(ask, range(400)):
            np.testing.assert_allclose(found, offline[name][row], atol=1e-5, rtol=0)


def test_a_classifier_answers_eight_threads_as_one(folder: Path, offline: dict[str, np.ndarray]) -> None:
    classifier = Classifier.load(folder / "three", device="cpu", precision="float32")
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: classifier.predict_proba(TEXTS), range(24)):
            np.testing.assert_array_equal(found, offline["three"])


# Batches


def test_batches_fill_to_the_budget_and_mix_adapters(lineup: Lineup) -> None:
    batches: list[Batch] = []
    engine = Engine(batch_tokens=128, on_batch=batches.append)
    tasks = [(each, each.encode(TEXTS)) for each in lineup.adapters.values()]
    jobs = [engine.submit([task]) for task in tasks]  # before the thread starts
    with engine:
        for job in jobs:
            job.done.result()
    tokens = sum(len(ids) for _, texts in tasks for ids in texts)
    assert sum(batch.tokens for batch in batches) == tokens
    assert all(batch.tokens <= 128 for batch in batches)
    assert len(batches) <= 1.3 * tokens / 128
    assert batches[0].adapters == len(lineup.adapters)


def test_a_small_job_does_not_wait_for_a_large_one(lineup: Lineup) -> None:
    served = lineup.adapters["three"]
    queue = TokenQueue(10_000)
    large = Job([(served, served.encode(TEXTS * 5))])
    small = Job([(served, served.encode(["so glad"]))])
    queue.put(large)
    queue.put(small)
    assert small in {piece.job for piece in queue.take(64)}


def test_a_text_longer_than_the_budget_is_a_batch_of_its_own(lineup: Lineup) -> None:
    served = lineup.adapters["three"]
    with Engine(batch_tokens=4) as engine:
        assert probabilities(engine, served, ["glad " * 40, "so"]).shape == (2, 3)


# The queue


def test_a_full_queue_refuses_and_has_room_again(lineup: Lineup) -> None:
    served = lineup.adapters["three"]
    ids = served.encode(TEXTS[:8])
    size = sum(map(len, ids))
    engine = Engine(batch_tokens=8, queue_tokens=2 * size)
    jobs = [engine.submit([(served, ids)]) for _ in range(2)]
    with pytest.raises(QueueFull):
        engine.submit([(served, ids)])
    assert engine.tokens == 2 * size
    with engine:
        for job in jobs:
            job.done.result()
        assert logits_of(engine, [(served, ids)])[0].shape == (8, 3)
    assert engine.tokens == 0


def test_a_cancelled_job_gives_back_its_room(lineup: Lineup) -> None:
    served = lineup.adapters["three"]
    engine = Engine()
    job, other = (engine.submit([(served, served.encode(TEXTS))]) for _ in range(2))
    engine.cancel(job)
    assert engine.tokens == other.tokens
    with pytest.raises(CancelledError):
        job.done.result()
    with engine:
        assert other.done.result()[0].shape == (len(TEXTS), 3)


def test_jobs_cancelled_at_random_leave_nothing_behind(engine: Engine, lineup: Lineup) -> None:
    served, draw = lineup.adapters["seven"], random.Random(2)
    jobs = [engine.submit([(served, served.encode(TEXTS[: draw.randint(1, 40)]))]) for _ in range(60)]
    for job in draw.sample(jobs, 30):
        engine.cancel(job)
    kept = [job for job in jobs if not job.done.cancelled()]
    assert len(kept) >= 30
    for job in kept:
        assert np.isfinite(job.done.result()[0]).all()
    probabilities(engine, served, ["so"])  # the last batch has ended
    assert engine.tokens == 0


def test_an_overload_is_known_by_its_wait(lineup: Lineup) -> None:
    served = lineup.adapters["three"]
    with Engine(batch_tokens=64, max_wait=0.0) as engine:
        engine.warm_up(lineup)
        assert not engine.is_overloaded
    engine = Engine(batch_tokens=64, max_wait=1e-9)
    engine._rate = 100.0
    engine.submit([(served, served.encode(TEXTS))])
    assert engine.is_overloaded and engine.wait > 1
    with pytest.raises(QueueFull, match="wait"):
        engine.submit([(served, served.encode(["so"]))])


def test_a_failing_batch_ends_its_jobs_only(lineup: Lineup, monkeypatch: pytest.MonkeyPatch) -> None:
    served = lineup.adapters["three"]
    compute = mixed_logits

    def failing(*arguments: object) -> list[np.ndarray]:
        monkeypatch.setattr(engines, "mixed_logits", compute)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engines, "mixed_logits", failing)
    with Engine(batch_tokens=16, max_wait=WAIT) as engine:
        with pytest.raises(RuntimeError, match="out of memory"):
            probabilities(engine, served, TEXTS)
        assert probabilities(engine, served, ["so glad"]).shape == (1, 3)
    assert engine.tokens == 0


@pytest.mark.parametrize("ends", ["in a failure", "cancelled"])
def test_only_computed_batches_tell_the_speed(
    lineup: Lineup, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """A batch that ends at once would let the queue look faster than it is."""
    served = lineup.adapters["three"]

    def failing(*arguments: object) -> list[np.ndarray]:
        raise RuntimeError("out of memory")

    engine = Engine(batch_tokens=256, max_wait=WAIT)
    engine._rate = 1000.0
    task = (served, served.encode(TEXTS))
    if ends == "in a failure":
        monkeypatch.setattr(engines, "mixed_logits", failing)
        job = engine.submit([task])
    else:
        job = engine.submit([task])
        job.done.cancel()  # not in the queue, as if it were cancelled between there and the model
    with engine:
        pass
    assert job.done.done() and engine._rate == 1000.0 and engine.tokens == 0


def test_closing_completes_what_waits(lineup: Lineup) -> None:
    served = lineup.adapters["three"]
    with Engine(batch_tokens=16, max_wait=WAIT) as engine:
        jobs = [engine.submit([(served, served.encode(TEXTS))]) for _ in range(5)]
    assert all(job.done.done() for job in jobs)
    with pytest.raises(QueueFull, match="shutting down"):
        engine.submit([(served, served.encode(["so"]))])
    assert not engine.is_alive


# The lineup


def test_names_and_ranks_select(lineup: Lineup) -> None:
    assert [group.name for group in lineup.select(["two", "three", "two"])] == ["two", "three"]
    assert [group.name for group in lineup.select()] == [lineup.default]
    assert len(lineup.select(["all"])) == 4
    assert lineup.select(ranks=[8])[0].members == (lineup.adapters["two"],)
    with pytest.raises(UsageError, match="no adapter 'four'"):
        lineup.select(["four"])
    with pytest.raises(UsageError, match="no adapter of rank 3"):
        lineup.select(ranks=[3])


def test_a_run_has_the_names_of_its_adapters(run: RunFolder) -> None:
    lineup = load(run.path)
    assert list(lineup.adapters) == ["r0-s110", "r1-s110", "r4-s110"]
    assert lineup.default in lineup.adapters
    assert [each.rank for each in lineup.select(ranks=[4])[0].members] == [4]


def test_equal_names_are_refused(folder: Path, tmp_path: Path, gpt2_base: Path) -> None:
    other = make_adapter(tmp_path / "three", gpt2_base)
    with pytest.raises(UsageError, match="two adapters have the name 'three'"):
        load(folder / "three", other)
    named = Loader([str(folder / "three"), f"fourth={other}"], device="cpu").load()
    assert list(named.adapters) == ["three", "fourth"]


def test_the_home_folder_has_adapters(
    folder: Path, tmp_path: Path, gpt2_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell expands `~` neither in quotes nor after a name."""
    monkeypatch.setenv("HOME", str(folder))
    assert list(load(Path("~/three")).adapters) == ["three"]
    lineup = load(Path("a=~/three"), Path("b=~/seven"))
    assert {name: each.source.folder for name, each in lineup.adapters.items()} == {
        "a": folder / "three",
        "b": folder / "seven",
    }
    monkeypatch.setenv("HOME", str(tmp_path))
    make_adapter(tmp_path / "x=y" / "one", gpt2_base)
    assert list(load(Path("~/x=y/one")).adapters) == ["one"]
    with pytest.raises(UsageError, match=f"{tmp_path}/missing: no such folder"):
        load(Path("~/missing"))


@pytest.mark.parametrize("names", [["one"], ["one", "two"]])
def test_a_base_that_is_gone_is_told_with_its_adapter(
    names: list[str], tmp_path: Path, gpt2_base: Path
) -> None:
    base = shutil.copytree(gpt2_base, tmp_path / "base")
    folders = [make_adapter(tmp_path / name, base, seed=seed) for seed, name in enumerate(names)]
    base.rename(tmp_path / "moved")
    with pytest.raises(ModelError, match="its base model cannot be used") as caught:
        load(*folders)
    assert caught.value.message.startswith(f"{folders[0]}: ") and "base='FOLDER'" in caught.value.hint
    with pytest.raises(ModelError) as predicting:
        Classifier.load(folders[0])
    assert caught.value.message == predicting.value.message and caught.value.hint == predicting.value.hint
    given = Loader([str(each) for each in folders], base=str(tmp_path / "moved"), device="cpu")
    assert list(given.load().adapters) == names


def test_an_adapter_that_names_no_base_is_told(folder: Path, tmp_path: Path, gpt2_base: Path) -> None:
    """Also if another one names a base."""
    nameless = make_adapter(tmp_path / "nameless", gpt2_base)
    config = nameless / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    (nameless / "sha256.json").unlink(missing_ok=True)
    for folders in ([nameless], [folder / "three", nameless]):
        with pytest.raises(ModelError, match="nameless: does not say which base model it is for"):
            load(*folders)


def test_other_bases_are_refused(folder: Path, tmp_path: Path, llama_base: Path) -> None:
    other = make_adapter(tmp_path / "llama", llama_base)
    with pytest.raises(UsageError, match="several base models"):
        load(folder / "three", other)


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        load(tmp_path / "missing")
    with pytest.raises(ModelError):
        load(tmp_path)
