"""Metrics of a server, for Prometheus."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """Requests by model, endpoint and status, and how long they took."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "cnndeploy_requests",
            "Requests that were answered.",
            ("model", "endpoint", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "cnndeploy_request_seconds",
            "Seconds from a request's first byte to its answer.",
            ("model", "endpoint"),
            buckets=_SECONDS,
            registry=self._registry,
        )

    def note(self, model: str, endpoint: str, status: int | str, seconds: float) -> None:
        """Note a request that was answered; the model is empty if there is none of that name."""
        self._requests.labels(model, endpoint, str(status)).inc()
        self._seconds.labels(model, endpoint).observe(seconds)

    def text(self) -> tuple[bytes, str]:
        """Return all metrics as Prometheus reads them, and the content type of that."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
