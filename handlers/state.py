"""What the supervisor knows of an open task: the fold of its events. Pure: `evolve(state, event) -> state`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from schemas.bodies import (
    AgentCompleted,
    AgentError,
    AgentFailed,
    EventBody,
    HandoffAccepted,
    HandoffProposed,
    HandoffRejected,
    RoutedBy,
    Subtask,
    SupervisorAnswered,
    SupervisorAsked,
    TaskDecomposed,
    TaskForked,
    TaskResumed,
    TaskRouted,
    TaskSubmitted,
)
from schemas.call import Call, CallKind, SubtaskResult, Undecided
from schemas.content import Json, blob_of, canonical_json
from schemas.event import FIELDS, AgentEvent, decode, decode_body, encode
from schemas.handoff import HandoffProposal
from schemas.money import DecimalText
from schemas.task import Priority

SUPERVISOR = "supervisor"


class OpenCall(BaseModel):
    """A call that was ordered and has not been answered, as the supervisor remembers it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent_id: str
    kind: CallKind = "agent"
    ordered_by: str
    call_chain: tuple[str, ...]
    subtask: int | None = None
    handoff: HandoffProposal | None = None
    repair_reasons: tuple[str, ...] = ()
    is_backup: bool = False
    proposal_event_id: str | None = None
    """The handoff that a check is about."""


class DoneSubtask(BaseModel):
    """A step that came to a result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent_id: str
    call_chain: tuple[str, ...]
    result: Json


class TaskState(BaseModel):
    """One open task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant_id: str
    session_id: str
    task_id: str
    priority: Priority
    task_type: str
    text: Json
    data: Json = None
    routed_by: RoutedBy | None = None
    calls: dict[str, OpenCall] = Field(default_factory=dict)
    proposals: dict[str, HandoffProposed] = Field(default_factory=dict)
    """Handoffs without a verdict, by the id of the event that proposed them. The sender's call is still open."""
    repaired: tuple[str, ...] = ()
    """Agents that were given their one chance to repair a handoff, as result keys."""
    subtasks: tuple[Subtask, ...] = ()
    done: dict[int, DoneSubtask] = Field(default_factory=dict)
    agent_results: dict[str, Json] = Field(default_factory=dict)
    errors: tuple[AgentError, ...] = ()
    models: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    budget_usd: DecimalText | None = None
    fork_of: str | None = None
    root_task_id: str | None = None
    lane: str | None = None
    """Another team's, which decides on this task (`handlers/lanes.py`)."""
    waiting: tuple[dict[str, str], ...] = ()
    """Facts that the lane's team is still to decide on, as entries of the log. The rest of the state is before them."""

    @property
    def decomposed(self) -> bool:
        """Was the task split into steps?"""
        return bool(self.subtasks)

    @property
    def started(self) -> dict[int, str]:
        """Steps that are being worked on: index → call."""
        return {call.subtask: call_id for call_id, call in self.calls.items() if call.subtask is not None}


def result_key(agent_id: str, subtask: int | None) -> str:
    """The name of an agent's result in `agent_results`: in a decomposed task, an agent may have several."""
    return agent_id if subtask is None else f"{agent_id}#{subtask}"


def evolve(state: TaskState | None, event: AgentEvent) -> TaskState | None:
    """The state after `event`. None before the task was submitted and after it ended."""
    body = event.body
    if isinstance(body, TaskSubmitted):
        return state or TaskState(
            tenant_id=event.tenant_id,
            session_id=event.session_id,
            task_id=event.task_id,
            priority=event.priority,
            task_type=body.task_type,
            text=body.text,
            data=body.data,
        )
    if isinstance(body, TaskForked):
        return state or (forked_state(event, body) if body.lane is None else _begun_in_lane(event, body))
    if state is None or body.terminal:
        return None
    if state.lane is not None:
        if left_to_lane(state, body):
            return state.model_copy(update={"waiting": (*state.waiting, _entry(event))})
        if isinstance(body, SupervisorAnswered) and body.question == "decide":
            return _decided_on(state) if body.call_id in state.calls else state
    change = _change(state, event)
    return state.model_copy(update=change) if change else state


def forked_state(event: AgentEvent, body: TaskForked) -> TaskState:
    """The state of a forked task when it begins; with a point, after the fact there."""
    before, point = taken_over(event, body)
    return before if point is None else before.model_copy(update=_change(before, point))


