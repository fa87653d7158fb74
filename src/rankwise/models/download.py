"""Repositories of models on the Hub: id and revision -> folder in the Hub's cache.

Only files whose names match the given patterns are downloaded, and only from the top folder of a repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rankwise import hub
from rankwise.errors import ModelError, RankwiseError, Unreachable


def hub_folder(name: str, revision: str | None, patterns: Sequence[str], *, otherwise: str) -> Path:
    """Download files that match the patterns into the Hub's cache folder.

    If the Hub is unreachable, fall back to cached files.

    Args:
        name: id of the repository.
        revision: branch, tag or commit; None for the latest.
        patterns: names of files, with `*` for any part.
        otherwise: what to use without the Hub, for the hint of an error.

    Raises:
        ModelError: the Hub refuses the name or the revision.
        Unreachable: the Hub does not answer, and the files are not in its cache.
        ResourceError: the disk is full.
    """
    from huggingface_hub import snapshot_download

    refusal = _ask_hub(name, revision)
    try:
        found = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=["*/*"],  # subfolders contain other formats of the same weights
            local_files_only=refusal is not None,
        )
    except Exception as error:  # the Hub client lets errors of its HTTP library through
        reason = refusal or error
        if isinstance(reason, hub.MISTAKES):
            raise reason from None
        raise _explained(name, revision, reason, otherwise) from error
    return Path(found)


def _ask_hub(name: str, revision: str | None) -> Exception | None:
    """The error with which the Hub refuses this model; None if it is available.

    This is a separate request because the download itself never times out on an unresponsive network.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, revision=revision, timeout=hub.SECONDS)
    except Exception as error:  # as above
        return error
    return None


def _explained(name: str, revision: str | None, error: Exception, otherwise: str) -> RankwiseError:
    """The error to raise for an error from the Hub client."""
    if refused := _refused(name, revision, error) or hub.disk_error(name, error):
        return refused
    if hub.is_outage(error):
        return Unreachable(
            f"{name}: not a folder here, and the Hub cannot be reached: {hub.reason(error)}",
            hint=f"use {otherwise}; behind a proxy, set HTTPS_PROXY",
        )
    return ModelError(f"{name}: cannot be fetched: {hub.reason(error)}")


def _refused(name: str, revision: str | None, error: Exception) -> RankwiseError | None:
    """The error to raise if the Hub or its client rejects the name, else None."""
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        return ModelError(f"{name}: neither a folder here nor a Hub id", hint="check the spelling")
    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            f"{name}: access is restricted", hint="accept its terms on the Hub, then: hf auth login"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            f"{name}: neither a folder here nor a model on the Hub",
            hint="check the spelling; if it is private: hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{name}: has no revision {revision!r} on the Hub")
    return None
