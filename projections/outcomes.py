"""What became of the money: every attempt has exactly one outcome, so the outcomes add up to the total.

The outcome of an attempt follows from what is known about it, the most specific first:

1. the attempt itself: broken off → `cancelled`; refused, failed or with an unknown end → `failed_attempt`
2. its call: the handoff that it ended with was rejected → `rejected_handoff`; the run (or the supervisor's question)
   failed → `failed_run`; the run was stopped → `cancelled`
3. its task: `cancelled` or `failed_task`
4. otherwise `useful`: nothing speaks against it. A task that has not ended counts here until it does.

Which facts are known, and not the order in which they came, decides: however the log is cut into batches, the outcome
is the same. Of two facts about one call or task, the first in the log counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from projections.archive import clean
from projections.db import Connection
from projections.projection import Recorded, columns
from schemas.bodies import (
    AgentCancelled,
    AgentFailed,
    EventBody,
    HandoffAccepted,
    HandoffProposed,
    HandoffRejected,
    SupervisorAnswered,
    TaskCancelled,
    TaskFailed,
)
from schemas.event import AgentEvent

Outcome = Literal["useful", "failed_attempt", "rejected_handoff", "failed_run", "cancelled", "failed_task"]
OUTCOMES: tuple[str, ...] = get_args(Outcome)
Scope = Literal["call", "task"]
Subject = tuple[str, Scope, str]
"""(tenant, "call" or "task", its id)"""

READS = frozenset(
    body.type
    for body in (
        AgentCancelled,
        AgentFailed,
        HandoffAccepted,
        HandoffProposed,
        HandoffRejected,
        SupervisorAnswered,
        TaskCancelled,
        TaskFailed,
    )
)
"""The event types that say what became of a call or a task."""

_TAKE_PROPOSALS = """
DELETE FROM open_handoffs h USING unnest($1::text[], $2::text[]) AS judged (tenant, proposal)
WHERE h.tenant = judged.tenant AND h.proposal = judged.proposal RETURNING h.tenant, h.proposal, h.call
"""
_KEEP_VERDICTS = """
INSERT INTO verdicts (tenant, scope, id, outcome) SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
ON CONFLICT DO NOTHING
"""
_FIND_VERDICTS = """
SELECT v.tenant, v.scope, v.id, v.outcome FROM verdicts v
JOIN unnest($1::text[], $2::text[], $3::text[]) AS asked (tenant, scope, id) USING (tenant, scope, id)
"""


def outcome_of(status: str, call_verdict: str | None, task_verdict: str | None) -> str:
    """The outcome of an attempt with this status, whose call and task came to these verdicts (None: nothing bad)."""
    if status == "cancelled":
        return "cancelled"
    if status != "ok":
        return "failed_attempt"
    return call_verdict or task_verdict or "useful"


@dataclass(slots=True)
class Said:
    """What a batch says about calls and tasks."""

    verdicts: dict[Subject, str] = field(default_factory=dict)
    tasks: set[tuple[str, str]] = field(default_factory=set)
    """(tenant, task) whose earlier attempts may have another outcome now."""


async def take_verdicts(conn: Connection, batch: Sequence[Recorded]) -> Said:
    """Keep what `batch` says about calls and tasks, and return it."""
    calls = await _judged_calls(conn, batch)
    said = Said()
    for entry in batch:
        event = entry.event
        found = _verdict(event.body, calls.get((event.tenant_id, _judged(event))), event.task_id)
        if found is not None:
            scope, subject, outcome = found
            said.verdicts.setdefault((event.tenant_id, scope, subject), outcome)
            said.tasks.add((event.tenant_id, event.task_id))
    if said.verdicts:
        await conn.execute(_KEEP_VERDICTS, *columns([(*key, value) for key, value in said.verdicts.items()], 4))
    return said


async def find_verdicts(conn: Connection, subjects: set[Subject]) -> Mapping[Subject, str]:
    """What is known of these calls and tasks; nothing bad is known of one that is not in the answer."""
    if not subjects:
        return {}
    rows = await conn.fetch(_FIND_VERDICTS, *columns(sorted(subjects), 3))
    return {(row["tenant"], row["scope"], row["id"]): row["outcome"] for row in rows}


def _verdict(body: EventBody, judged_call: str | None, task_id: str) -> tuple[Scope, str, str] | None:
    match body:
        case HandoffRejected() if judged_call is not None:
            return "call", judged_call, "rejected_handoff"
        case AgentFailed():
            return "call", _id(body.call_id), "failed_run"
        case SupervisorAnswered() if body.error is not None:
            return "call", _id(body.call_id), "failed_run"
        case AgentCancelled():
            return "call", _id(body.call_id), "cancelled"
        case TaskCancelled():
            return "task", task_id, "cancelled"
        case TaskFailed():
            return "task", task_id, "failed_task"
    return None


def _judged(event: AgentEvent) -> str:
    """The proposal that a verdict is about: the one it names, else its own cause."""
    named = getattr(event.body, "proposal_event_id", None)
    return str(named or event.parent_event_id or "")


async def _judged_calls(conn: Connection, batch: Sequence[Recorded]) -> dict[tuple[str, str], str]:
    """(tenant, proposal) → the call that proposed it, for every verdict in the batch. A verdict names its proposal."""
    proposed: dict[tuple[str, str], str] = {}
    judged: set[tuple[str, str]] = set()
    for entry in batch:
        event = entry.event
        if isinstance(event.body, HandoffProposed):
            proposed[event.tenant_id, event.id] = _id(event.body.call_id)
        elif isinstance(event.body, HandoffAccepted | HandoffRejected):
            judged.add((event.tenant_id, _judged(event)))
    earlier = sorted(judged - proposed.keys())
    calls = {key: proposed[key] for key in judged & proposed.keys()}
    if earlier:
        rows = await conn.fetch(_TAKE_PROPOSALS, *columns(earlier, 2))
        calls |= {(row["tenant"], row["proposal"]): row["call"] for row in rows}
    still_open = [(*key, call) for key, call in proposed.items() if key not in judged]
    await conn.executemany(
        "INSERT INTO open_handoffs (tenant, proposal, call) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", still_open
    )
    return calls


def _id(call_id: str) -> str:
    return clean(call_id) or ""
