"""Reading ahead: the next batch is read in a background thread while the caller works on the current one."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

T = TypeVar("T")


def ahead(batches: Generator[T, None, None]) -> Generator[T, None, None]:
    """Yield what `batches` yields, in order. At most one batch is read ahead, so memory is bounded.

    An error of `batches` is raised where its batch would have come. When this generator is closed, so is
    `batches`, after the batch that is being read.

    >>> list(ahead(n * n for n in range(4)))
    [0, 1, 4, 9]
    """
    end = object()
    with closing(batches), ThreadPoolExecutor(1, "ahead") as reader:
        coming = reader.submit(next, batches, end)
        while (batch := coming.result()) is not end:
            coming = reader.submit(next, batches, end)
            yield batch  # type: ignore[misc]  # `end` is excluded, which the type of `next` does not show
