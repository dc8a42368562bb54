"""What an event looks like in Langfuse: one span, with ids, times and numbers that are the event's own.

A task is a trace. Its root span has the agents' runs, the supervisor's questions and the handoffs under it, a run or
question its LLM attempts. Every parent's id follows from ids in the event, so the order of arrival does not matter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from projections.langfuse.drafts import Draft, as_json, attempt_draft, question_draft, run_draft
from schemas.bodies import (
    AgentCancelled,
    AgentCompleted,
    AgentFailed,
    HandoffAccepted,
    HandoffProposed,
    HandoffRejected,
    LlmAttempted,
    SupervisorAnswered,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskForked,
    TaskSubmitted,
)
from schemas.content import Json, blob_of, resolve
from schemas.event import AgentEvent
from schemas.trace_ids import call_span_id, event_span_id, task_span_id, trace_id

EXPORTED = frozenset(
    body.type
    for body in (
        AgentCancelled,
        AgentCompleted,
        AgentFailed,
        HandoffAccepted,
        HandoffRejected,
        LlmAttempted,
        SupervisorAnswered,
        TaskCancelled,
        TaskCompleted,
        TaskFailed,
    )
)
"""The events that become spans."""
RELATED = (TaskSubmitted.type, TaskForked.type, HandoffProposed.type)
"""The events that spans of the same task take something from."""

MAX_CONTENT_CHARS = 1_000_000
_OBSERVATION = "langfuse.observation"
_INPUT, _OUTPUT = f"{_OBSERVATION}.input", f"{_OBSERVATION}.output"

_CALLS = AgentCompleted | AgentFailed | AgentCancelled | SupervisorAnswered
_TASKS = TaskCompleted | TaskFailed | TaskCancelled

Attribute = str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """A span, ready to be encoded. Ids are hex."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    start: datetime
    end: datetime
    attributes: dict[str, Attribute]

    def without_content(self) -> "Span | None":
        """The same span without input and output, or None if it has neither."""
        kept = {key: value for key, value in self.attributes.items() if key not in (_INPUT, _OUTPUT)}
        if len(kept) == len(self.attributes):
            return None
        kept[f"{_OBSERVATION}.metadata.content_left_out"] = '"the server refused it"'
        return replace(self, attributes=kept)


def span_id_of(event: AgentEvent) -> str:
    """The id of an exported event's span. A call and a task end once, so theirs are the call's and the task's."""
    body = event.body
    if isinstance(body, _CALLS):
        return call_span_id(event.tenant_id, body.call_id)
    if isinstance(body, _TASKS):
        return task_span_id(event.tenant_id, event.task_id)
    return event_span_id(event.tenant_id, event.id)


def shown_of(event: AgentEvent) -> list[str]:
    """The related events whose content the span of `event` shows: by task id a submission, by event id a proposal."""
    body = event.body
    if isinstance(body, _TASKS):
        return [event.task_id]
    return [_proposal_id(event, body)] if isinstance(body, HandoffAccepted | HandoffRejected) else []


def _proposal_id(event: AgentEvent, body: HandoffAccepted | HandoffRejected) -> str:
    return body.proposal_event_id or event.parent_event_id or ""


