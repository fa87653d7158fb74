"""Atomic file operations. This is the only module of rankwise that opens files for writing.

Data is written to a temporary file in the target's folder, flushed to disk, and then renamed to the
target. After a crash or power loss, the file has either its old or its new content, never a part of
it. Missing parent folders are created.

All functions raise the same two errors if a file cannot be read or written: ResourceError if the
system refuses (no space, no permission, a read-only disk, a path that is too long), UsageError for
anything else (a folder or device in the file's place, an invalid name).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO, overload

from rankwise.errors import ModelError, ResourceError, UsageError

OUT_OF_ROOM = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
)

REFUSED = {
    errno.EACCES: "you need permission to write there",
    errno.EPERM: "you need permission to write there",
    errno.EROFS: "the disk is read-only; use another folder",
    errno.ENAMETOOLONG: "use a shorter path",
}
"""Other refusals of the system, with hints."""

DIGESTS = "sha256.json"
"""File of digests, file name -> SHA-256, in folders whose files must not change."""
LOCK = ".lock"
"""Lock file of a folder that only one process may use at a time."""
_TEMP_PREFIX = ".rankwise-"


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write `data` to `path`."""
    with writing(path, binary=True) as file:
        file.write(data)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` as UTF-8, without newline translation."""
    with writing(path) as file:
        file.write(text)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` to `path` as indented JSON with a trailing newline.

    Raises:
        ValueError: a number is not finite, which JSON cannot represent.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@overload
def writing(
    path: Path | str, *, newline: str | None = None, binary: Literal[False] = False
) -> AbstractContextManager[TextIO]: ...
@overload
def writing(
    path: Path | str, *, newline: str | None = None, binary: Literal[True]
) -> AbstractContextManager[BinaryIO]: ...
def writing(
    path: Path | str, *, newline: str | None = None, binary: bool = False
) -> AbstractContextManager[TextIO] | AbstractContextManager[BinaryIO]:
    """Open a file for writing; `path` is replaced when the block exits without an exception.

    If the block raises, `path` is unchanged. A symbolic link is followed, not replaced.

    Args:
        path: target file.
        newline: line ending to translate newlines to in a text file; None for no translation.
        binary: whether to write bytes instead of UTF-8 text.
    """
    return _writing(Path(path), newline, binary)


