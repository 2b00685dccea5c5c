"""What a server counts, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]
_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The counters of one server; `waiting` gives the queries that wait now."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "hada_requests", "Requests.", ["path", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "hada_request_seconds",
            "Seconds from a request to its response.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.queries = Counter("hada_queries", "Queries.", ["kind"], registry=self._registry)
        self.batches = Histogram(
            "hada_batch_size", "Queries of a batch.", buckets=_SIZES, registry=self._registry
        )
        gauge = Gauge("hada_waiting", "Queries that wait.", registry=self._registry)
        gauge.set_function(waiting)

    def text(self) -> bytes:
        """All of them."""
        return bytes(generate_latest(self._registry))
