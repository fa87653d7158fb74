"""Session fixtures: two tiny base models, labeled files, a finished run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Tests that run in several processes share the cores. The variable counts once torch is loaded.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // int(workers)))

import pytest

from rankwise import Classifier, sweep
from rankwise.store.run_folder import RunFolder
from rankwise.training import signals
from tests import tiny


@pytest.fixture(scope="session")
def gpt2_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny GPT-2, without a pad token."""
    return tiny.gpt2(tmp_path_factory.mktemp("bases") / "tiny-gpt2")


@pytest.fixture(scope="session")
def llama_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama, with a pad token."""
    return tiny.llama(tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of train, validation and test files of three classes."""
    return tiny.data_folder(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def own_signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Signals that the test may receive; their handlers are restored after it."""
    monkeypatch.setattr(signals, "_signals", signals._Signals())
    with signals.kept():
        yield


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, gpt2_base: Path, data_folder: Path) -> RunFolder:
    """A finished run of ranks 0, 1 and 4 on the tiny GPT-2. Read-only."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "tiny")
    sweep(tiny.recipe(gpt2_base, data_folder), folder.path)
    return folder


@pytest.fixture(scope="session")
def adapter(run: RunFolder) -> Path:
    """The rank-4 adapter of the run. Read-only."""
    return run.adapters / "r4-s110"


@pytest.fixture(scope="session")
def classifier(adapter: Path) -> Classifier:
    """The rank-4 adapter, loaded as a classifier."""
    return Classifier.load(adapter, device="cpu", precision="float32")
