"""The `serve` command: checks its arguments before it loads anything."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from rankwise.commands.arguments import require_probability
from rankwise.errors import UsageError, option
from rankwise.serve.engine import BATCH_TOKENS, DEVICE_TOKENS, MAX_WAIT, QUEUE_TOKENS
from rankwise.serve.loading import Loader

LOOPBACK = ("127.0.0.1", "::1", "localhost")
TOKEN = "RANKWISE_TOKEN"
"""Environment variable with the bearer token."""
DRAIN_SECONDS = 1.0
_SHORTEST_TOKEN = 16


def serve(
    sources: Sequence[str],
    *,
    base: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: Path | None = None,
    no_auth: bool = False,
    batch_tokens: int | None = None,
    queue_tokens: int = QUEUE_TOKENS,
    max_wait: float = MAX_WAIT,
    drain_seconds: float = DRAIN_SECONDS,
    access_log: bool = True,
    abstain_below: float | None = None,
    on_note: Callable[[str], None] = lambda note: None,
    on_listening: Callable[[str, str, int], None] = lambda url, base, adapters: None,
) -> None:
    """Serve adapters of one base model until a signal stops the process.

    Args:
        sources: run folders, adapter folders, and adapters on the Hub, each as PATH or NAME=PATH.
        base: the base model, if it is not the one that the adapters name.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, bfloat16, float32, or int8, for a single adapter.
        host: address to listen on.
        port: port to listen on; 0 for any free one.
        token_file: file with the bearer token; by default, the environment variable `RANKWISE_TOKEN`.
        no_auth: whether to listen on any address, and to answer to any name of it, without a token.
        batch_tokens: token budget of a batch; by default 1,024 on a CPU and 8,192 on other devices.
        queue_tokens: maximum number of tokens that wait; at least a batch, and a text of any adapter.
        max_wait: seconds; requests that would wait longer are refused.
        drain_seconds: time between SIGTERM and the end of listening.
        access_log: whether to log each request to stderr.
        abstain_below: an answer with a lower probability than this has no label, unless its request names a
            threshold of its own.
        on_note: called with what the user should know about an adapter, such as a base of another version.
        on_listening: called with the URL, the base model and the number of adapters.

    Raises:
        UsageError: the extra is not installed, the address needs a token or cannot be listened on, the
            sources cannot be served together, or abstain_below is not a probability.
        ModelError: an adapter or its base model cannot be used.
        Unreachable: the base model must be downloaded, and the Hub does not answer.
    """
    require_extra()
    if abstain_below is not None:
        require_probability(abstain_below)
    token = read_token(token_file)
    check_address(host, token, no_auth)
    from rankwise.serve.server import run
    from rankwise.serve.service import Service

    loader = Loader(sources, base=base, device=device, precision=precision)
    budget = batch_tokens or (BATCH_TOKENS if loader.device.type == "cpu" else DEVICE_TOKENS)
    service = Service(
        loader,
        abstain_below=abstain_below,
        batch_tokens=budget,
        queue_tokens=queue_tokens,
        max_wait=max_wait,
    )
    lineup = service.lineup
    for served in lineup.adapters.values():
        for note in served.notes:
            on_note(note)
    run(
        service,
        host=host,
        port=port,
        token=token,
        only_local=not token and not no_auth,
        access_log=access_log,
        drain_seconds=drain_seconds,
        on_listening=lambda url: on_listening(url, lineup.base, len(lineup.adapters)),
    )


def require_extra() -> None:
    """Check that the packages of the extra `serve` are installed.

    Raises:
        UsageError: one is missing.
    """
    if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]:
        hint = "pip install 'rankwise[serve]'"
        raise UsageError(f"the server needs the package {missing[0]}, which is not installed", hint=hint)


def read_token(path: Path | None) -> str:
    """The bearer token from a file, or from the environment; empty if there is none.

    Raises:
        UsageError: the file cannot be read, or the token is short or does not fit into a header.
    """
    if path is None:
        source, token = TOKEN, os.environ.get(TOKEN, "").strip()
        if not token:
            return ""
    else:
        source = str(path)
        try:
            token = path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot be read: {error}") from None
    if len(token) < _SHORTEST_TOKEN or not all("!" <= character <= "~" for character in token):
        what = f"{source}: a token has at least {_SHORTEST_TOKEN} printable ASCII characters without spaces"
        raise UsageError(what, hint="make one: openssl rand -hex 32")
    return token


def check_address(host: str, token: str, no_auth: bool) -> None:
    """Check that a server that other machines can reach has a token.

    Raises:
        UsageError: it has none.
    """
    if host not in LOOPBACK and not token and not no_auth:
        raise UsageError(
            f"{option('host', host)}: other machines can reach this address, and there is no token",
            hint=f"set {TOKEN} or {option('token_file')}; {option('no_auth', True)} serves everyone",
        )
