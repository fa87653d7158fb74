"""Adapters of several label sets, and a server for them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.serve.made import LETTERS, make_adapter

if TYPE_CHECKING:
    from tests.serve.running import Running

NEED_EXTRA = (
    *("test_api.py", "test_browser.py", "test_client.py", "test_client_refused.py", "test_confidence.py"),
    *("test_guard.py", "test_hardness.py", "test_reload.py", "test_reports.py", "test_server.py"),
    "test_tasks.py",
)
collect_ignore = [] if find_spec("fastapi") and find_spec("httpx") else list(NEED_EXTRA)
"""Without the extra `serve`, only the engine can be tested."""


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory, gpt2_base: Path) -> Path:
    """Adapters of several ranks and label sets on one base. Read-only."""
    folder = tmp_path_factory.mktemp("served")
    make_adapter(folder / "three", gpt2_base, rank=4, labels=LETTERS[:3])
    make_adapter(folder / "seven", gpt2_base, rank=2, labels=LETTERS, seed=2, max_length=16)
    make_adapter(folder / "two", gpt2_base, rank=8, labels=LETTERS[:2], seed=3, last_layers=1)
    make_adapter(folder / "twin", gpt2_base, rank=8, labels=LETTERS[:2], seed=4, last_layers=1)
    make_adapter(folder / "probe", gpt2_base, rank=0, labels=LETTERS[:4], seed=5)
    return folder


@pytest.fixture(scope="session")
def server(served_folder: Path) -> Iterator[Running]:
    """A server of these adapters, with a token. `three` is the default."""
    from tests.serve.running import TOKEN, running

    names = ("three", "seven", "two", "twin", "probe")
    options = ("--precision", "float32", "--device", "cpu")
    with running(*(served_folder / name for name in names), *options, token=TOKEN) as found:
        yield found
