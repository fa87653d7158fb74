"""Standard output and error that never stop a command.

A reader that has gone away (`rankwise sweep ... 2>&1 | head`), a closed terminal or a full disk is no reason
to lose hours of training. What can no longer be written is dropped, and the command goes on. At its end,
lost output is an error, unless the reader left on purpose. Characters that the encoding lacks are escaped.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from rankwise.errors import ResourceError

READER_LEFT = frozenset({errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO})
"""The pipe's reader has ended, or the terminal was closed."""
ESCAPED = "rankwise.escaped"
"""Error handler of the streams."""
STEERING = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
"""Control characters outside ASCII, which JSON does not escape."""


class _Output(io.RawIOBase):
    """A file descriptor. After the first error, everything written is dropped."""

    def __init__(self, descriptor: int) -> None:
        self.error: OSError | None = None
        self._descriptor = descriptor

    def write(self, data: Any) -> int:
        """Write bytes, or drop them. Returns the number of bytes."""
        while not self.error:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # another program has made the terminal non-blocking
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.error = error
        return len(data)

    def writable(self) -> bool:
        """True."""
        return True

    def fileno(self) -> int:
        """The file descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether this is a terminal."""
        return os.isatty(self._descriptor)


class _Text(io.TextIOWrapper):
    """Text in the encoding of another stream; characters that it lacks are escaped."""

    def __init__(self, output: _Output, like: TextIO | None, line_buffering: bool) -> None:
        encoding = like.encoding if like else "utf-8"
        super().__init__(
            io.BufferedWriter(output), encoding, ESCAPED, line_buffering=line_buffering or output.isatty()
        )
        self.output = output

    def write(self, text: str) -> int:
        """Write text. Control characters outside ASCII, such as U+009B, are escaped."""
        super().write(text if text.isascii() else text.translate(STEERING))
        return len(text)


@contextmanager
def guarded() -> Iterator[None]:
    """Replace `sys.stdout` and `sys.stderr` within the block by streams that never fail.

    Raises:
        ResourceError: at the end of a successful block, if standard output could not be written.
    """
    _open_closed()
    codecs.register_error(ESCAPED, escaped)
    before = sys.stdout, sys.stderr
    out, err = _guarded(sys.stdout, 1), _guarded(sys.stderr, 2)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    except SystemExit as end:
        if end.code:  # the command has failed for a reason of its own
            raise
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before
    lost = out.output.error if isinstance(out, _Text) else None
    if lost and lost.errno not in READER_LEFT:
        raise ResourceError(
            f"standard output: cannot write: {lost.strerror}",
            hint="free disk space, or write to another disk",
        )


@contextmanager
def silenced() -> Iterator[None]:
    """Drop what is printed within the block: another process prints the same."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _guarded(stream: TextIO | None, usual: int) -> TextIO:
    """A stream that never fails, on the descriptor of another one; on the usual one if that is None."""
    try:
        descriptor = usual if stream is None else stream.fileno()
    except (OSError, ValueError):  # a text buffer, not a file
        return stream or sys.stderr
    return _Text(_Output(descriptor), stream, line_buffering=usual == 2)


def escaped(error: UnicodeError) -> tuple[str, int]:
    r"""Error handler of a codec: escapes that are valid in JSON too.

    >>> codecs.register_error(ESCAPED, escaped)
    >>> "snow \u2603 \U0001f600".encode("cp1252", ESCAPED)
    b'snow \\u2603 \\ud83d\\ude00'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4)), error.end


def _open_closed() -> None:
    """Open closed standard streams as the null device.

    Otherwise the next file to be opened, such as a checkpoint, would get their numbers.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
