"""What is counted: requests, errors and durations by route, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector
from starlette.requests import Request
from starlette.responses import Response

from libs.common.http.access import public

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The metrics of one build: one registry, which the services composed in it may share."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "http_requests_total",
            "HTTP requests answered.",
            ("service", "route", "method", "status"),
            registry=self.registry,
        )
        self._durations = Histogram(
            "http_request_duration_seconds",
            "Time from the request's arrival to the end of its answer.",
            ("service", "route", "method"),
            registry=self.registry,
            buckets=BUCKETS_S,
        )
        # Looking a child up by its labels costs more than counting on it.
        self._children: dict[tuple[str, str, str, int], tuple[Counter, Histogram]] = {}

    def count_request(
        self, service: str, route: str, method: str, status: int, duration_s: float
    ) -> None:
        """Count one answered request. `route` is the path's template, so that ids make no series."""
        key = (service, route, method if method in _METHODS else "OTHER", status)
        counter, histogram = self._children.get(key) or self._child(key)
        counter.inc()
        histogram.observe(duration_s)

    def _child(self, key: tuple[str, str, str, int]) -> tuple[Counter, Histogram]:
        service, route, method, status = key
        child = (
            self._requests.labels(service, route, method, str(status)),
            self._durations.labels(service, route, method),
        )
        self._children[key] = child
        return child

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    @public("scraped inside the cluster; the gateway does not forward it")
    async def expose(self, _request: Request) -> Response:
        """Answer with all metrics."""
        return Response(self.text(), headers={"content-type": CONTENT_TYPE_LATEST})
