"""Paths that users give: `~` is the home folder, names are UTF-8, and URLs are none."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from rankwise.errors import DataError, UsageError

_URL = re.compile(r"([a-z][a-z0-9+.-]+:)/")
"""The start of a URL, also of one that `Path` has read, which joins the slashes."""


def expanded(path: Path | str) -> Path:
    """A path with a leading `~` or `~user` replaced by the home folder.

    Raises:
        UsageError: the user has no home folder, or this is a URL.
        DataError: the path is not UTF-8, so it cannot be written to JSON or TOML.
    """
    text = os.fspath(path)
    require_text(text)
    require_no_url(text)
    if text != "~" and not text.startswith(("~/", f"~{os.sep}")):
        return Path(os.path.expanduser(text))
    if (home := home_folder()) is None:
        raise UsageError(f"{text}: there is no home folder", hint="set HOME, or give the whole path")
    return home / text[2:]


def require_no_url(path: str) -> None:
    """Check that a path is not a URL of a remote store, such as s3://bucket/run.

    Raises:
        UsageError: it is.
    """
    if (url := _URL.match(path)) and not os.path.exists(url[1]):
        raise UsageError(
            f"{url[1]}//{path[url.end() :].lstrip('/')}: a URL, not a path",
            hint="mount it as a folder, or copy the files to this machine and back",
        )


def home_folder() -> Path | None:
    """The user's home folder; None if neither HOME nor the system's list of users names one."""
    found = os.path.expanduser("~")
    return Path(found) if os.environ.get("HOME") != "" and os.path.isabs(found) else None


def temporary_place() -> Path:
    """A folder in the temporary folder that is named after the user, because others may share that folder."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"rankwise-{user}"


def require_text(path: str) -> None:
    """Check that a path can be written as UTF-8. Python keeps other bytes of a name as lone surrogates.

    Raises:
        DataError: it cannot.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise DataError("the name is not UTF-8", path=shown, hint="rename it") from None