def taken_over(event: AgentEvent, body: TaskForked) -> tuple[TaskState, AgentEvent | None]:
    """(the state that a forked task begins with, the fact that is decided anew or None). The fact has the id of the
    forking, so that all that follows from it is the fork's own."""
    own = {
        "tenant_id": event.tenant_id,
        "session_id": event.session_id,
        "task_id": event.task_id,
        "priority": event.priority,
        "task_type": body.task_type,
        "text": body.text,
        "data": body.data,
        "models": body.models,
        "budget_usd": body.budget_usd,
        "fork_of": body.origin_task_id,
        "root_task_id": body.root_task_id,
    }
    before = TaskState.model_validate((body.state or {}) | own)
    if body.point is None:
        return before, None
    fact = decode_body(body.point["type"], body.point["v"], canonical_json(body.point["body"]))
    return before, replace(event, body=fact)


def left_to_lane(state: TaskState, body: EventBody) -> bool:
    """Is it a fact that the team of the task's lane is to decide on?"""
    match body:
        case AgentCompleted(handed_over=False) | AgentFailed() | HandoffProposed():
            return state.lane is not None and body.call_id in state.calls
        case SupervisorAnswered():
            return state.lane is not None and body.question != "decide" and body.call_id in state.calls
    return False


def first_waiting(state: TaskState) -> tuple[TaskState | None, AgentEvent]:
    """(the state before it, the fact) that a lane's team is to decide on next, both as they would be with no lane."""
    event = waiting_fact(state.tenant_id, state.waiting[0])
    if isinstance(event.body, TaskForked):
        return None, event
    calls = {call_id: call for call_id, call in state.calls.items() if call.kind != "decide"}
    return state.model_copy(update={"calls": calls, "lane": None, "waiting": ()}), event


def waiting_fact(tenant_id: str, entry: Mapping[str, str]) -> AgentEvent:
    """The fact that a lane's team is to decide on, as it would be with no lane."""
    event = decode(tenant_id, "0-0", entry)
    if isinstance(event.body, TaskForked):
        return replace(event, body=event.body.model_copy(update={"lane": None}))
    return event


def _begun_in_lane(event: AgentEvent, body: TaskForked) -> TaskState:
    before, _ = taken_over(event, body)
    return before.model_copy(update={"lane": body.lane, "waiting": (_entry(event),)})


def _decided_on(state: TaskState) -> TaskState:
    """The first waiting fact takes its effect; the decisions on it follow in the log."""
    before, event = first_waiting(state)
    after = evolve(before, event)
    assert after is not None, "what waits ends no task"
    return after.model_copy(update={"lane": state.lane, "waiting": state.waiting[1:]})


def _entry(event: AgentEvent) -> dict[str, str]:
    values = (value.decode() if isinstance(value, bytes) else value for value in encode(event, {}))
    return dict(zip(FIELDS, values, strict=True))


def contents_for(state: TaskState | None, event: AgentEvent) -> list[str]:
    """The hashes of large contents that a decision on `event` may look at: the task's own, and a model's answer."""
    values = looked_at(event.body)
    if state is not None and (values or state.decomposed):
        values += [state.text, state.data]
    return [sha for value in values if (sha := blob_of(value))]


def looked_at(body: EventBody) -> list[Json]:
    """The contents of a fact that a decision on it may look into."""
    match body:
        case TaskSubmitted():
            return [body.text, body.data]
        case TaskForked():
            answer = [] if body.point is None else [body.point["body"].get("answer")]
            return [body.text, body.data, *answer]
        case SupervisorAnswered():
            return [body.answer]
    return []


def _change(state: TaskState, event: AgentEvent) -> dict[str, object]:
    match event.body:
        case TaskRouted() as body:
            return _routed(state, event, body)
        case TaskDecomposed() as body:
            return {"subtasks": body.subtasks}
        case TaskResumed() as body:
            again = {i: state.calls[i].model_copy(update={"ordered_by": event.id}) for i in body.call_ids}
            return {"calls": state.calls | again}
        case SupervisorAsked() as body:
            call = OpenCall(
                agent_id=SUPERVISOR,
                kind=body.question,
                ordered_by=event.id,
                call_chain=event.call_chain,
                subtask=body.subtask,
                proposal_event_id=body.about_event_id if body.question == "check" else None,
            )
            return {"calls": state.calls | {body.call_id: call}}
        case SupervisorAnswered() as body if body.call_id in state.calls:
            return {"calls": without(state.calls, body.call_id)}
        case AgentCompleted(handed_over=False) as body if body.call_id in state.calls:
            return _completed(state, body)
        case AgentFailed() as body if body.call_id in state.calls:
            return {"errors": (*state.errors, agent_error(body, state.calls[body.call_id]))}
        case HandoffProposed() as body if body.call_id in state.calls:
            return {"proposals": state.proposals | {event.id: body}}
        case HandoffAccepted() | HandoffRejected():
            return _judged(state, event)
    return {}


