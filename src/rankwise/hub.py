"""Classification of errors from the Hub's clients, shared by models and datasets.

An error means that the Hub is unreachable, that the Hub refused the request, or that the local disk failed.
Anything else is a bug and propagates unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from socket import gaierror

from rankwise.errors import RankwiseError, ResourceError, UsageError
from rankwise.paths import home_folder, temporary_place
from rankwise.store import files

SECONDS = 10.0
"""Timeout for the Hub's first response."""
TRY_LATER = (429, 500, 502, 503, 504)
"""HTTP statuses that indicate a busy or failing server."""
MISTAKES = (
    TypeError,
    AttributeError,
    NameError,
    AssertionError,
    ImportError,
    LookupError,
    NotImplementedError,
)
"""Exceptions that indicate a bug, in rankwise or a library, and not a network error."""


def place_cache() -> None:
    """Give the Hub's clients a cache folder if there is no home folder; they would create one called `~`.

    It must run before `huggingface_hub` is imported, which reads the variable once.
    """
    if home_folder() is None and not os.path.isabs(os.environ.get("XDG_CACHE_HOME", "")):
        os.environ.setdefault("HF_HOME", str(temporary_place() / "huggingface"))


place_cache()


def is_outage(error: BaseException) -> bool:
    """Whether an error or one of its causes is a network or server failure."""
    from huggingface_hub.errors import HTTPError as ClientError  # type: ignore[attr-defined]
    from huggingface_hub.errors import LocalEntryNotFoundError

    outages = (ConnectionError, TimeoutError, gaierror, LocalEntryNotFoundError, ClientError)
    for each in _causes(error):
        if isinstance(each, MISTAKES):
            return False
        response = getattr(each, "response", None)
        if response is not None:  # the server did answer
            if response.status_code in TRY_LATER:
                return True
        elif isinstance(each, outages):
            return True
    return False


def disk_error(name: str, error: BaseException) -> RankwiseError | None:
    """The error to raise if the local disk is the cause, else None."""
    for each in _causes(error):
        if isinstance(each, OSError) and each.errno in files.OUT_OF_ROOM:
            return ResourceError(f"{name}: cannot be fetched: {each}", hint="free disk space or move HF_HOME")
        if isinstance(each, PermissionError):
            return UsageError(f"{name}: cannot be fetched: {each}", hint="set HF_HOME to a writable folder")
    return None


def reason(error: BaseException) -> str:
    """The first line of an error's message, or its class name if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its chain of causes. Cycles are broken: a library may raise an error from itself."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
