"""Metrics in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from rankwise.serve.engine import Batch

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = tuple(float(1 << power) for power in range(0, 14))


class Metrics:
    """The counters and histograms of one server.

    Args:
        queue_tokens: returns the number of tokens in the queue.
        adapters: returns the number of adapters in service.
    """

    def __init__(self, queue_tokens: Callable[[], float], adapters: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"namespace": "rankwise", "registry": self._registry}
        self.requests = Counter("requests", "Requests, by path and status.", ["path", "status"], **own)
        self.seconds = Histogram(
            "request_seconds",
            "Seconds from a request's headers to the end of its answer.",
            ["path"],
            buckets=SECONDS,
            **own,
        )
        self.texts = Counter("texts", "Texts answered, by adapter.", ["adapter"], **own)
        self.tokens = Counter("tokens", "Tokens computed.", **own)
        self._batch_tokens = Histogram("batch_tokens", "Tokens of a batch.", buckets=SIZES, **own)
        self._batch_texts = Histogram("batch_texts", "Texts of a batch.", buckets=SIZES, **own)
        self._batch_adapters = Histogram("batch_adapters", "Adapters of a batch.", buckets=SIZES, **own)
        self._batch_seconds = Histogram("batch_seconds", "Seconds of a batch.", buckets=SECONDS, **own)
        Gauge("queue_tokens", "Tokens that wait or are computed.", **own).set_function(queue_tokens)
        Gauge("adapters", "Adapters in service.", **own).set_function(adapters)

    def on_batch(self, batch: Batch) -> None:
        """Count a batch."""
        self.tokens.inc(batch.tokens)
        self._batch_tokens.observe(batch.tokens)
        self._batch_texts.observe(batch.texts)
        self._batch_adapters.observe(batch.adapters)
        self._batch_seconds.observe(batch.seconds)

    def on_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request; `path` is that of a route, so that there are few."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self._registry)
