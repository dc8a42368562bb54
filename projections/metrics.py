"""Prometheus metrics as a projection: counters that no restart sets back, exact because nothing in them is a float.

How they are shown is `projections/exposition.py`.
"""

import bisect
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal

import orjson

from projections.budgets import budget_samples
from projections.db import Connection
from projections.metric_names import BUCKETS_US
from projections.projection import Recorded, Unreadable, columns
from schemas.bodies import (
    AgentCancelled,
    AgentCompleted,
    AgentFailed,
    BudgetExceeded,
    ContextCompiled,
    EventBody,
    EventDropped,
    EventParked,
    EventRedriven,
    HandoffAccepted,
    HandoffRejected,
    LlmAttempted,
    TaskCancelled,
    TaskCompleted,
    TaskDecomposed,
    TaskFailed,
    TaskForked,
    TaskRouted,
    TaskSubmitted,
)
from schemas.money import exact_sum

Key = tuple[str, str, str]
"""(tenant, sample, label values as JSON). The tenant's own label is left empty: it is the row's tenant."""
TENANT = ""
"""The tenant's label in a row."""
Added = tuple[str, tuple[str, ...], Decimal | int]
"""What a fact adds: (sample, label values in the metric's order, value)."""
_Task = tuple[str, str]

_UPSERT = """
INSERT INTO metrics (tenant, metric, labels, value)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::numeric[])
ON CONFLICT (tenant, metric, labels) DO UPDATE SET value = metrics.value + excluded.value
"""
_NEW_TENANTS = """
INSERT INTO metric_tenants (tenant) SELECT t FROM unnest($1::text[]) t
WHERE NOT EXISTS (SELECT FROM metric_tenants m WHERE m.tenant = t) ORDER BY t ON CONFLICT DO NOTHING
"""
_NEW_LABELS = """
INSERT INTO metric_labels (label, value) SELECT n.label, n.value FROM unnest($1::text[], $2::text[]) n (label, value)
WHERE NOT EXISTS (SELECT FROM metric_labels m WHERE m.label = n.label AND m.value = n.value) ORDER BY 1, 2
ON CONFLICT DO NOTHING
"""
_ENDED_DECOMPOSED = """
DELETE FROM metric_decomposed d USING unnest($1::text[], $2::text[]) AS ended (tenant, task)
WHERE d.tenant = ended.tenant AND d.task = ended.task RETURNING d.tenant, d.task
"""

_AGENT_ENDS = {AgentCompleted.type: "ok", AgentFailed.type: "error", AgentCancelled.type: "cancelled"}
_TASK_ENDS = {TaskCompleted.type: "completed", TaskFailed.type: "failed", TaskCancelled.type: "cancelled"}


class Metrics:
    """Table `metrics`: one row per tenant, sample and label values. A histogram is a row per bucket, and a sum."""

    name = "metrics"
    tables: tuple[str, ...] = ("metrics", "metric_decomposed", "metric_budgets")
    event_types: frozenset[str] | None = frozenset(
        {
            *_AGENT_ENDS,
            *_TASK_ENDS,
            BudgetExceeded.type,
            ContextCompiled.type,
            EventDropped.type,
            EventParked.type,
            EventRedriven.type,
            HandoffAccepted.type,
            HandoffRejected.type,
            LlmAttempted.type,
            TaskDecomposed.type,
            TaskForked.type,
            TaskRouted.type,
            TaskSubmitted.type,
        }
    )

    async def apply(self, conn: Connection, batch: Sequence[Recorded]) -> None:
        """Add up the batch, then write each sample once."""
        decomposed = await _decomposed(conn, batch)
        added: list[tuple[str, Added]] = []
        labels: set[tuple[str, str]] = set()
        for entry in batch:
            event = entry.event
            labels.update(_labels(event.body))
            is_decomposed = (event.tenant_id, event.task_id) in decomposed
            added += [(event.tenant_id, sample) for sample in samples(event.body, is_decomposed)]
        added += await budget_samples(conn, batch)
        await _add(conn, added)
        await conn.execute(_NEW_TENANTS, sorted({entry.event.tenant_id for entry in batch}))
        await conn.execute(_NEW_LABELS, *columns(sorted(labels), 2))

    async def apply_unreadable(self, conn: Connection, batch: Sequence[Unreadable]) -> None:
        """Count the entries that make no event."""
        await _add(conn, [(one.tenant_id, ("log_entries_unreadable_total", (TENANT, one.reason), 1)) for one in batch])
        await conn.execute(_NEW_TENANTS, sorted({one.tenant_id for one in batch}))


