"""What happened, in a sentence a person would say. One function per event type; texts are cut, never reworded."""

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from schemas.bodies import (
    AgentCancelled,
    AgentCompleted,
    AgentFailed,
    AgentStarted,
    BudgetExceeded,
    ContextCompiled,
    HandoffAccepted,
    HandoffProposed,
    HandoffRejected,
    LlmAttempted,
    MemoryStored,
    StepRecorded,
    SupervisorAnswered,
    SupervisorAsked,
    TaskCancelled,
    TaskCancelRequested,
    TaskCompleted,
    TaskDecomposed,
    TaskFailed,
    TaskForked,
    TaskResumed,
    TaskRouted,
    TaskSubmitted,
)
from schemas.event import AgentEvent
from schemas.plurals import counted

QUOTE_CHARS = 100
_QUESTIONS = {
    "route": "which agent should get it",
    "decompose": "how to split it into steps",
    "check": "whether the handoff is grounded in what its sender was given",
    "synthesize": "to put the results together",
}


def tell(event: AgentEvent, earlier: Sequence[AgentEvent]) -> str:
    """The sentence for `event`; `earlier` are the task's events before it."""
    sentence: Callable[[Any, AgentEvent, Sequence[AgentEvent]], str] | None = _TELLERS.get(type(event.body))
    return f"{event.type} by {event.source_agent_id}" if sentence is None else sentence(event.body, event, earlier)


def quote(value: Any) -> str:
    """A value as a short quotation."""
    if isinstance(value, dict) and "$blob" in value:
        return f"(a text of {value.get('bytes', 0):,} bytes)"
    text = " ".join((value if isinstance(value, str) else orjson.dumps(value).decode()).split())
    return f"“{text if len(text) <= QUOTE_CHARS else text[: QUOTE_CHARS - 1] + '…'}”"


def _step(subtask: int | None) -> str:
    return "" if subtask is None else f"step {subtask}, "


