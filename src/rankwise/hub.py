"""What the Hub's clients say when something goes wrong, sorted once for models and datasets.

Either the Hub could not be reached, or it answered and said no, or this machine's disk said no. What is none
of these is a mistake in a program, and passes through as what it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from socket import gaierror

from rankwise.errors import RankwiseError, ResourceError, UsageError
from rankwise.store import files

TRY_LATER = (429, 500, 502, 503, 504)
"""HTTP statuses of a server that is in trouble or busy."""
MISTAKES = (
    TypeError,
    AttributeError,
    NameError,
    AssertionError,
    ImportError,
    LookupError,
    NotImplementedError,
)
"""Exceptions of programs, ours or a library's, that no network causes."""


def is_outage(error: BaseException) -> bool:
    """Whether an error, or what led to it, is the network's or the server's fault."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.errors import HTTPError as ClientError  # type: ignore[attr-defined]

    outages = (ConnectionError, TimeoutError, gaierror, LocalEntryNotFoundError, ClientError)
    for each in _causes(error):
        if isinstance(each, MISTAKES):
            return False
        if isinstance(each, HfHubHTTPError):  # a ClientError too, but the server did answer
            if each.response.status_code in TRY_LATER:
                return True
        elif isinstance(each, outages):
            return True
    return False


def disk_error(name: str, error: BaseException) -> RankwiseError | None:
    """What to say where this machine's disk is the reason; None where it is not."""
    for each in _causes(error):
        if isinstance(each, OSError) and each.errno in files.OUT_OF_ROOM:
            return ResourceError(f"{name}: cannot be fetched: {each}", hint="free some room, or move HF_HOME")
        if isinstance(each, PermissionError):
            return UsageError(f"{name}: cannot be fetched: {each}", hint="set HF_HOME to a folder of yours")
    return None


def reason(error: BaseException) -> str:
    """An error's first line, or its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it, each once: a library may raise an error from itself."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
