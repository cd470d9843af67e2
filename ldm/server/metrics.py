"""Figures of a server for Prometheus; labels have few values, whatever clients send."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from ldm.server.jobs import Job
    from ldm.server.state import Server

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 32)


class Metrics:
    """The figures of one server; every server of a process has its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "ldm_requests", "Answers to requests", ["method", "route", "status"], **own
        )
        self.request_seconds = Histogram(
            "ldm_request_seconds", "From a request to its end", ["route"], buckets=SECONDS, **own
        )
        self.jobs = Counter("ldm_jobs", "Jobs that ended", ["state"], **own)
        self.waiting = Histogram(
            "ldm_waiting_seconds", "From a job to its first step", buckets=SECONDS, **own
        )
        self.batches = Histogram(
            "ldm_batch_pictures", "Pictures of one run", buckets=BATCHES, **own
        )
        ProcessCollector(registry=self.registry)

    def answered(self, scope: Mapping[str, Any], status: int | None, seconds: float) -> None:
        """Count a request; status: None if there was no answer."""
        route = route_of(scope)
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.requests.labels(method, route, str(status or "none")).inc()
        self.request_seconds.labels(route).observe(seconds)

    def ended(self, job: Job) -> None:
        """Count a job that has ended."""
        self.jobs.labels(job.status.state).inc()

    def watch(self, server: Server) -> None:
        """Read a server's own counts whenever the figures are asked for."""
        self.registry.register(ServerCollector(lambda: figures(server)))

    def text(self) -> tuple[bytes, str]:
        """Return the figures, and the type of their text."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class ServerCollector(Collector):
    """Yields what a function returns."""

    def __init__(self, found: Callable[[], Iterator[Metric]]) -> None:
        self._found = found

    def describe(self) -> list[Metric]:
        """Return nothing, so that it is not called when it is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the figures now."""
        yield from self._found()


def figures(server: Server) -> Iterator[Metric]:
    """Yield the counts that the parts of a server keep."""
    worker = server.worker
    yield GaugeMetricFamily("ldm_ready", "1 if it draws", value=float(server.trouble() is None))
    yield GaugeMetricFamily("ldm_queue_jobs", "Jobs that wait", value=len(server.queue))
    drawing = sum(unit.count for unit in worker.drawing)
    yield GaugeMetricFamily("ldm_drawing_pictures", "Pictures that are drawn", value=drawing)
    yield CounterMetricFamily("ldm_pictures", "Pictures that were drawn", value=worker.drawn)
    yield CounterMetricFamily(
        "ldm_steps", "Steps, each counted for every picture of its run", value=worker.steps
    )
    yield CounterMetricFamily(
        "ldm_unwanted_steps", "Steps of runs that nobody waits for", value=worker.unwanted_steps
    )
    yield CounterMetricFamily(
        "ldm_busy_seconds", "Seconds in which it drew", value=worker.busy_seconds
    )
    yield GaugeMetricFamily(
        "ldm_kept_bytes", "Finished pictures in memory", value=server.pictures.kept_bytes
    )
    yield CounterMetricFamily(
        "ldm_output_errors",
        "Pictures that could not be written into the output folder",
        value=server.pictures.unwritten,
    )
    yield GaugeMetricFamily("ldm_kept_jobs", "Jobs that are remembered", value=len(server.jobs))
    pipe = server.model.pipe
    if pipe is not None and pipe.device.type == "cuda":
        import torch

        used = torch.cuda.memory_allocated(pipe.device)
        yield GaugeMetricFamily("ldm_device_bytes", "Memory of the device in use", value=used)


def route_of(scope: Mapping[str, Any]) -> str:
    """Return the route of a request, without what clients choose: "/api/jobs/{job_id}"."""
    path = getattr(scope.get("route"), "path", None)
    if isinstance(path, str):
        return path
    if scope["path"].startswith("/page/"):
        return "/page"
    return "/login" if scope["path"] == "/login" else "other"
