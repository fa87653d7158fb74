"""A server without a token answers to the names of its own machine only."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from rankwise.serve.guard import LOCAL
from tests.serve.running import TOKEN, Running, running

PATHS = ("/", "/v1/adapters", "/reports/run", "/livez")
OTHERS = ("attacker.example", "attacker.example:8000", "localhost.attacker.example", "127.0.0.1.nip.io", "")


def statuses(server: Running, host: str, **headers: str) -> set[int]:
    return {httpx.get(server.url + path, headers={"Host": host, **headers}).status_code for path in PATHS}


def test_a_page_cannot_rebind_its_name_to_the_server(served_folder: Path) -> None:
    """A browser sends the name of the page's host, whatever address the name points to."""
    with running(served_folder / "three", "--precision", "float32") as server:
        for host in OTHERS:
            assert statuses(server, host) == {403}
        found = httpx.get(f"{server.url}/v1/adapters", headers={"Host": OTHERS[0]}).json()
        assert found["error"]["code"] == "forbidden" and "--no-auth" in found["error"]["hint"]
        for host in ("localhost", "127.0.0.1:1", "[::1]:8000", "LOCALHOST:8000"):
            assert httpx.get(f"{server.url}/v1/adapters", headers={"Host": host}).status_code == 200


def test_no_auth_answers_to_any_name(served_folder: Path) -> None:
    with running(served_folder / "three", "--precision", "float32", "--no-auth") as server:
        assert 403 not in statuses(server, OTHERS[0])


def test_a_token_answers_to_any_name(server: Running) -> None:
    assert 403 not in statuses(server, OTHERS[0], Authorization=f"Bearer {TOKEN}")


@pytest.mark.parametrize("host", [b"localhost:", b"[::1]", b"127.0.0.1:65535"])
def test_names_of_this_machine(host: bytes) -> None:
    assert LOCAL.fullmatch(host)


@pytest.mark.parametrize("host", [b"localhost:80\n", b"localhost.", b"::1", b"127.0.0.2", b"127x0.0.1"])
def test_other_names(host: bytes) -> None:
    assert not LOCAL.fullmatch(host)
