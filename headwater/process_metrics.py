"""Metrics of the running process, beside those that are projected from the log: HTTP, lag, calls, child processes."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from projections.db import Pool
from projections.exposition import known_agents
from projections.langfuse import export_backlog
from projections.metric_names import BUCKETS_US, OTHER, PROCESS_METRICS
from projections.projection import START, format_position
from projections.queries import positions_of
from projections.runner import PROJECTIONS
from schemas.errors import UnavailableError
from streams.backlog import READERS, calls, oldest_unread_s, reader_backlog
from streams.connection import Streams
from streams.memory import node_memory

logger = structlog.get_logger(__name__)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
NO_ROUTE = "_none"
"""The route of a request that no route matched: its path is the caller's invention, and no label."""
SUPERVISOR = "supervisor"


class ChildProcess(Protocol):
    """A child process of `headwater up`."""

    name: str
    restarts: int

    @property
    def is_running(self) -> bool:
        """Does it run now?"""
        ...


class HttpMetrics:
    """Counts and times HTTP requests. `registry` has the numbers of this process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        requests, durations = PROCESS_METRICS["http_requests_total"], PROCESS_METRICS["http_request_duration_seconds"]
        self._requests = Counter(requests.name, requests.help, requests.labels, registry=self.registry)
        self._durations = Histogram(
            durations.name,
            durations.help,
            durations.labels,
            buckets=[bound / 1_000_000 for bound in BUCKETS_US],
            registry=self.registry,
        )

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """One request was answered, or given up with `status` 500."""
        method = scope["method"] if scope["method"] in METHODS else OTHER
        route = getattr(scope.get("route"), "path", NO_ROUTE)
        self._requests.labels(method, route, str(status)).inc()
        self._durations.labels(method, route).observe(seconds)


class CountRequests:
    """ASGI middleware, the outermost one, so that refused requests count too."""

    def __init__(self, app: ASGIApp, *, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        clock = time.perf_counter()
        try:
            await self._app(scope, receive, watch)
        finally:
            self._metrics.count(scope, status, time.perf_counter() - clock)


class Gauges(Collector):
    """Metric families that were read before they are collected."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        """The families."""
        yield from self._families


def child_metrics(children: Sequence[ChildProcess]) -> list[Metric]:
    """Which child processes run, and how often they were started again."""
    up = _gauge("process_up")
    restarted = _counter("process_restarts_total")
    for child in children:
        up.add_metric((child.name,), float(child.is_running))
        restarted.add_metric((child.name,), child.restarts)
    return [up, restarted]


async def backlog_metrics(streams: Streams, pool: Pool) -> list[Metric]:
    """Lag of the log's readers and projections, pending calls, memory. Empty, with a log line, if Redis is away.

    Raises:
        UnavailableError: PostgreSQL cannot be reached.
    """
    agents = {*await known_agents(pool), SUPERVISOR}
    try:
        return [*await _lag(streams, pool), await _pending(streams, agents), *await _memory(streams)]
    except UnavailableError as error:
        logger.warning("backlog_unavailable", error=str(error))
        return []


async def export_metrics(pool: Pool) -> list[Metric]:
    """How far the export to Langfuse is behind. Raises `UnavailableError` if PostgreSQL cannot be reached."""
    found = await export_backlog(pool)
    pending, lag = _gauge("langfuse_export_pending_events"), _gauge("langfuse_export_lag_seconds")
    pending.add_metric(("waiting",), found.waiting)
    pending.add_metric(("in_flight",), found.in_flight)
    lag.add_metric((), found.oldest_s)
    refused = _counter("langfuse_export_refused_total")
    refused.add_metric((), found.refused)
    return [pending, lag, refused]


async def _lag(streams: Streams, pool: Pool) -> list[Metric]:
    tenants, seconds = _gauge("consumer_lag_tenants"), _gauge("consumer_lag_seconds")
    behind: list[str] = []
    for reader in READERS:
        found = await reader_backlog(streams, reader)
        tenants.add_metric((reader,), found.tenants)
        seconds.add_metric((reader,), await oldest_unread_s(streams, found.places))
        if reader == "projector":
            behind = [tenant for tenant, _ in found.places]
    projections = _gauge("projection_lag_seconds")
    read = await positions_of(pool, behind)
    for name in (projection.name for projection in PROJECTIONS):
        places = [(tenant, format_position(read.get((name, tenant), START))) for tenant in behind]
        projections.add_metric((name,), await oldest_unread_s(streams, places))
    return [tenants, seconds, projections]


async def _pending(streams: Streams, agents: set[str]) -> Metric:
    found = await calls(streams, agents)
    pending = _gauge("pending_calls")
    pending.add_metric(("queued",), found.queued)
    pending.add_metric(("running",), found.running)
    return pending


async def _memory(streams: Streams) -> list[Metric]:
    used, limit = _gauge("log_memory_used_bytes"), _gauge("log_memory_limit_bytes")
    for found in await node_memory(streams):
        used.add_metric((found.node,), found.used_bytes)
        limit.add_metric((found.node,), found.limit_bytes)
    return [used, limit]


def _counter(name: str) -> CounterMetricFamily:
    metric = PROCESS_METRICS[name]
    return CounterMetricFamily(name.removesuffix("_total"), metric.help, labels=metric.labels)


def _gauge(name: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, PROCESS_METRICS[name].help, labels=PROCESS_METRICS[name].labels)
