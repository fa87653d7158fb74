"""CUDA graphs: the thousands of kernels of a step, recorded once per shape and launched together.

A step of GPT-2 launches more than two thousand kernels, most of which run for less time than it takes to
launch them. A graph launches them all with one call. When a shape occurs::

    first     buffer = numbers; run                     eager; many shapes never recur
    again     buffer = numbers; run; record             eager, then recorded with this buffer
    later     recorded buffer <- numbers; replay

All changing inputs are in one buffer, and the result is always in the same tensor.

While a graph is recorded, no other graph may be freed: CUDA gives up the recording. So Python's collector
pauses, and `Replayed` does not keep the function that it records. The object that owns both is then in no
reference cycle: it frees its graphs when it is dropped, and not in a later recording.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

MOST_GRAPHS = 48
"""Maximum number of recorded shapes; further shapes run eagerly."""

Key = TypeVar("Key", bound=Hashable)


class Graph(Protocol):
    """A recorded graph."""

    def replay(self) -> None:
        """Run the recorded kernels on the current contents of their tensors."""


Record = Callable[[Callable[[], Tensor]], tuple[Graph, Tensor]]
"""Records a computation; returns the graph and its output tensor."""


class Replayed(Generic[Key]):
    """The graphs of a function of a key and a tensor of integers, recorded when a key recurs.

    For a given key, the function must always launch the same kernels. Apart from `numbers`, it may only
    read tensors whose addresses do not change. It must not synchronize with the device.

    Args:
        device: where it runs.
        record: records a graph; None if the device has no graphs.
        on_failure: called once with the reason if recording fails; from then on everything runs eagerly.
    """

    def __init__(
        self,
        device: torch.device,
        record: Record | None = None,
        on_failure: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.device, self.record, self.on_failure = device, record, on_failure
        self._seen: set[Key] = set()
        self._graphs: dict[Key, tuple[Graph, Tensor, Tensor]] = {}

    def __call__(self, run: Callable[[Key, Tensor], Tensor], key: Key, numbers: Tensor) -> Tensor:
        """Return the function's result, which is valid until the next call.

        Args:
            run: the function, the same in every call.
            key: determines the kernels.
            numbers: (n,) int64 on the host.
        """
        if key in self._graphs:
            graph, buffer, result = self._graphs[key]
            buffer.copy_(numbers, non_blocking=True)
            graph.replay()
            return result
        buffer = numbers.to(self.device)
        result = run(key, buffer)
        if key in self._seen:
            self._record(key, buffer, lambda: run(key, buffer))
        self._seen.add(key)
        return result

    def _record(self, key: Key, buffer: Tensor, run: Callable[[], Tensor]) -> None:
        """Record the function for a key; recording does not execute it."""
        if self.record is None or len(self._graphs) >= MOST_GRAPHS:
            return
        try:
            with _without_collector():
                graph, result = self.record(run)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.record = None
            return self.on_failure(str(error))
        self._graphs[key] = graph, buffer, result


@contextmanager
def _without_collector() -> Iterator[None]:
    """Pause Python's collector of reference cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class CudaRecorder:
    """Records CUDA graphs. They share one memory pool, because they never run concurrently."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        """Return the graph of `run` and its output tensor."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, pool=self.pool):
            result = run()
        return graph, result