def _routed(state: TaskState, event: AgentEvent, body: TaskRouted) -> dict[str, object]:
    replaced = state.calls.get(body.replaces_call_id or "")
    call = OpenCall(
        agent_id=body.agent_id,
        ordered_by=event.id,
        call_chain=event.call_chain,
        subtask=body.subtask,
        handoff=replaced.handoff if replaced else None,
        is_backup=replaced is not None,
    )
    return {"calls": without(state.calls, body.replaces_call_id) | {body.call_id: call}, "routed_by": body.routed_by}


def _completed(state: TaskState, body: AgentCompleted) -> dict[str, object]:
    call = state.calls[body.call_id]
    change: dict[str, object] = {
        "calls": without(state.calls, body.call_id),
        "agent_results": state.agent_results | {result_key(body.agent_id, call.subtask): body.result},
    }
    if call.subtask is not None:
        done = DoneSubtask(agent_id=body.agent_id, call_chain=call.call_chain, result=body.result)
        change["done"] = state.done | {call.subtask: done}
    return change


def _judged(state: TaskState, event: AgentEvent) -> dict[str, object]:
    body = event.body
    assert isinstance(body, HandoffAccepted | HandoffRejected)
    proposal_id = body.proposal_event_id or event.parent_event_id or ""
    proposed = state.proposals[proposal_id]
    sender = state.calls[proposed.call_id]
    change: dict[str, object] = {"proposals": without(state.proposals, proposal_id)}
    if isinstance(body, HandoffAccepted):
        call = OpenCall(
            agent_id=body.target_agent_id,
            ordered_by=event.id,
            call_chain=event.call_chain,
            subtask=sender.subtask,
            handoff=proposed.payload,
        )
        key = result_key(sender.agent_id, sender.subtask)
        return change | {
            "calls": without(state.calls, proposed.call_id) | {body.call_id: call},
            "agent_results": state.agent_results | {key: proposed.payload.content},
        }
    if body.call_id is None:
        return change | {"errors": (*state.errors, rejection_error(sender, body.reasons))}
    repair = sender.model_copy(update={"repair_reasons": body.reasons, "ordered_by": event.id})
    return change | {
        "calls": without(state.calls, proposed.call_id) | {body.call_id: repair},
        "repaired": (*state.repaired, result_key(sender.agent_id, sender.subtask)),
    }


def call_for(state: TaskState, call_id: str) -> Call:
    """The call `call_id` of a task, as its worker gets it."""
    call = state.calls[call_id]
    handoff, received = call.handoff, None
    given: tuple[str, ...] = ()
    if call.proposal_event_id is not None:
        proposed = state.proposals[call.proposal_event_id]
        handoff, given, received = proposed.payload, proposed.given, state.calls[proposed.call_id].handoff
    step = None if call.subtask is None else state.subtasks[call.subtask]
    return Call(
        call_id=call_id,
        kind=call.kind,
        ordered_by=call.ordered_by,
        agent_id=call.agent_id,
        tenant_id=state.tenant_id,
        session_id=state.session_id,
        task_id=state.task_id,
        priority=state.priority,
        call_chain=call.call_chain,
        task_type=state.task_type,
        text=state.text if step is None else step.description,
        data=state.data,
        subtask=call.subtask,
        whole_text=None if step is None else state.text,
        results=_results(state, call, step),
        handoff=handoff,
        received=received,
        given=given,
        repair_reasons=call.repair_reasons,
        models=state.models,
        budget_usd=state.budget_usd,
        undecided=_undecided(state) if call.kind == "decide" else None,
        root_task_id=state.root_task_id,
    )


def _undecided(state: TaskState) -> Undecided:
    before, _ = first_waiting(state)
    known = None if before is None else before.model_dump(mode="json", exclude_defaults=True)
    return Undecided(state=known, entry=state.waiting[0])


def _results(state: TaskState, call: OpenCall, step: Subtask | None) -> tuple[SubtaskResult, ...]:
    wanted = sorted(state.done) if call.kind == "synthesize" else sorted(set(step.depends_on)) if step else []
    return tuple(
        SubtaskResult(
            subtask=index,
            description=state.subtasks[index].description,
            agent_id=state.done[index].agent_id,
            result=state.done[index].result,
        )
        for index in wanted
    )


def agent_error(body: AgentFailed, call: OpenCall) -> AgentError:
    """An agent's failure, as it stands in the task's errors."""
    return AgentError(agent_id=body.agent_id, error=f"{body.error_class}: {body.error}", subtask=call.subtask)


def rejection_error(sender: OpenCall, reasons: tuple[str, ...]) -> AgentError:
    """A rejected handoff, as it stands in the task's errors."""
    return AgentError(agent_id=sender.agent_id, error=f"handoff rejected: {'; '.join(reasons)}", subtask=sender.subtask)


def without(items: Mapping[str, Any], key: str | None) -> dict[str, Any]:
    """`items` less one key."""
    return {k: v for k, v in items.items() if k != key}
