"""A Classifier takes any texts, moves between processes, and does not depend on torch's global state."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from rankwise import Classifier, DataError, RankwiseError, UsageError, hardware, sweep
from rankwise.nn.bank import AdapterSpec, Bank
from rankwise.store.run_folder import RunFolder
from tests import tiny

TEXTS = tiny.texts(9, seed=5)

# Texts


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        iter,
        lambda texts: (text for text in texts),
        lambda texts: dict.fromkeys(texts).keys() and iter(texts),
        np.array,
        lambda texts: np.array(texts, dtype=object),
        pd.Series,
        lambda texts: pd.Series(texts, index=range(100, 100 + len(texts))),
        lambda texts: pd.Series(texts, dtype="category"),
        pl.Series,
        lambda texts: Dataset.from_dict({"text": texts})["text"],
    ],
)
def test_any_iterable_of_strings(classifier: Classifier, form: Callable[[list[str]], Any]) -> None:
    assert classifier(form(TEXTS)) == classifier(TEXTS)


def test_words_are_explained_by_leaving_them_out(classifier: Classifier) -> None:
    """The effects are the probabilities that are lost, each predicted by itself."""
    found = classifier.explain("so very  glad")
    whole, *without = (
        classifier.predict_proba([each])[0] for each in ("so very  glad", "very  glad", "so glad", "so very")
    )
    label = int(whole.argmax())
    assert found.label == classifier.labels[label]
    assert found.probability == pytest.approx(whole[label])
    assert [(word.text, word.start) for word in found.words] == [("so", 0), ("very", 3), ("glad", 9)]
    expected = [whole[label] - each[label] for each in without]
    assert [word.effect for word in found.words] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UsageError, match="the text has 1 word"):
        classifier.explain("glad")
    with pytest.raises(DataError, match="the text is empty"):
        classifier.explain(" ")
    with pytest.raises(UsageError, match="one text, not list"):
        classifier.explain(["so very glad"])  # type: ignore[arg-type]  # what a user may try


def test_an_array_of_several_dimensions_is_a_table(classifier: Classifier) -> None:
    with pytest.raises(UsageError, match="not a table"):
        classifier.predict(np.array([TEXTS]))


def test_an_arrow_column_is_not_strings(classifier: Classifier) -> None:
    with pytest.raises(DataError, match="text 1 is of type StringScalar, not a string"):
        classifier.predict(pa.array(TEXTS))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["fine", None], "text 2 is missing"),
        (["fine", float("nan")], "text 2 is missing"),
        (pd.Series(["fine", None]), "text 2 is missing"),
        (pd.Series(["fine", pd.NA], dtype="string"), "text 2 is missing"),
        (pl.Series(["fine", "well", None]), "text 3 is missing"),
        (["fine", 7], "text 2 is of type int, not a string"),
        ((each for each in ["fine", " "]), "text 2 is empty"),
    ],
)
def test_a_bad_text_is_named_by_its_number(classifier: Classifier, texts: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        classifier.predict(texts)


@pytest.mark.parametrize(
    ("texts", "hint"),
    [
        ("fine", "classifier([text])"),
        (b"fine", "classifier([text])"),
        (7, "classifier([text])"),
        (pd.DataFrame({"text": TEXTS}), 'classifier(table["text"])'),
        (pl.DataFrame({"text": TEXTS}), 'classifier(table["text"])'),
        (Dataset.from_dict({"text": TEXTS}), 'classifier(table["text"])'),
        ({"text": TEXTS}, 'classifier(table["text"])'),
    ],
)
def test_what_is_no_list_of_texts_is_refused(classifier: Classifier, texts: Any, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        classifier.predict(texts)
    assert caught.value.hint == hint


def test_labels_and_probabilities_agree(classifier: Classifier) -> None:
    labels, shares = classifier.predict(TEXTS), classifier.predict_proba(TEXTS)
    assert shares.shape == (len(TEXTS), 3) and shares.dtype == np.float64
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert labels == [classifier.labels[i] for i in shares.argmax(axis=1)]
    assert labels == [found.label for found in classifier(TEXTS)]
    assert classifier.predict([]) == [] and classifier.predict_proba([]).shape == (0, 3)


def test_its_representation_says_what_it_is(classifier: Classifier, adapter: Path, gpt2_base: Path) -> None:
    assert repr(classifier) == (
        f"Classifier('{adapter}', labels=('joy', 'anger', 'fear'), rank=4, base='{gpt2_base}', "
        "device='cpu', precision='float32')"
    )


# Between processes and threads


def test_a_pickled_classifier_is_the_same(classifier: Classifier, adapter: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(adapter, tmp_path / "adapter")
    content = pickle.dumps(Classifier.load(moved, device="cpu", precision="float32"))
    shutil.rmtree(moved)
    again = pickle.loads(content)
    typed = [*TEXTS, "so glad<|endoftext|>"]  # which must not become a control token
    np.testing.assert_array_equal(again.logits(typed), classifier.logits(typed))
    assert repr(again).replace(str(moved), str(adapter)) == repr(classifier)


def test_a_base_that_is_not_there(adapter: Path, gpt2_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(gpt2_base, tmp_path / "base")
    content = pickle.dumps(Classifier.load(adapter, base=base, device="cpu"))
    shutil.rmtree(base)
    with pytest.raises(RankwiseError, match="base"):
        pickle.loads(content)


def test_one_made_by_hand_is_not_pickled(classifier: Classifier) -> None:
    backbone = classifier._backbone
    head = Bank([AdapterSpec(0, 1.0, 1.0, 0, 0.0, ())], backbone.modules(), backbone.d_model, 3)
    made = Classifier(backbone, head, classifier._tokenizer, tiny.LABELS, 32)
    assert repr(made) == "Classifier(labels=('joy', 'anger', 'fear'))"
    with pytest.raises(UsageError, match=r"only a classifier from Classifier\.load"):
        pickle.dumps(made)


def test_a_copy_is_the_classifier(classifier: Classifier) -> None:
    assert copy.deepcopy({"model": classifier})["model"] is classifier is copy.copy(classifier)


def test_a_spawned_process(classifier: Classifier) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(classifier.predict, (TEXTS,)) == classifier.predict(TEXTS)


def test_joblib(classifier: Classifier, tmp_path: Path) -> None:
    joblib.dump(classifier, tmp_path / "model")
    assert joblib.load(tmp_path / "model").predict(TEXTS) == classifier.predict(TEXTS)
    found = joblib.Parallel(n_jobs=1)(joblib.delayed(classifier.predict)([text]) for text in TEXTS[:2])
    assert found == [[label] for label in classifier.predict(TEXTS[:2])]


def test_eight_threads_get_the_same_answers(adapter: Path) -> None:
    shared = Classifier.load(adapter, device="cpu", precision="float32")  # its weights are not packed yet
    parts = [tiny.texts(6, seed=seed) for seed in range(24)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(shared.logits, parts))
    for part, found in zip(parts, together, strict=True):
        np.testing.assert_array_equal(found, shared.logits(part))


FORKED = """
import os, sys, threading
import torch
from rankwise import Classifier, UsageError, hardware

