"""Files, written whole or not at all. The only module of rankwise that opens files to write.

What is written goes to a temporary file in the target's folder, is flushed to the disk, and takes
the target's name in one step. A reader, and a machine that loses power, finds the old content or
the new, never a part of it. Folders on the way that do not exist are made.

Everything here raises the same two errors where a file cannot be read or written: ResourceError
where the disk or the system has run out of room, UsageError for anything else (no permission, a
folder or a device in the file's place, a name that cannot be).
"""

from __future__ import annotations

import errno
import hashlib
import json
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

DIGESTS = "sha256.json"
"""Beside files that must stay as they were written: an object of file name -> SHA-256."""
LOCK = ".lock"
"""File in a folder that one process at a time works in."""
_TEMP_PREFIX = ".rankwise-"


def write_bytes(path: Path | str, data: bytes) -> None:
    """Put `data` at `path`."""
    with writing(path, binary=True) as file:
        file.write(data)


def write_text(path: Path | str, text: str) -> None:
    """Put `text` at `path`, as UTF-8 and with its line ends as they are."""
    with writing(path) as file:
        file.write(text)


def write_json(path: Path | str, value: Any) -> None:
    """Put `value` at `path`, as indented JSON and a line end.

    Raises:
        ValueError: a number in it is not finite, which JSON cannot say.
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
    """A file object to write to; what was written is at `path` once the block ends well.

    Where the block raises, `path` stays as it was. A symbolic link is followed, not replaced.

    Args:
        path: where the content shall be.
        newline: what a line end in a text file becomes; None leaves it as it is.
        binary: bytes instead of UTF-8 text.
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
    """A temporary folder to fill; it is renamed to `path` once the block ends well.

    Where the block raises, the temporary folder and all in it is removed.

    Raises:
        UsageError: `path` is there already and is not an empty folder.
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
    """A temporary folder of links to files and of JSON files, each by its name; gone after the block."""
    with tempfile.TemporaryDirectory(prefix="rankwise-") as name:
        folder = Path(name)
        with _explained("write", folder):
            for link, path in links.items():
                (folder / link).symlink_to(path.resolve())
            for file, value in objects.items():
                (folder / file).write_text(json.dumps(value), encoding="utf-8")
        yield folder


def is_free(path: Path | str) -> bool:
    """Whether a folder may be made at `path`: nothing is there, or what a killed process left behind."""
    path = Path(path)
    if not path.is_dir():
        return not path.exists() and not path.is_symlink()
    return all(each.name == LOCK or _is_temporary(each) for each in path.iterdir())


def append_line(path: Path | str, line: str) -> int:
    """Add `line` and a line end to the UTF-8 file at `path`, made where it is missing; its size after."""
    with _explained("write", Path(path)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8", newline="") as file:
            file.write(line + "\n")
            file.flush()
            return os.fstat(file.fileno()).st_size


def sync(path: Path | str) -> None:
    """Flush what was appended to the file at `path`, if it is there, to the disk."""
    with _explained("write", Path(path)), suppress(FileNotFoundError), open(path, "rb+") as file:
        os.fsync(file.fileno())


def truncate(path: Path | str, size: int) -> None:
    """Cut what lies beyond the first `size` bytes off the file at `path`, if it is there."""
    with _explained("write", Path(path)), suppress(FileNotFoundError):
        if os.stat(path).st_size > size:
            os.truncate(path, size)
            sync(path)


def size(path: Path | str) -> int:
    """Bytes of the file at `path`; 0 where there is none."""
    with _explained("read", Path(path)), suppress(FileNotFoundError):
        return os.stat(path).st_size
    return 0


def remove(path: Path | str) -> None:
    """Remove the file or folder at `path`, if it is there."""
    path = Path(path)
    with _explained("remove", path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_litter(folder: Path | str) -> None:
    """Remove the temporary files and folders that a killed process left in a folder and those below."""
    for path in sorted(Path(folder).rglob(f"{_TEMP_PREFIX}*")):
        if _is_temporary(path):
            remove(path)


@contextmanager
def locked(folder: Path | str) -> Iterator[None]:
    """Keep other processes out of a folder during the block. The folder is made, and goes again if empty.

    The lock ends with the process that holds it, however that dies.

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
                f"{folder}: another process is at work in this folder", hint="wait for it, or choose another"
            ) from None
    try:
        yield
    finally:
        # filelock sees that a file it has opened is gone, and starts over with the new one.
        with suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()
        with suppress(OSError):
            folder.rmdir()


def copy(source: Path | str, target: Path | str) -> None:
    """Put the content of the file `source` at `target`."""
    with (
        _explained("read", Path(source)),
        open(source, "rb") as original,
        writing(target, binary=True) as file,
    ):
        shutil.copyfileobj(original, file, 1 << 20)


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file's content, as 64 hexadecimal digits; it is read in pieces."""
    with _explained("read", Path(path)), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path) -> None:
    """Check the files of a folder against its list of digests, if it has one.

    Raises:
        ModelError: a file is missing, or differs from what was written.
    """
    listing = folder / DIGESTS
    if not listing.exists():
        return
    hint = f"copy the folder again; if you changed the file yourself, remove {DIGESTS}"
    for name, digest in read_object(listing).items():
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(f"{listing}: names {name!r}, and the folder has no such file", hint=hint)
        if sha256(folder / name) != digest:
            raise ModelError(f"{folder / name}: damaged: it is not as it was written", hint=hint)


def read_object(path: Path | str, *, limit: int = 1 << 20) -> dict[str, Any]:
    """The JSON object in a model's file, which is untrusted input.

    Args:
        path: the file, UTF-8.
        limit: largest size in bytes that is read.

    Raises:
        ModelError: the file is missing, no plain file, larger than `limit`, or holds no JSON object; a
            name stands twice in an object; or a number is not finite.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a named pipe would wait for ever
            raise ModelError(f"{path}: not a plain file")
        with open(path, "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ModelError(f"{path}: larger than {limit} bytes")
        value = json.loads(data, object_pairs_hook=_once_each, parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    return value


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names differ: of two equal ones, two readers may take different ones."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object holds the same name twice")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number that JSON knows")


def _file_target(path: Path) -> Path:
    """`path` with links followed; anything but a regular file there must not be replaced."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise UsageError(f"{path}: is a folder, and a file shall be written there")
    if target.exists() and not target.is_file():
        raise UsageError(f"{path}: is not a regular file", hint="give the name of a file")
    return target


def _refuse_existing(target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target}: is there already", hint="choose another name, or remove it")


def _beside(target: Path) -> Path:
    return target.with_name(f"{_TEMP_PREFIX}{secrets.token_hex(8)}.tmp")


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(_TEMP_PREFIX) and path.suffix == ".tmp"


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    # Some network file systems cannot sync a folder; the file itself is safe by then.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _explained(verb: str, path: Path, *, ours: Path | None = None) -> Iterator[None]:
    """OSErrors of the block as errors for people.

    Args:
        verb: "read" or "write".
        path: the file that the user knows of.
        ours: where the block runs other people's code too, the file whose errors are ours to explain.
    """
    try:
        yield
    except OSError as error:
        what = f"{path}: cannot {verb}: {error.strerror or error}"
        if error.errno in OUT_OF_ROOM:
            raise ResourceError(what, hint="free some room on the disk, or choose another one") from error
        if ours is not None and error.filename != str(ours):
            raise
        raise UsageError(what, hint="check that the path exists and that you have permission") from error