class SpanMaker:
    """Makes the spans of one tenant's events."""

    def __init__(self, related: Mapping[str, AgentEvent], blobs: Mapping[str, bytes], *, content: bool) -> None:
        """`related`: task id → `task.submitted`, event id → `handoff.proposed`; `blobs`: SHA-256 → JSON."""
        self._related = related
        self._blobs = blobs
        self._content = content

    def make(self, event: AgentEvent) -> Span:
        """The span of an event of one of the types `EXPORTED`."""
        draft = self._draft(event)
        submitted = self._submission(event)
        metadata = {
            "tenant_id": event.tenant_id,
            "session_id": event.session_id,
            "task_id": event.task_id,
            "agent_id": draft.agent_id,
            "event_id": event.id,
            "event_type": event.type,
            "parent_event_id": event.parent_event_id,
            "position": event.position,
            "priority": event.priority,
            "call_chain": list(event.call_chain),
        } | (draft.metadata or {})
        attributes: dict[str, Attribute | None] = {
            "user.id": event.tenant_id,
            "session.id": event.session_id,
            "langfuse.trace.name": "task" if submitted is None else submitted.task_type,
            "langfuse.trace.tags": (f"agent:{draft.agent_id}", f"tenant:{event.tenant_id}", *draft.tags),
            f"{_OBSERVATION}.type": draft.kind,
            f"{_OBSERVATION}.level": draft.level,
            f"{_OBSERVATION}.status_message": draft.status_message,
            _INPUT: self._text(draft.input),
            _OUTPUT: self._text(draft.output),
            **{f"{_OBSERVATION}.{key}": value for key, value in (draft.extra or {}).items()},
            # The server decodes metadata as JSON, strings too.
            **{f"{_OBSERVATION}.metadata.{k}": as_json(v) for k, v in metadata.items() if v is not None},
        }
        return Span(
            trace_id=trace_id(event.tenant_id, event.task_id),
            span_id=span_id_of(event),
            parent_id=draft.parent_id,
            name=draft.name,
            start=min(draft.start, draft.end),
            end=draft.end,
            attributes={key: value for key, value in attributes.items() if value is not None},
        )

    def _draft(self, event: AgentEvent) -> Draft:
        body = event.body
        match body:
            case LlmAttempted():
                return attempt_draft(event, body, {key: self._resolve(value) for key, value in body.params.items()})
            case AgentCompleted() | AgentFailed() | AgentCancelled():
                return run_draft(event, body)
            case SupervisorAnswered():
                return question_draft(event, body)
            case HandoffAccepted() | HandoffRejected():
                return self._handoff(event, body)
            case TaskCompleted() | TaskFailed() | TaskCancelled():
                return self._task(event, body)
        raise ValueError(f"{event.type} is not exported")

    def _submission(self, event: AgentEvent) -> TaskSubmitted | TaskForked | None:
        found = self._related.get(event.task_id)
        return found.body if found is not None and isinstance(found.body, TaskSubmitted | TaskForked) else None

    def _task(self, event: AgentEvent, body: _TASKS) -> Draft:
        submitted = self._submission(event)
        first = self._related.get(event.task_id)
        draft = Draft(
            kind="span",
            name="task" if submitted is None else submitted.task_type,
            agent_id=event.source_agent_id,
            start=event.at if first is None else first.at,
            end=event.at,
            input=None if submitted is None else submitted.text,
            metadata={"routed_by": body.routed_by, "decomposed": body.decomposed, "fork_of": body.fork_of},
        )
        if isinstance(body, TaskCompleted):
            draft.output = body.result
        elif isinstance(body, TaskFailed):
            draft.level, draft.status_message = "ERROR", body.reason
        else:
            draft.level, draft.status_message = "WARNING", f"cancelled: {body.reason}" if body.reason else "cancelled"
        return draft

    def _handoff(self, event: AgentEvent, body: HandoffAccepted | HandoffRejected) -> Draft:
        """A validation stands under the run of the agent that proposed the handoff."""
        proposal = self._related.get(_proposal_id(event, body))
        proposed = proposal.body if proposal is not None else None
        draft = Draft(
            kind="guardrail",
            name=event.type,
            agent_id=body.source_agent_id,
            start=event.at if proposal is None else proposal.at,
            end=event.at,
            parent_id=task_span_id(event.tenant_id, event.task_id),
            metadata={
                "source_agent": body.source_agent_id,
                "target_agent": body.target_agent_id,
                "payload_type": body.payload_type,
                "strictness": body.strictness,
                "verification": body.verification,
            },
        )
        assert draft.metadata is not None
        if isinstance(proposed, HandoffProposed):
            draft.parent_id = call_span_id(event.tenant_id, proposed.call_id)
            draft.input = proposed.payload.content
            draft.metadata["confidence"] = proposed.payload.confidence
        if isinstance(body, HandoffAccepted):
            unsure = [*body.warnings, *(["unverified"] if body.verification == "unverified" else [])]
            draft.level = "WARNING" if unsure else "DEFAULT"
            draft.status_message = "; ".join(unsure) or None
            draft.metadata |= {"result": "accepted", "checks": list(body.checks), "warnings": list(body.warnings)}
        else:
            draft.level, draft.status_message = "WARNING", "; ".join(body.reasons)
            draft.metadata |= {
                "result": "rejected",
                "reasons": list(body.reasons),
                "failed_check": body.failed_check,
                "returned_to": body.returned_to,
            }
        return draft

    def _resolve(self, value: Json) -> Json:
        if not self._content and blob_of(value) is not None:
            return "(left out)"
        try:
            return resolve(value, self._blobs)
        except KeyError as missing:
            return f"(blob {missing} is not in the archive)"

    def _text(self, value: Json) -> str | None:
        if value is None or not self._content:
            return None
        value = self._resolve(value)
        text = value if isinstance(value, str) else as_json(value)
        if len(text) > MAX_CONTENT_CHARS:
            return f"{text[:MAX_CONTENT_CHARS]}… (cut: {len(text):,} characters)"
        return text
