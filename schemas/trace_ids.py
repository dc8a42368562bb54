"""Where a task, a call and an event stand in a trace: OpenTelemetry ids, computed from ours.

They hold for whoever computes them: the exporter, and a worker that puts a user's own spans under its agent's run.
`trace_id(tenant, task)` equals `Langfuse.create_trace_id(seed=f"{tenant}:{task}")`.
"""

import hashlib


def trace_id(tenant_id: str, task_id: str) -> str:
    """The trace of a task, as 32 hex digits."""
    return _digest(f"{tenant_id}:{task_id}", 16)


def task_span_id(tenant_id: str, task_id: str) -> str:
    """The root span of a task, as 16 hex digits."""
    return _digest(f"{tenant_id}:task:{task_id}", 8)


def call_span_id(tenant_id: str, call_id: str) -> str:
    """The span of a call, an agent's run or a question of the supervisor's, as 16 hex digits."""
    return _digest(f"{tenant_id}:call:{call_id}", 8)


def event_span_id(tenant_id: str, event_id: str) -> str:
    """The span of a single event, such as an LLM attempt, as 16 hex digits."""
    return _digest(f"{tenant_id}:event:{event_id}", 8)


def _digest(seed: str, size: int) -> str:
    return hashlib.sha256(seed.encode()).digest()[:size].hex()
