"""All metrics: names, labels, help, and the histograms' buckets (contract row E4).

`METRICS` are projected from the log; `PROCESS_METRICS` come from the running process and from Redis as it stands.

Labels are bounded: so many tenants, agents and models have labels of their own, the rest are `_other`.
"""

from dataclasses import dataclass
from typing import Literal

TENANT_LABEL = "tenant_id"
AGENT_LABELS = frozenset({"agent_id", "source_agent", "target_agent"})
MODEL_LABEL = "model"
OTHER = "_other"
"""The label of all tenants, agents or models that have none of their own."""
MAX_AGENTS = 200
"""Agents with labels of their own, in the order in which they first ran."""
MAX_MODELS = 100
"""Models with labels of their own, in the order in which they were first asked."""
BUCKETS_US = (
    *(1_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000),
    *(10_000_000, 30_000_000, 60_000_000, 120_000_000, 300_000_000),
)
"""Upper bounds of the duration histograms, in microseconds."""


@dataclass(frozen=True, slots=True)
class MetricName:
    """One metric family."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str


METRICS = {
    metric.name: metric
    for metric in (
        MetricName(
            "agent_invocations_total",
            "counter",
            ("agent_id", "tenant_id", "status"),
            "Agent runs that ended: ok, error or cancelled.",
        ),
        MetricName(
            "agent_invocation_duration_seconds", "histogram", ("agent_id", "tenant_id"), "How long agent runs took."
        ),
        MetricName(
            "handoff_validations_total",
            "counter",
            ("source_agent", "target_agent", "strictness", "result"),
            "Handoffs that were judged: accepted, rejected, or unverified (let pass without the check it needed).",
        ),
        MetricName(
            "supervisor_tasks_total",
            "counter",
            ("tenant_id", "decomposed", "status"),
            "Tasks that ended: completed, failed or cancelled.",
        ),
        MetricName(
            "supervisor_tasks_accepted_total", "counter", ("tenant_id",), "Tasks that were accepted, forks among them."
        ),
        MetricName("supervisor_tasks_open", "gauge", ("tenant_id",), "Tasks that were accepted and have not ended."),
        MetricName(
            "context_compilation_duration_seconds",
            "histogram",
            ("tenant_id", "model_tier"),
            "How long it took to put contexts together.",
        ),
        MetricName(
            "llm_requests_total",
            "counter",
            ("model", "tenant_id", "status"),
            "LLM attempts: ok, error, cancelled or unknown.",
        ),
        MetricName("llm_request_duration_seconds", "histogram", ("model", "tenant_id"), "How long LLM attempts took."),
        MetricName(
            "llm_tokens_used_total", "counter", ("model", "tenant_id", "token_type"), "Tokens, disjoint by type."
        ),
        MetricName(
            "llm_cost_usd_total", "counter", ("model", "tenant_id", "agent_id"), "US dollars computed from tokens."
        ),
        MetricName(
            "parked_entries",
            "gauge",
            ("tenant_id",),
            "Dead letters: entries and calls that were given up, and neither redriven nor dropped yet.",
        ),
        MetricName(
            "llm_unpriced_attempts_total",
            "counter",
            ("model", "tenant_id", "cost_status"),
            "LLM attempts that are not in llm_cost_usd_total: unpriced (no known price) or unknown (no known end).",
        ),
        MetricName("budgeted_tasks_open", "gauge", ("tenant_id",), "Tasks with a budget that have not ended."),
        MetricName(
            "task_budget_limit_usd", "gauge", ("tenant_id",), "What the open tasks with a budget may cost, together."
        ),
        MetricName(
            "task_budget_spent_usd",
            "gauge",
            ("tenant_id",),
            "What the open tasks with a budget cost so far, together; what is in flight is not in it.",
        ),
        MetricName(
            "budgeted_tasks_total",
            "counter",
            ("tenant_id", "status", "exceeded"),
            "Tasks with a budget that ended; exceeded is true if an LLM request of theirs was not sent for it.",
        ),
        MetricName(
            "task_budget_overrun_usd_total",
            "counter",
            ("tenant_id",),
            "By how much ended tasks cost more than their budgets: what was in flight when they were spent.",
        ),
        MetricName(
            "budget_exceeded_total",
            "counter",
            ("tenant_id", "reason"),
            "LLM requests that were not sent for their task's budget: spent, or unpriced (no known price).",
        ),
        MetricName(
            "log_entries_unreadable_total",
            "counter",
            ("tenant_id", "reason"),
            "Entries of the log that make no event: unknown_type, unknown_version, missing_field, no_task, "
            "malformed_envelope, malformed_body, not_text, not_storable or other.",
        ),
    )
}

PROCESS_METRICS = {
    metric.name: metric
    for metric in (
        MetricName(
            "http_requests_total",
            "counter",
            ("method", "route", "status"),
            "HTTP requests that this process answered, by route template.",
        ),
        MetricName("http_request_duration_seconds", "histogram", ("method", "route"), "How long HTTP requests took."),
        MetricName(
            "consumer_lag_tenants",
            "gauge",
            ("reader",),
            "Tenants with facts that this reader of the log has not read, or is reading.",
        ),
        MetricName(
            "consumer_lag_seconds",
            "gauge",
            ("reader",),
            "Age of the oldest fact that this reader has not read, among the tenants whose turn is next.",
        ),
        MetricName(
            "projection_lag_seconds",
            "gauge",
            ("projection",),
            "Age of the oldest fact that the projection has not applied, among the tenants whose turn is next.",
        ),
        MetricName("pending_calls", "gauge", ("state",), "Calls without a result: queued (at least), or running."),
        MetricName(
            "log_memory_used_bytes",
            "gauge",
            ("node",),
            "Memory that this node of Redis uses, for the log and all else.",
        ),
        MetricName(
            "log_memory_limit_bytes",
            "gauge",
            ("node",),
            "The most that this node of Redis may use (maxmemory); beyond it nothing is accepted. 0: no limit is set.",
        ),
        MetricName(
            "langfuse_export_pending_events",
            "gauge",
            ("state",),
            "Archived events that Langfuse does not have: waiting (at least), or in_flight. Where an export is set up.",
        ),
        MetricName(
            "langfuse_export_lag_seconds",
            "gauge",
            (),
            "Age of the oldest event that Langfuse is not known to have, among the tenants the furthest behind.",
        ),
        MetricName(
            "langfuse_export_refused_total",
            "counter",
            (),
            "Events that Langfuse refused for good, or that no span could be made of. Counted in PostgreSQL.",
        ),
        MetricName("process_up", "gauge", ("process",), "1 if this child process of `headwater up` runs, else 0."),
        MetricName(
            "process_restarts_total",
            "counter",
            ("process",),
            "How often this child process of `headwater up` was started again.",
        ),
    )
}
