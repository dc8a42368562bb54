"""The projected metrics as Prometheus sees them: samples from PostgreSQL, with a bounded number of labels."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

import asyncpg
import orjson
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from projections.db import Pool, database_errors, tenant_connection
from projections.metric_names import (
    AGENT_LABELS,
    BUCKETS_US,
    MAX_AGENTS,
    MAX_MODELS,
    METRICS,
    MODEL_LABEL,
    OTHER,
    TENANT_LABEL,
)
from schemas.money import exact_sum

# Tenants without a label of their own are summed in the database: there may be ten thousand of them.
_ALL = """
WITH named AS (SELECT tenant FROM metric_tenants ORDER BY rank LIMIT $1)
SELECT m.metric, m.labels, n.tenant, sum(m.value) AS value
FROM metrics m LEFT JOIN named n USING (tenant) GROUP BY 1, 2, 3
"""
_LABELS = """
(SELECT label, value FROM metric_labels WHERE label = 'agent' ORDER BY rank LIMIT $1)
UNION ALL (SELECT label, value FROM metric_labels WHERE label = 'model' ORDER BY rank LIMIT $2)
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample, with its labels as they are shown."""

    sample: str
    labels: tuple[str, ...]
    value: Decimal


async def snapshot(pool: Pool, *, tenant_labels: int) -> list[Sample]:
    """All samples. The first `tenant_labels` tenants that ever appeared have labels of their own."""
    with database_errors():
        async with pool.acquire() as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            rows = await conn.fetch(_ALL, tenant_labels)
            known = await conn.fetch(_LABELS, MAX_AGENTS, MAX_MODELS)
    return _shown(rows, {(row["label"], row["value"]) for row in known})


async def known_agents(pool: Pool) -> list[str]:
    """The agents that have labels of their own: all that ever were given work, up to the bound."""
    with database_errors():
        rows = await pool.fetch(_LABELS, MAX_AGENTS, 0)
    return [row["value"] for row in rows]


async def tenant_snapshot(pool: Pool, tenant_id: str) -> list[Sample]:
    """One tenant's samples, under its own name, through row-level security."""
    with database_errors():
        known = await pool.fetch(_LABELS, MAX_AGENTS, MAX_MODELS)
    async with tenant_connection(pool, tenant_id) as conn:
        rows = await conn.fetch("SELECT metric, labels, tenant, value FROM metrics WHERE tenant = $1", tenant_id)
    return _shown(rows, {(row["label"], row["value"]) for row in known})


def _shown(rows: Sequence[asyncpg.Record], known: set[tuple[str, str]]) -> list[Sample]:
    sums: dict[tuple[str, tuple[str, ...]], Decimal] = {}
    for row in rows:
        metric = METRICS.get(row["metric"].partition(":")[0])
        if metric is None:
            continue  # of a newer version
        labels = tuple(
            _label(name, value, row["tenant"], known)
            for name, value in zip(metric.labels, orjson.loads(row["labels"]), strict=True)
        )
        key = (row["metric"], labels)
        sums[key] = exact_sum((sums.get(key, 0), row["value"]))
    return [Sample(sample, labels, value) for (sample, labels), value in sorted(sums.items())]


def _label(name: str, value: str, tenant: str | None, known: set[tuple[str, str]]) -> str:
    if name == TENANT_LABEL:
        return tenant or OTHER
    if name in AGENT_LABELS:
        return value if ("agent", value) in known else OTHER
    if name == MODEL_LABEL:
        return value if ("model", value) in known else OTHER
    return value


class MetricsCollector(Collector):
    """Gives a snapshot to prometheus_client's registry."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_sample: dict[str, dict[tuple[str, ...], Decimal]] = {}
        for sample in samples:
            self._by_sample.setdefault(sample.sample, {})[sample.labels] = sample.value

    def collect(self) -> Iterator[Metric]:
        """Every declared family, with or without samples."""
        for metric in METRICS.values():
            if metric.kind == "histogram":
                yield self._histogram(metric.name, metric.help, metric.labels)
                continue
            family = (
                CounterMetricFamily(metric.name.removesuffix("_total"), metric.help, labels=metric.labels)
                if metric.kind == "counter"
                else GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            )
            for labels, value in self._by_sample.get(metric.name, {}).items():
                family.add_metric(labels, float(value))
            yield family

    def _histogram(self, name: str, text: str, label_names: Sequence[str]) -> HistogramMetricFamily:
        histogram = HistogramMetricFamily(name, text, labels=label_names)
        for labels, total_us in self._by_sample.get(f"{name}:sum", {}).items():
            running, buckets = Decimal(0), []
            for bound in (*BUCKETS_US, None):
                key = "+Inf" if bound is None else str(bound)
                running += self._by_sample.get(f"{name}:{key}", {}).get(labels, Decimal(0))
                buckets.append((key if bound is None else str(bound / 1_000_000), float(running)))
            histogram.add_metric(labels, buckets, float(total_us) / 1_000_000)
        return histogram
