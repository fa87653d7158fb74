"""Base models from the Hub: downloads from a local server, the cache, and an unreachable Hub.

The Hub client reads its settings on import, so each lookup runs in a new process.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import COMMIT, Hub, python, serving
from tests.unit.tiny_folder import TINY, model_folder


def look_up(what: str, home: Path, **settings: str) -> dict[str, Any]:
    """The result of `bases.<what>`, or its error, in a fresh process."""
    script = (
        "import json\nfrom rankwise import hub\nfrom rankwise.models import base as bases\n"
        "from rankwise.errors import RankwiseError\n"
        f"hub.SECONDS = 0.5\ntry:\n    value = bases.{what}\n"
        "except RankwiseError as e:\n"
        "    value = {'error': type(e).__name__, 'message': e.message, 'hint': e.hint}\n"
        "print(json.dumps(value, default=lambda x: str(getattr(x, 'folder', x))))"
    )
    value = python(script, home, **settings)
    return value if isinstance(value, dict) else {"value": value}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as server:
        yield server


def cached(home: Path, name: str) -> Path:
    """A model in the Hub's cache folder, as left by an earlier download."""
    repo = home / "hub" / f"models--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    return model_folder(repo / "snapshots" / COMMIT)


def test_a_model_comes_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    served = {path.name: path.read_bytes() for path in model_folder(tmp_path / "served").iterdir()}
    unwanted = {"pytorch_model.bin": b"pickle", "modeling.py": b"code", "onnx/config.json": b"{}"}
    hub.repos["me/tiny"] = served | unwanted
    folder = Path(look_up("find('me/tiny')", tmp_path, HF_ENDPOINT=hub.url)["value"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == served
    assert not any(path.endswith(name) for path in hub.asked for name in unwanted)
    assert look_up("find('me/tiny')", tmp_path, HF_HUB_OFFLINE="1")["value"] == str(folder)


def test_settings_come_without_weights(hub: Hub, tmp_path: Path) -> None:
    hub.repos["me/tiny"] = {p.name: p.read_bytes() for p in model_folder(tmp_path / "served").iterdir()}
    assert look_up("config('me/tiny')", tmp_path, HF_ENDPOINT=hub.url) == TINY
    assert look_up("has_pad_token('me/tiny')", tmp_path, HF_ENDPOINT=hub.url) == {"value": False}
    hub.repos["me/padded"] = hub.repos["me/tiny"] | {"special_tokens_map.json": b'{"pad_token": "<pad>"}'}
    assert look_up("has_pad_token('me/padded')", tmp_path, HF_ENDPOINT=hub.url) == {"value": True}
    assert not any(path.endswith("safetensors") for path in hub.asked)


def test_an_unsupported_model_is_refused_before_its_weights_come(hub: Hub, tmp_path: Path) -> None:
    hub.repos["me/bert"] = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"large"}
    answer = look_up("find('me/bert')", tmp_path, HF_ENDPOINT=hub.url)
    assert answer["error"] == "ModelError"
    assert "me/bert: config.json: model_type 'bert' is not supported" in answer["message"]
    assert not any(path.endswith("safetensors") for path in hub.asked)


def test_what_the_hub_refuses(hub: Hub, tmp_path: Path) -> None:
    hub.repos["me/tiny"] = {"config.json": json.dumps(TINY).encode()}
    hub.refusals["me/gated"] = (403, "GatedRepo")
    answers = {
        what: look_up(what, tmp_path, HF_ENDPOINT=hub.url)
        for what in ("find('me/missing')", "find('me/gated')", "find('me/tiny', revision='v9')")
    }
    assert {answer["error"] for answer in answers.values()} == {"ModelError"}
    messages = [answer["message"] for answer in answers.values()]
    assert messages == [
        "me/missing: neither a folder here nor a model on the Hub",
        "me/gated: access is restricted",
        "me/tiny: has no revision 'v9' on the Hub",
    ]
    assert "hf auth login" in answers["find('me/gated')"]["hint"]


def test_a_name_that_cannot_be_one(tmp_path: Path) -> None:
    for name in ("./missing/folder", "a b", "", "x" * 5000):
        answer = look_up(f"find({name!r})", tmp_path, HF_HUB_OFFLINE="1")
        assert answer["error"] == "ModelError", answer


def test_offline_with_the_model_in_the_cache(tmp_path: Path) -> None:
    folder = cached(tmp_path, "me/tiny")
    assert look_up("find('me/tiny')", tmp_path, HF_HUB_OFFLINE="1")["value"] == str(folder)
    assert look_up("config('me/tiny')", tmp_path, HF_HUB_OFFLINE="1") == TINY


def test_offline_without_it(tmp_path: Path) -> None:
    answer = look_up("find('gpt2')", tmp_path, HF_HUB_OFFLINE="1")
    assert answer["error"] == "Unreachable"
    assert answer["message"].startswith("gpt2: not a folder here, and the Hub cannot be reached: ")
    assert all(word in answer["hint"] for word in ("local folder", "smollm2-135m", "HTTPS_PROXY"))
    assert look_up("config('gpt2')['n_embd']", tmp_path, HF_HUB_OFFLINE="1") == {"value": 768}


def closed_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


def test_an_unreachable_hub_is_said_at_once(tmp_path: Path) -> None:
    begin = time.monotonic()
    answer = look_up("find('me/tiny')", tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{closed_port()}")
    assert answer["error"] == "Unreachable"
    assert time.monotonic() - begin < 20
    cached(tmp_path, "me/tiny")
    assert "value" in look_up("find('me/tiny')", tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{closed_port()}")


def test_a_silent_network_is_not_waited_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        answer = look_up(
            "find('me/tiny')", tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
    assert answer["error"] == "Unreachable"


def test_a_hub_in_trouble(hub: Hub, tmp_path: Path) -> None:
    hub.refusals["me/tiny"] = (503, "")
    answer = look_up("find('me/tiny')", tmp_path, HF_ENDPOINT=hub.url)
    assert answer["error"] == "Unreachable"
    assert "503" in answer["message"]