def _submitted(body: TaskSubmitted, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    return f"A task of type {body.task_type} came in: {quote(body.text)}"


def _forked(body: TaskForked, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    where = "from its start" if body.point is None else f"from its {body.point['type']} {body.origin_event_id}"
    models = "".join(f", {tier} by {' or '.join(names)}" for tier, names in body.models.items())
    budget = f", for ${body.budget_usd} at most" if body.budget_usd else ""
    team = f" by {body.agents}" if body.agents else ""
    return f"Task {body.origin_task_id} was run again{team} {where}{models}{budget}: {quote(body.text)}"


def _resumed(body: TaskResumed, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    return f"The supervisor took up {len(body.call_ids)} more that were being worked on at that point"


def _routed(body: TaskRouted, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    what = "it" if body.subtask is None else f"step {body.subtask}"
    if body.routed_by == "backup":
        return f"The supervisor gave {what} to the backup {body.agent_id}, because {body.reasoning}"
    if body.routed_by == "rules":
        return f"The supervisor gave {what} to {body.agent_id} by {body.reasoning}"
    why = body.reasoning or "no reason given"
    return f"The supervisor gave {what} to {body.agent_id} on a model's advice (confidence {body.confidence:g}): {why}"


def _decomposed(body: TaskDecomposed, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    steps = [
        f"{n} {quote(s.description)}" + (f" after {', '.join(map(str, s.depends_on))}" if s.depends_on else "")
        for n, s in enumerate(body.subtasks)
    ]
    why = f" ({body.reasoning})" if body.reasoning else ""
    return f"The supervisor split it into {counted(len(steps), 'step')}{why}: {'; '.join(steps)}"


def _asked(body: SupervisorAsked, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    if body.question == "decide":
        return "The supervisor left the decision to the team that the task was forked to"
    return f"The supervisor asked a model {_QUESTIONS[body.question]}" + (
        "" if body.subtask is None else f" (step {body.subtask})"
    )


def _answered(body: SupervisorAnswered, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    if body.error is not None:
        return f"There was no answer: {body.error}"
    answer = body.answer
    if body.question == "decide":
        return "That team decided"
    if body.question == "check" and isinstance(answer, dict):
        reasons = "; ".join(map(str, answer.get("reasons") or ()))
        return "It is grounded" if answer.get("grounded") else f"It is not grounded: {reasons}"
    return f"The answer was {quote(answer)}"


def _started(body: AgentStarted, event: AgentEvent, earlier: Sequence[AgentEvent]) -> str:
    if body.delivery == 1:
        return f"{body.agent_id} began to work, on {body.worker}"
    before = [e.body.worker for e in earlier if isinstance(e.body, AgentStarted) and e.body.call_id == body.call_id]
    lost = f"The worker {before[-1]} was lost" if before else "A worker was lost"
    return f"{lost}; {body.worker} took over ({body.agent_id}, delivery {body.delivery})"


def _completed(body: AgentCompleted, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    took = _took(body.duration_us)
    if body.handed_over:
        return f"{body.agent_id} was done after {took}, and wants to hand over"
    return f"{body.agent_id} was done after {took}: {quote(body.result)}"


def _failed(body: AgentFailed, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    return f"{body.agent_id} failed after {_took(body.duration_us)}: {body.error_class}: {body.error}"


def _stopped(body: AgentCancelled, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    return f"{body.agent_id} was stopped after {_took(body.duration_us)}, because the task had ended"


def _attempted(body: LlmAttempted, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    who = f"{body.agent_id} asked {body.answered_model or body.requested_model}"
    again = f" again (attempt {body.attempt})" if body.attempt > 1 else ""
    if body.status == "ok":
        tokens = f", {counted(body.tokens.total, 'token')}" if body.tokens else ""
        cost = f"${body.cost_usd}" if body.cost_usd is not None else f"price {body.cost_status}"
        return f"{who}{again}: answered in {_took(body.duration_us)}{tokens}, {cost}"
    if body.status == "unknown":
        return f"{who}{again}: what became of the request is not known, it may have been billed ({body.error_class})"
    if body.status == "cancelled":
        return f"{who}{again}: broken off after {_took(body.duration_us)}, it may have been billed"
    status = f"HTTP {body.http_status}, " if body.http_status else ""
    return f"{who}{again}: refused ({status}{body.error_class}), nothing billed"


def _exceeded(body: BudgetExceeded, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    if body.because == "unpriced":
        return f"{body.agent_id} was not let ask {body.requested_model}: its price is not known, and there is a budget"
    return f"{body.agent_id} was not let ask {body.requested_model}: ${body.spent_usd} of ${body.budget_usd} are spent"


def _recorded(body: StepRecorded, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    return f"{body.agent_id} did {body.name} in {_took(body.duration_us)}: {quote(body.result)}"


def _compiled(body: ContextCompiled, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    parts = ", ".join(f"{name} {count:,}" for name, count in body.token_usage.items())
    return f"{body.agent_id}'s context was put together within {body.budget_tokens:,} tokens ({parts})"


def _stored(body: MemoryStored, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    return f"{body.agent_id} will remember {quote(body.text)}"


def _proposed(body: HandoffProposed, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    payload = body.payload
    why = f", because {payload.reason}" if payload.reason else ""
    what = quote(payload.content)
    return (
        f"{payload.source_agent_id} proposed to hand a {payload.payload_type} to {payload.target_agent_id} "
        f"(confidence {payload.confidence:g}){why}: {what}"
    )


def _accepted(body: HandoffAccepted, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    how = {
        "verified": "well-formed and grounded",
        "unverified": "well-formed, but UNVERIFIED",
        "not_required": "well-formed",
    }[body.verification]
    notes = f" ({'; '.join(body.warnings)})" if body.warnings else ""
    return f"The handoff to {body.target_agent_id} was accepted: {how}{notes}"


def _rejected(body: HandoffRejected, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    to = f"back to {body.source_agent_id} to repair" if body.returned_to == "sender" else "up to the supervisor"
    return f"The handoff to {body.target_agent_id} was REJECTED and went {to}: {'; '.join(body.reasons)}"


def _done(body: TaskCompleted, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    return f"The task was completed: {quote(body.result)}"


def _given_up(body: TaskFailed, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    return f"The task FAILED: {body.reason}"


def _cancel_requested(body: TaskCancelRequested, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    return "Somebody asked for the task to be cancelled" + (f": {body.reason}" if body.reason else "")


def _cancelled(body: TaskCancelled, event: AgentEvent, _: Sequence[AgentEvent]) -> str:
    return "The task was cancelled" + (f": {body.reason}" if body.reason else "")


def _took(duration_us: int) -> str:
    return f"{duration_us / 1_000_000:.2f} s" if duration_us >= 1_000_000 else f"{duration_us / 1000:.0f} ms"


_TELLERS: dict[type, Callable[[Any, AgentEvent, Sequence[AgentEvent]], str]] = {
    TaskSubmitted: _submitted,
    TaskForked: _forked,
    TaskResumed: _resumed,
    TaskRouted: _routed,
    TaskDecomposed: _decomposed,
    SupervisorAsked: _asked,
    SupervisorAnswered: _answered,
    AgentStarted: _started,
    AgentCompleted: _completed,
    AgentFailed: _failed,
    AgentCancelled: _stopped,
    LlmAttempted: _attempted,
    BudgetExceeded: _exceeded,
    StepRecorded: _recorded,
    ContextCompiled: _compiled,
    MemoryStored: _stored,
    HandoffProposed: _proposed,
    HandoffAccepted: _accepted,
    HandoffRejected: _rejected,
    TaskCompleted: _done,
    TaskFailed: _given_up,
    TaskCancelRequested: _cancel_requested,
    TaskCancelled: _cancelled,
}