async def _add(conn: Connection, added: Iterable[tuple[str, Added]]) -> None:
    """Add (tenant, sample) to the rows; each row is written once."""
    sums: dict[Key, Decimal | int] = {}
    for tenant_id, (sample, values, value) in added:
        key = (tenant_id, sample, orjson.dumps(values).decode())
        found = sums.get(key, 0)
        sums[key] = found + value if isinstance(value, int) else exact_sum((found, value))
    rows = [(*key, Decimal(value)) for key, value in sorted(sums.items())]
    await conn.execute(_UPSERT, *columns(rows, 4))


async def _decomposed(conn: Connection, batch: Sequence[Recorded]) -> set[_Task]:
    """The tasks that end in this batch and were decomposed. Those that do not end yet are kept for then."""
    open_tasks: dict[_Task, None] = {}
    ended: set[_Task] = set()
    for entry in batch:
        task = (entry.event.tenant_id, entry.event.task_id)
        if isinstance(entry.event.body, TaskDecomposed):
            open_tasks[task] = None
        elif entry.event.body.terminal:
            ended.add(task)
    found = ended & open_tasks.keys()
    if earlier := sorted(ended - found):
        rows = await conn.fetch(_ENDED_DECOMPOSED, *columns(earlier, 2))
        found |= {(row["tenant"], row["task"]) for row in rows}
    still_open = [task for task in open_tasks if task not in ended]
    await conn.executemany(
        "INSERT INTO metric_decomposed (tenant, task) VALUES ($1, $2) ON CONFLICT DO NOTHING", still_open
    )
    return found


def _labels(body: EventBody) -> Iterator[tuple[str, str]]:
    """Agents that ran and models that were asked. A handoff's target may be anything, and gets no label by that."""
    match body:
        case AgentCompleted() | AgentFailed() | AgentCancelled() | TaskRouted():
            yield "agent", body.agent_id
        case LlmAttempted():
            yield "agent", body.agent_id
            yield "model", body.requested_model


def samples(body: EventBody, decomposed: bool) -> Iterator[Added]:
    """What an event adds by itself, whatever its task did before, but for having been decomposed."""
    match body:
        case AgentCompleted() | AgentFailed() | AgentCancelled():
            yield "agent_invocations_total", (body.agent_id, TENANT, _AGENT_ENDS[body.type]), 1
            yield from _observe("agent_invocation_duration_seconds", body.duration_us, body.agent_id, TENANT)
        case HandoffAccepted() | HandoffRejected():
            names = (body.source_agent_id, body.target_agent_id, body.strictness, _result(body))
            yield "handoff_validations_total", names, 1
        case TaskSubmitted() | TaskForked():
            yield "supervisor_tasks_accepted_total", (TENANT,), 1
            yield "supervisor_tasks_open", (TENANT,), 1
        case TaskCompleted() | TaskFailed() | TaskCancelled():
            yield "supervisor_tasks_open", (TENANT,), -1
            split = decomposed or (isinstance(body, TaskCompleted) and body.decomposed)
            yield "supervisor_tasks_total", (TENANT, str(split).lower(), _TASK_ENDS[body.type]), 1
        case ContextCompiled():
            yield from _observe("context_compilation_duration_seconds", body.duration_us, TENANT, body.tier)
        case LlmAttempted():
            yield from _attempt(body)
        case BudgetExceeded():
            yield "budget_exceeded_total", (TENANT, body.because), 1
        case EventParked():
            yield "parked_entries", (TENANT,), 1
        case EventRedriven() | EventDropped():
            yield "parked_entries", (TENANT,), -1


def _result(body: HandoffAccepted | HandoffRejected) -> str:
    if isinstance(body, HandoffRejected):
        return "rejected"
    return "unverified" if body.verification == "unverified" else "accepted"


def _attempt(body: LlmAttempted) -> Iterator[Added]:
    model = body.requested_model
    yield "llm_requests_total", (model, TENANT, body.status), 1
    yield from _observe("llm_request_duration_seconds", body.duration_us, model, TENANT)
    for token_type, count in body.tokens or ():
        if count:
            yield "llm_tokens_used_total", (model, TENANT, token_type), count
    if body.cost_usd is not None:
        yield "llm_cost_usd_total", (model, TENANT, body.agent_id), Decimal(body.cost_usd)
    if body.cost_status in ("unpriced", "unknown"):
        yield "llm_unpriced_attempts_total", (model, TENANT, body.cost_status), 1


def _observe(metric: str, duration_us: int, *labels: str) -> Iterator[Added]:
    index = bisect.bisect_left(BUCKETS_US, duration_us)
    bound = str(BUCKETS_US[index]) if index < len(BUCKETS_US) else "+Inf"
    yield f"{metric}:{bound}", labels, 1
    yield f"{metric}:sum", labels, duration_us
