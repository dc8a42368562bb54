"""Prometheus metrics as a projection: counters that no restart sets back, exact because nothing in them is a float."""

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

import orjson
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from projections.db import Connection, Pool, database_errors, tenant_connection
from projections.metric_names import BUCKETS_US, METRICS, OTHER_TENANTS, TENANT_LABEL
from projections.projection import Recorded, columns
from schemas.bodies import (
    AgentCompleted,
    AgentFailed,
    HandoffAccepted,
    HandoffRejected,
    LlmAttempted,
    TaskCompleted,
    TaskFailed,
)
from schemas.event import AgentEvent

_Key = tuple[str, str, str]
"""(tenant, sample, labels as JSON)"""
_UPSERT = """
INSERT INTO metrics (tenant, metric, labels, value)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::numeric[])
ON CONFLICT (tenant, metric, labels) DO UPDATE SET value = metrics.value + excluded.value
"""


class Metrics:
    """Table `metrics`: one row per tenant, sample and label values. A histogram is a row per bucket, a sum, a count."""

    name = "metrics"
    tables: tuple[str, ...] = ("metrics",)
    event_types: frozenset[str] | None = frozenset(
        body.type
        for body in (
            AgentCompleted,
            AgentFailed,
            HandoffAccepted,
            HandoffRejected,
            LlmAttempted,
            TaskCompleted,
            TaskFailed,
        )
    )

    async def apply(self, conn: Connection, batch: Sequence[Recorded]) -> None:
        """Add up the batch, then write each sample once."""
        sums: dict[_Key, Decimal | int] = {}
        for entry in batch:
            for key, value in _samples(entry.event):
                sums[key] = sums.get(key, 0) + value
        rows = [(*key, Decimal(value)) for key, value in sorted(sums.items())]
        await conn.execute(_UPSERT, *columns(rows, 4))
        tenants = sorted({entry.event.tenant_id for entry in batch})
        await conn.execute(
            "INSERT INTO metric_tenants (tenant) SELECT t FROM unnest($1::text[]) t "
            "WHERE NOT EXISTS (SELECT FROM metric_tenants m WHERE m.tenant = t) ORDER BY t ON CONFLICT DO NOTHING",
            tenants,
        )


def _samples(event: AgentEvent) -> Iterator[tuple[_Key, Decimal | int]]:
    tenant, body = event.tenant_id, event.body
    match body:
        case AgentCompleted() | AgentFailed():
            status = "ok" if isinstance(body, AgentCompleted) else "error"
            yield _count(tenant, "agent_invocations_total", body.agent_id, tenant, status)
            yield from _observe(tenant, "agent_invocation_duration_seconds", body.duration_us, body.agent_id, tenant)
        case HandoffAccepted() | HandoffRejected():
            result = "accepted" if isinstance(body, HandoffAccepted) else "rejected"
            names = (body.source_agent_id, body.target_agent_id, body.strictness, result)
            yield _count(tenant, "handoff_validations_total", *names)
        case TaskCompleted() | TaskFailed():
            status = "completed" if isinstance(body, TaskCompleted) else "failed"
            decomposed = isinstance(body, TaskCompleted) and body.decomposed
            yield _count(tenant, "supervisor_tasks_total", tenant, str(decomposed).lower(), status)
        case LlmAttempted():
            model = body.requested_model
            yield _count(tenant, "llm_requests_total", model, tenant, body.status)
            yield from _observe(tenant, "llm_request_duration_seconds", body.duration_us, model, tenant)
            for token_type, count in body.tokens or ():
                if count:
                    yield _key(tenant, "llm_tokens_used_total", model, tenant, token_type), count
            if body.cost_usd is not None:
                yield _key(tenant, "llm_cost_usd_total", model, tenant, body.agent_id), Decimal(body.cost_usd)


def _key(tenant: str, sample: str, *labels: str) -> _Key:
    return tenant, sample, orjson.dumps(labels).decode()


def _count(tenant: str, metric: str, *labels: str) -> tuple[_Key, int]:
    return _key(tenant, metric, *labels), 1


def _observe(tenant: str, metric: str, duration_us: int, *labels: str) -> Iterator[tuple[_Key, int]]:
    index = bisect.bisect_left(BUCKETS_US, duration_us)
    bound = str(BUCKETS_US[index]) if index < len(BUCKETS_US) else "+Inf"
    yield _key(tenant, f"{metric}:{bound}", *labels), 1
    yield _key(tenant, f"{metric}:sum", *labels), duration_us


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of the table, its tenant folded into `_other` if it has no label of its own."""

    sample: str
    labels: tuple[str, ...]
    value: Decimal


async def snapshot(pool: Pool, *, tenant_labels: int) -> list[Sample]:
    """All samples. The first `tenant_labels` tenants that ever appeared have labels of their own."""
    with database_errors():
        rows = await pool.fetch(
            "SELECT m.metric, m.labels, m.tenant, sum(m.value) AS value, coalesce(bool_or(t.rank <= $1), false) AS own "
            "FROM metrics m LEFT JOIN metric_tenants t USING (tenant) GROUP BY 1, 2, 3",
            tenant_labels,
        )
    sums: dict[tuple[str, tuple[str, ...]], Decimal] = {}
    for row in rows:
        labels = list(orjson.loads(row["labels"]))
        names = METRICS[row["metric"].partition(":")[0]].labels
        if TENANT_LABEL in names and not row["own"]:
            labels[names.index(TENANT_LABEL)] = OTHER_TENANTS
        key = (row["metric"], tuple(labels))
        sums[key] = sums.get(key, Decimal(0)) + row["value"]
    return [Sample(sample, labels, value) for (sample, labels), value in sorted(sums.items())]


async def tenant_snapshot(pool: Pool, tenant_id: str) -> list[Sample]:
    """The samples that one tenant's log made, under its own label; row-level security keeps out all others."""
    async with tenant_connection(pool, tenant_id) as conn:
        rows = await conn.fetch("SELECT metric, labels, value FROM metrics ORDER BY metric, labels")
    return [Sample(row["metric"], tuple(orjson.loads(row["labels"])), row["value"]) for row in rows]


class MetricsCollector(Collector):
    """Gives a snapshot to prometheus_client's registry."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = list(samples)

    def collect(self) -> Iterator[Metric]:
        """Every declared family, with or without samples."""
        by_sample: dict[str, dict[tuple[str, ...], Decimal]] = {}
        for sample in self._samples:
            by_sample.setdefault(sample.sample, {})[sample.labels] = sample.value
        for metric in METRICS.values():
            if metric.kind == "counter":
                counter = CounterMetricFamily(metric.name.removesuffix("_total"), metric.help, labels=metric.labels)
                for labels, value in by_sample.get(metric.name, {}).items():
                    counter.add_metric(labels, float(value))
                yield counter
                continue
            histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, total_us in by_sample.get(f"{metric.name}:sum", {}).items():
                running, buckets = Decimal(0), []
                for bound in (*BUCKETS_US, None):
                    name = "+Inf" if bound is None else str(bound)
                    running += by_sample.get(f"{metric.name}:{name}", {}).get(labels, Decimal(0))
                    buckets.append((name if bound is None else str(bound / 1_000_000), float(running)))
                histogram.add_metric(labels, buckets, float(total_us) / 1_000_000)
            yield histogram