@contextmanager
def _writing(path: Path, newline: str | None, binary: bool) -> Iterator[Any]:
    with _explained("write", path):
        target = _file_target(path)
        target.parent.mkdir(parents=True, exist_ok=True)
    temp = _beside(target)
    mode, encoding, end = ("xb", None, None) if binary else ("x", "utf-8", newline or "")
    try:
        with _explained("write", path, ours=temp):
            with open(temp, mode, encoding=encoding, newline=end) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temp, target)
            _sync_folder(target.parent)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` when the block exits without an exception.

    If the block raises, the temporary folder is removed.

    Raises:
        UsageError: `path` exists and is not an empty folder.
    """
    target = Path(path)
    with _explained("write", target):
        _refuse_existing(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        temp = _beside(target)
        temp.mkdir()
    try:
        yield temp
        with _explained("write", target):
            _refuse_existing(target)
            if target.is_dir():
                target.rmdir()
            _sync_folder(temp)
            os.replace(temp, target)
            _sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise


@contextmanager
def scratch_folder(links: Mapping[str, Path], objects: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a temporary folder of symbolic links and JSON files, by name; it is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="rankwise-") as name:
        folder = Path(name)
        with _explained("write", folder):
            for link, path in links.items():
                (folder / link).symlink_to(path.resolve())
            for file, value in objects.items():
                (folder / file).write_text(json.dumps(value), encoding="utf-8")
        yield folder


@contextmanager
def temporary_folder(parent: Path | str) -> Iterator[Path]:
    """Yield the path of a temporary folder in `parent`, to be created by the block; removed afterwards."""
    folder = _beside(Path(parent) / "folder")
    try:
        yield folder
    finally:
        remove(folder)


def free_bytes(folder: Path | str) -> int:
    """Bytes that can be written to the disk of a folder, which need not exist yet."""
    found = Path(folder).absolute()
    while not found.exists() and found != found.parent:
        found = found.parent
    with _explained("read", found):
        return shutil.disk_usage(found).free


def is_free(path: Path | str) -> bool:
    """Whether a folder can be created at `path`: nothing exists, or only leftovers of a killed process."""
    path = Path(path)
    if not path.is_dir():
        return not path.exists() and not path.is_symlink()
    return all(each.name == LOCK or _is_temporary(each) for each in path.iterdir())


def claim_folder(path: Path | str) -> Path:
    """Create an empty folder at `path`, or at PATH-2, PATH-3 and so on if that name is taken.

    Of several processes that claim the same name at the same time, each gets another one.

    Returns:
        The path of the folder.
    """
    path = folder = Path(path)
    number = 1
    while True:
        with _explained("write", folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
        number += 1
        folder = path.with_name(f"{path.name}-{number}")


def append_line(path: Path | str, line: str) -> int:
    """Append `line` and a newline to a UTF-8 file, created if missing. Returns the new size in bytes."""
    with _explained("write", Path(path)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8", newline="") as file:
            file.write(line + "\n")
            file.flush()
            return os.fstat(file.fileno()).st_size


def sync(path: Path | str) -> None:
    """Flush data appended to the file at `path`, if it exists, to disk."""
    with _explained("write", Path(path)), suppress(FileNotFoundError), open(path, "rb+") as file:
        os.fsync(file.fileno())


def truncate(path: Path | str, size: int) -> None:
    """Truncate the file at `path`, if it exists, to at most `size` bytes."""
    with _explained("write", Path(path)), suppress(FileNotFoundError):
        if os.stat(path).st_size > size:
            os.truncate(path, size)
            sync(path)


def size(path: Path | str) -> int:
    """Size of the file at `path` in bytes; 0 if it does not exist."""
    with _explained("read", Path(path)), suppress(FileNotFoundError):
        return os.stat(path).st_size
    return 0


def remove(path: Path | str) -> None:
    """Remove the file or folder at `path`, if it exists."""
    path = Path(path)
    with _explained("remove", path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_litter(folder: Path | str) -> None:
    """Recursively remove temporary files and folders left behind by a killed process."""
    for path in sorted(Path(folder).rglob(f"{_TEMP_PREFIX}*")):
        if _is_temporary(path):
            remove(path)


@contextmanager
def locked(folder: Path | str) -> Iterator[None]:
    """Hold an exclusive lock on a folder. The folder is created if missing, and removed again if empty.

    The operating system releases the lock when the process ends, even if it is killed.

    Raises:
        UsageError: another process holds the lock.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    with _explained("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise UsageError(
                f"{folder}: in use by another process",
                hint="wait for it, or use another folder",
            ) from None
    try:
        yield
    finally:
        # Unlinking before release is safe: filelock detects a deleted file and retries with a new one.
        with suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()
        with suppress(OSError):
            folder.rmdir()


def copy(source: Path | str, target: Path | str) -> None:
    """Copy the content of the file `source` to `target`."""
    with (
        _explained("read", Path(source)),
        open(source, "rb") as original,
        writing(target, binary=True) as file,
    ):
        shutil.copyfileobj(original, file, 1 << 20)


def sha256(path: Path | str) -> str:
    """SHA-256 hex digest of a file, which is read in chunks."""
    with _explained("read", Path(path)), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path) -> None:
    """Check a folder's files against its digests, if it has any.

    Raises:
        ModelError: a file is missing or does not match its digest.
    """
    listing = folder / DIGESTS
    if not listing.exists():
        return
    hint = f"copy the folder again; if you changed the file yourself, remove {DIGESTS}"
    for name, digest in read_object(listing).items():
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(f"{listing}: lists {name!r}, but the folder has no such file", hint=hint)
        if sha256(folder / name) != digest:
            raise ModelError(f"{folder / name}: damaged: it is not as it was written", hint=hint)


def read_object(path: Path | str, *, limit: int = 1 << 20) -> dict[str, Any]:
    """Read the JSON object in a model's file, which is untrusted input.

    Args:
        path: a UTF-8 file.
        limit: maximum size in bytes.

    Raises:
        ModelError: the file is missing, not a regular file, larger than `limit`, or not a JSON object;
            an object has duplicate names; a number is not finite; or a string has half a surrogate pair.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a named pipe would block forever
            raise ModelError(f"{path}: not a regular file")
        with open(path, "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ModelError(f"{path}: larger than {limit} bytes")
        value = json.loads(
            data, object_pairs_hook=_once_each, parse_constant=_refuse_constant, parse_float=_finite
        )
        json.dumps(value, ensure_ascii=False).encode()  # fails for half a surrogate pair
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: must contain a JSON object, not a {type(value).__name__}")
    return value


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Reject duplicate names, which JSON parsers resolve differently."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has duplicate names")
    return found


def _finite(digits: str) -> float:
    """Reject numbers such as 1e999, which Python reads as infinite."""
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is too large")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")


def _file_target(path: Path) -> Path:
    """`path` with links resolved. Anything other than a regular file must not be replaced."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise UsageError(f"{path}: is a folder, but a file is to be written there")
    if target.exists() and not target.is_file():
        raise UsageError(f"{path}: is not a regular file", hint="choose another name")
    return target


def _refuse_existing(target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target}: already exists", hint="choose another name, or remove it")


def _beside(target: Path) -> Path:
    return target.with_name(f"{_TEMP_PREFIX}{secrets.token_hex(8)}.tmp")


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(_TEMP_PREFIX) and path.suffix == ".tmp"


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    # Some network file systems cannot sync a folder; the file itself is already synced.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _explained(verb: str, path: Path, *, ours: Path | None = None) -> Iterator[None]:
    """Turn OSErrors of the block into RankwiseErrors.

    Args:
        verb: "read", "write" or "remove".
        path: the file to name in the message.
        ours: if the block also runs the caller's code, the only file whose errors are translated.
    """
    try:
        yield
    except OSError as error:
        what = f"{path}: cannot {verb}: {error.strerror or error}"
        if error.errno in OUT_OF_ROOM:
            raise ResourceError(what, hint="free disk space, or use another disk") from error
        if error.errno in REFUSED and (ours is None or error.filename == str(ours)):
            raise ResourceError(what, hint=REFUSED[error.errno]) from error
        if ours is not None and error.filename != str(ours):
            raise
        raise UsageError(what, hint="check that the path exists and that you have permission") from error
