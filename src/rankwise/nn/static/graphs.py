"""CUDA graphs: a step's thousands of kernels, recorded once for each shape and started at once.

A step of GPT-2 starts more than two thousand kernels, most of them shorter than the time to start one. A
graph starts them all with one call. What happens when a shape comes for the first, second, third time::

    1st    buffer = numbers; run                     computed; many shapes never come back
    2nd    buffer = numbers; run; record             computed, then recorded with this buffer
    3rd    recorded buffer <- numbers; replay        and so on for every later time

All inputs that change are in the one buffer, and the result is always in the same tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

MOST_GRAPHS = 48
"""Shapes that are recorded; further ones run kernel by kernel, as the first batch of each shape does."""

Key = TypeVar("Key", bound=Hashable)


class Graph(Protocol):
    """A recording."""

    def replay(self) -> None:
        """Run the recorded kernels on what is in their tensors now."""


Record = Callable[[Callable[[], Tensor]], tuple[Graph, Tensor]]
"""Records a computation: gives the graph, and the tensor in which its result will be."""


class Replayed(Generic[Key]):
    """A function of a key and one tensor of integers, recorded when a key comes back, and then replayed.

    For one key the function must always start the same kernels. Nothing it reads may change, except
    `numbers` and the contents of tensors that stay in place. It must not wait for the device.

    Args:
        run: the function. Its result is valid until the next call.
        device: where it runs.
        record: how to record it; None where the device has no graphs.
        on_failure: told why nothing can be recorded, once; from then on everything is computed.
    """

    def __init__(
        self,
        run: Callable[[Key, Tensor], Tensor],
        device: torch.device,
        record: Record | None = None,
        on_failure: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.run, self.device, self.record, self.on_failure = run, device, record, on_failure
        self._seen: set[Key] = set()
        self._graphs: dict[Key, tuple[Graph, Tensor, Tensor]] = {}

    def __call__(self, key: Key, numbers: Tensor) -> Tensor:
        """The function's result.

        Args:
            key: which kernels to run.
            numbers: (n,) int64 on the host.
        """
        if key in self._graphs:
            graph, buffer, result = self._graphs[key]
            buffer.copy_(numbers, non_blocking=True)
            graph.replay()
            return result
        buffer = numbers.to(self.device)
        result = self.run(key, buffer)
        if key in self._seen:
            self._record(key, buffer)
        self._seen.add(key)
        return result

    def _record(self, key: Key, buffer: Tensor) -> None:
        """Record the function for a key; the recording itself computes nothing."""
        if self.record is None or len(self._graphs) >= MOST_GRAPHS:
            return
        try:
            graph, result = self.record(lambda: self.run(key, buffer))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.record = None
            return self.on_failure(str(error))
        self._graphs[key] = graph, buffer, result


class CudaRecorder:
    """Records on a CUDA device. Its graphs share one pool of memory, because they never run at once."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        """The graph of `run`, and the tensor in which its result will be."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, pool=self.pool):
            result = run()
        return graph, result
