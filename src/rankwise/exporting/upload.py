"""Files -> a commit in a repository of models on the Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise import hub
from rankwise.errors import RankwiseError, Unreachable, UsageError, option

MAIN = "main"
"""The branch of a new repository."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class Uploaded:
    """A commit on the Hub."""

    url: str
    created: bool  # whether the repository is new


def require_repository(name: str) -> None:
    """Check that a name can be that of a repository.

    Raises:
        UsageError: it cannot.
    """
    if not _NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith((".", "-", ".git")):
        raise UsageError(
            f"{name}: not the name of a repository on the Hub",
            hint="give OWNER/NAME: your user name or an organization, and letters, digits, -, _ and .",
        )


def require_token() -> None:
    """Check that this machine has a token for the Hub.

    Raises:
        UsageError: it has none.
    """
    from huggingface_hub import get_token

    if not get_token():
        raise UsageError(
            "no token for the Hub",
            hint="log in with hf auth login, or set HF_TOKEN; it needs permission to write",
        )


def upload(
    repository: str, contents: Mapping[str, Path | bytes], *, private: bool, revision: str, message: str
) -> Uploaded:
    """Commit files to a repository, which is created if there is none. Files with other names are left there.

    Args:
        repository: OWNER/NAME.
        contents: name in the repository -> file, or its bytes.
        private: whether a new repository is private.
        revision: branch, which is created if there is none.
        message: of the commit.

    Raises:
        UsageError: the Hub refuses the token, the repository, the branch or the files.
        Unreachable: the Hub does not answer.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api, created = HfApi(), False
    operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
    try:
        if not _exists(api, repository):
            api.create_repo(repository, private=private, repo_type="model")
            created = True
        if revision != MAIN:
            api.create_branch(repository, branch=revision, exist_ok=True)
        done = api.create_commit(repository, operations, commit_message=message, revision=revision)
    except Exception as error:  # the Hub client lets errors of its HTTP library through
        if isinstance(error, hub.MISTAKES):
            raise
        explained = _explained(repository, revision, error)
        raise (_with_empty(explained, repository, private) if created else explained) from error
    return Uploaded(str(done.commit_url), created)


def _exists(api: Any, repository: str) -> bool:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        api.model_info(repository, timeout=hub.SECONDS)
    except RepositoryNotFoundError:
        return False
    return True


def _explained(repository: str, revision: str, error: Exception) -> RankwiseError:
    """The error to raise for an error from the Hub client."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    owner = repository.partition("/")[0]
    if status == 401:
        return UsageError(
            f"{repository}: the Hub does not accept the token", hint="log in again: hf auth login"
        )
    if status == 403:
        return UsageError(
            f"{repository}: you may not write there",
            hint=f"{owner} must be your user name or an organization of yours, and the token needs "
            "permission to write; hf auth whoami shows both",
        )
    if hub.is_outage(error):
        return Unreachable(
            f"{repository}: the Hub cannot be reached: {hub.reason(error)}", hint="try again later"
        )
    where = "" if revision == MAIN else f" ({option('revision', revision)})"
    return UsageError(f"{repository}: the Hub refuses the files{where}: {hub.reason(error)}")


def _with_empty(error: RankwiseError, repository: str, private: bool) -> RankwiseError:
    """The error with a hint on the repository that was created before it."""
    message, hint = error.written
    kind = "private" if private else "public"
    left = f"the {kind} repository {repository} was created, and is empty: push again, or delete it"
    return type(error)(message, hint=f"{hint}; {left}" if hint else left)
