"""What Prometheus reads at `/metrics`."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from .gate import Gate

__all__ = ["CONTENT_TYPE", "STAGES", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
STAGES = ("queue", "decode", "network", "encode")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of one service, apart from those of any other in the process."""

    def __init__(self, gate: Gate) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # resident memory, processor time, open files
        PlatformCollector(registry=registry)
        self.requests = Counter("rdsr_requests", "Requests, by route and status.", ("route", "status"), registry=registry)
        self.seconds = Histogram(
            "rdsr_request_seconds", "From the end of the headers to the end of the response.", ("route",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.stages = Histogram(
            "rdsr_stage_seconds", "Stages of upscaling: queue, decode, network, encode.", ("model", "stage"),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.pixels = Counter("rdsr_pixels", "Pixels of pictures that were upscaled.", ("model", "of"), registry=registry)
        self.rejections = Counter(
            "rdsr_rejections", "Requests that were not served, by reason.", ("reason",), registry=registry
        )
        waiting = Gauge("rdsr_queue_depth", "Requests that wait for a worker.", registry=registry)
        waiting.set_function(lambda: gate.waiting)
        admitted = Gauge("rdsr_admitted", "Requests that wait or are in work.", registry=registry)
        admitted.set_function(lambda: gate.admitted)
        self.held = Gauge("rdsr_held_bytes", "Bytes of bodies and answers that are held for clients.", registry=registry)
        self.dropped = Counter(
            "rdsr_dropped_connections", "Connections that were cut: the client was too slow.", registry=registry
        )

    def served(self, model: str, milliseconds: dict[str, float], pixels_in: int, pixels_out: int) -> None:
        """A request was served. `milliseconds`: of each of `STAGES`; `pixels_…`: of all of its pictures."""
        for stage, taken in milliseconds.items():
            self.stages.labels(model, stage).observe(taken / 1e3)
        self.pixels.labels(model, "input").inc(pixels_in)
        self.pixels.labels(model, "output").inc(pixels_out)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