torch.set_num_threads(2)
classifier = Classifier.load(sys.argv[1], device="cpu", precision="float32")
texts = [f"{word} today i feel scared " * 5 for word in map(str, range(400))]
before = classifier.predict(texts)
torch.randn(4096, 512) @ torch.randn(512, 512)  # starts the threads of torch's pool
busy, free = threading.Event(), threading.Event()

def compute():
    with hardware.own_torch():
        busy.set()
        free.wait()

if sys.argv[2] == "busy":
    threading.Thread(target=compute).start()
    busy.wait()
child = os.fork()
if not child:
    try:
        print(classifier.predict(texts) == before, torch.get_num_threads())
    except UsageError as error:
        print(error.message)
    sys.stdout.flush()
    os._exit(0)
status = os.waitpid(child, 0)[1]
free.set()
print(status, classifier.predict(texts) == before)
"""


@pytest.mark.parametrize(
    ("parent", "expected"),
    [("idle", "True 1"), ("busy", "this process was forked while another thread was computing")],
)
def test_a_forked_process_works_or_refuses(adapter: Path, parent: str, expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED, adapter, parent],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "true"},
    )
    assert done.stdout.splitlines() == [expected, "0 True"], done.stderr


# torch's global state


@contextmanager
def gradients_off() -> Iterator[None]:
    with torch.no_grad():
        yield


@contextmanager
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


STATES = [
    gradients_off,
    torch.inference_mode,
    lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    double_by_default,
]
each_state = pytest.mark.parametrize(
    "state", STATES, ids=["no_grad", "inference_mode", "autocast", "float64"]
)


@each_state
def test_answers_do_not_depend_on_torchs_state(
    classifier: Classifier, adapter: Path, state: Callable[[], AbstractContextManager[Any]]
) -> None:
    with state():
        np.testing.assert_array_equal(classifier.logits(TEXTS), classifier.logits(TEXTS))
        loaded = Classifier.load(adapter, device="cpu", precision="float32")
        inside = loaded.logits(TEXTS)
    np.testing.assert_array_equal(inside, classifier.logits(TEXTS))
    np.testing.assert_array_equal(loaded.logits(TEXTS), classifier.logits(TEXTS))


@each_state
def test_a_sweep_does_not_depend_on_torchs_state(
    run: RunFolder,
    gpt2_base: Path,
    data_folder: Path,
    tmp_path: Path,
    state: Callable[[], AbstractContextManager[Any]],
) -> None:
    with state():
        results = sweep(tiny.recipe(gpt2_base, data_folder), tmp_path / "run")
    assert results == run.read_results()


def test_the_callers_state_is_left_alone() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad(), hardware.own_torch():
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        with hardware.own_torch():
            pass
        assert hardware._computing
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    assert not hardware._computing


# Memory

GROWTH = """
import os, sys
import torch
from rankwise.nn.linear import Linear
if sys.argv[1] == "limited":
    from rankwise import Classifier
linear = Linear(torch.zeros(64, 64), None, {})
for rows in range(1, 1500):
    linear(torch.zeros(rows, 64))
print(os.environ.get("LRU_CACHE_CAPACITY"), int(open("/proc/self/statm").read().split()[1]) >> 8)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_products_of_ever_new_shapes_keep_little_memory() -> None:
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    found = {}
    for kind in ("limited", "unlimited"):
        done = subprocess.run(
            [sys.executable, "-c", GROWTH, kind],
            capture_output=True,
            text=True,
            check=True,
            timeout=200,
            env=environment,
        )
        found[kind] = done.stdout.split()
    assert [found[kind][0] for kind in found] == ["64", "None"]
    if torch.cpu.get_capabilities().get("architecture") == "x86_64":
        assert int(found["limited"][1]) < int(found["unlimited"][1]) - 300  # MiB


@pytest.mark.parametrize(("given", "found"), [(None, "256"), ("7", "7")])
def test_fewer_compiled_products_are_kept(
    monkeypatch: pytest.MonkeyPatch, given: str | None, found: str
) -> None:
    """The environment takes precedence."""
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    for name in names:
        monkeypatch.setenv(name, given or "")
        if given is None:
            monkeypatch.delenv(name)
    hardware.limit_kernels()
    assert os.environ[names[0]] == found
    assert os.environ[names[1]] == (given or "64")
