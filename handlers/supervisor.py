"""The supervisor: a pure decider. `decide(state, event) -> decisions`, `evolve(state, event) -> state`.

No I/O, no clock, no randomness: the same events always give the same decisions, which is what makes a recorded log
provable (I5). A task goes: routed → (handed over → checked → called)* → completed, or failed → backup → failed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from handlers.strictness import StrictnessConfig
from handlers.team import Team
from schemas.bodies import (
    AgentCompleted,
    AgentError,
    AgentFailed,
    EventBody,
    HandoffAccepted,
    HandoffProposed,
    HandoffRejected,
    RoutedBy,
    TaskCompleted,
    TaskFailed,
    TaskRouted,
    TaskSubmitted,
)
from schemas.call import Call
from schemas.content import Json, resolve
from schemas.event import AgentEvent
from schemas.handoff import LOW_CONFIDENCE, HandoffProposal, structural_problems
from schemas.ids import derived_id
from schemas.task import Priority, Task

SUPERVISOR = "supervisor"
USER = "user"
WANTED = (TaskSubmitted.type, AgentCompleted.type, AgentFailed.type, HandoffProposed.type)
"""The event types that the supervisor decides on. All others are read past."""


class OpenCall(BaseModel):
    """A call that was ordered and has not been answered, as the supervisor remembers it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent_id: str
    ordered_by: str
    call_chain: tuple[str, ...]
    handoff: HandoffProposal | None = None
    repair_reasons: tuple[str, ...] = ()
    is_backup: bool = False


class TaskState(BaseModel):
    """What the supervisor knows of one open task: the fold of its events."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant_id: str
    session_id: str
    task_id: str
    priority: Priority
    task_type: str
    text: Json
    data: Json = None
    routed_by: RoutedBy | None = None
    calls: dict[str, OpenCall] = {}
    proposals: dict[str, HandoffProposed] = {}
    """Handoffs without a verdict, by the id of the event that proposed them. Their call is still in `calls`."""
    repaired: tuple[str, ...] = ()
    """Agents that were given their one chance to repair a handoff."""
    agent_results: dict[str, Json] = {}
    errors: tuple[AgentError, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """An event to be appended, with the chain of the call that it orders (or of the task's end)."""

    body: EventBody
    call_chain: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """What the supervisor goes by: the team, and how closely handoffs are checked."""

    team: Team
    strictness: StrictnessConfig


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
    if state is None or body.terminal:
        return None
    change = _change(state, event)
    return state.model_copy(update=change) if change else state


def _change(state: TaskState, event: AgentEvent) -> dict[str, object]:
    match event.body:
        case TaskRouted() as body:
            replaced = state.calls.get(body.replaces_call_id or "")
            call = OpenCall(
                agent_id=body.agent_id,
                ordered_by=event.id,
                call_chain=event.call_chain,
                handoff=replaced.handoff if replaced else None,
                is_backup=replaced is not None,
            )
            calls = _without(state.calls, body.replaces_call_id) | {body.call_id: call}
            return {"calls": calls, "routed_by": body.routed_by}
        case AgentCompleted(handed_over=False) as body if body.call_id in state.calls:
            return {
                "calls": _without(state.calls, body.call_id),
                "agent_results": state.agent_results | {body.agent_id: body.result},
            }
        case AgentFailed() as body if body.call_id in state.calls:
            return {"errors": (*state.errors, _agent_error(body))}
        case HandoffProposed() as body if body.call_id in state.calls:
            return {"proposals": state.proposals | {event.id: body}}
        case HandoffAccepted() as body:
            proposed = state.proposals[event.parent_event_id or ""]
            call = OpenCall(
                agent_id=body.target_agent_id,
                ordered_by=event.id,
                call_chain=event.call_chain,
                handoff=proposed.payload,
            )
            return {
                "proposals": _without(state.proposals, event.parent_event_id),
                "calls": _without(state.calls, proposed.call_id) | {body.call_id: call},
                "agent_results": state.agent_results | {body.source_agent_id: proposed.payload.content},
            }
        case HandoffRejected() as body:
            proposed = state.proposals[event.parent_event_id or ""]
            sender = state.calls[proposed.call_id]
            change: dict[str, object] = {"proposals": _without(state.proposals, event.parent_event_id)}
            if body.call_id is None:
                return change | {"errors": (*state.errors, _rejection_error(sender.agent_id, body.reasons))}
            repair = sender.model_copy(update={"repair_reasons": body.reasons, "ordered_by": event.id})
            return change | {
                "calls": _without(state.calls, proposed.call_id) | {body.call_id: repair},
                "repaired": (*state.repaired, sender.agent_id),
            }
    return {}


def decide(
    state: TaskState | None, event: AgentEvent, rules: Rules, blobs: Mapping[str, bytes] | None = None
) -> list[Decision]:
    """What the supervisor does about `event`, given the state before it.

    `blobs` has the large contents that a submitted task refers to, for the routing rules to read. Events of tasks or
    calls that are not open (any more) lead to nothing.
    """
    body = event.body
    if isinstance(body, TaskSubmitted):
        return [_route(event, body, rules.team, blobs or {})] if state is None else []
    if state is None:
        return []
    match body:
        case AgentCompleted(handed_over=False) if body.call_id in state.calls:
            results = state.agent_results | {body.agent_id: body.result}
            done = TaskCompleted(result=body.result, routed_by=state.routed_by or "rules", agent_results=results)
            return [Decision(done, state.calls[body.call_id].call_chain)]
        case AgentFailed() if body.call_id in state.calls:
            return [_replace(state, body.call_id, (*state.errors, _agent_error(body)), event, rules.team)]
        case HandoffProposed() if body.call_id in state.calls:
            return _judge(state, event, body, rules)
    return []


def _route(event: AgentEvent, body: TaskSubmitted, team: Team, blobs: Mapping[str, bytes]) -> Decision:
    task = Task(
        tenant_id=event.tenant_id,
        session_id=event.session_id,
        task_id=event.task_id,
        type=body.task_type,
        text=resolve(body.text, blobs),
        data=resolve(body.data, blobs) or {},
        priority=event.priority,
    )
    if len(team.registry) == 0:
        return _fail("no agents are registered: start the workers with --agents module:object")
    chosen = team.router.match(task)
    if chosen is None:
        return _fail("no routing rule names an agent for this task: add a rule that matches it")
    if chosen.agent_id not in team.registry:
        return _fail(f"{chosen.reasoning} names agent {chosen.agent_id!r}, which is not registered")
    routed = TaskRouted(call_id=derived_id(event.id, "call"), **chosen.model_dump())
    return Decision(routed, (USER, SUPERVISOR, chosen.agent_id))


def _fail(reason: str) -> Decision:
    return Decision(TaskFailed(reason=reason), (USER, SUPERVISOR))


def _replace(state: TaskState, call_id: str, errors: tuple[AgentError, ...], event: AgentEvent, team: Team) -> Decision:
    """A call came to nothing: its agent's backup gets it, once; else the task fails with every reason (row A5)."""
    call = state.calls[call_id]
    backup = None if call.is_backup or call.agent_id not in team.registry else team.registry.get_backup(call.agent_id)
    if backup is not None and backup.agent_id not in call.call_chain:
        routed = TaskRouted(
            agent_id=backup.agent_id,
            call_id=derived_id(event.id, "call"),
            routed_by="backup",
            confidence=1.0,
            reasoning=f"{call.agent_id} failed: {errors[-1].error}",
            replaces_call_id=call_id,
        )
        return Decision(routed, (*call.call_chain[:-1], backup.agent_id))
    reason = "; ".join(f"{e.agent_id}: {e.error}" for e in errors)
    failed = TaskFailed(
        reason=reason, errors=errors, routed_by=state.routed_by, agent_results=dict(state.agent_results)
    )
    return Decision(failed, call.call_chain)


def _judge(state: TaskState, event: AgentEvent, body: HandoffProposed, rules: Rules) -> list[Decision]:
    """The structural check of a handoff (row C3): accepted, back to the sender once, then to the supervisor."""
    call, payload = state.calls[body.call_id], body.payload
    strictness = rules.strictness.strictness_of(payload.payload_type)
    reasons = handoff_problems(call, payload, rules.team)
    verdict = {
        "source_agent_id": call.agent_id,
        "target_agent_id": payload.target_agent_id,
        "payload_type": payload.payload_type,
        "strictness": strictness.value,
    }
    if not reasons:
        low = payload.confidence < LOW_CONFIDENCE
        accepted = HandoffAccepted(
            **verdict,
            checks=("structural",),
            warnings=(f"confidence {payload.confidence} is under {LOW_CONFIDENCE}",) if low else (),
            call_id=derived_id(event.id, "call"),
        )
        return [Decision(accepted, (*call.call_chain, payload.target_agent_id))]
    if call.agent_id not in state.repaired:
        call_id = derived_id(event.id, "call")
        rejected = HandoffRejected(**verdict, reasons=tuple(reasons), returned_to="sender", call_id=call_id)
        return [Decision(rejected, call.call_chain)]
    rejected = HandoffRejected(**verdict, reasons=tuple(reasons), returned_to="supervisor")
    errors = (*state.errors, _rejection_error(call.agent_id, rejected.reasons))
    return [Decision(rejected, call.call_chain), _replace(state, body.call_id, errors, event, rules.team)]


def handoff_problems(call: OpenCall, payload: HandoffProposal, team: Team) -> list[str]:
    """Every reason against the form of a handoff: its own rules, and that it says what the log knows."""
    reasons = structural_problems(payload)
    if payload.source_agent_id != call.agent_id:
        reasons.append(f"source agent {payload.source_agent_id!r} is not {call.agent_id!r}, which proposed it")
    if payload.call_chain != call.call_chain:
        reasons.append(f"call chain {list(payload.call_chain)} is not the recorded one, {list(call.call_chain)}")
    if payload.target_agent_id not in team.registry:
        known = ", ".join(a.agent_id for a in team.registry)
        reasons.append(f"target agent {payload.target_agent_id!r} is not registered; there are: {known}")
    return reasons


def call_for(state: TaskState, call_id: str) -> Call:
    """The call `call_id` of a task, as its worker gets it."""
    open_call = state.calls[call_id]
    return Call(
        call_id=call_id,
        ordered_by=open_call.ordered_by,
        agent_id=open_call.agent_id,
        tenant_id=state.tenant_id,
        session_id=state.session_id,
        task_id=state.task_id,
        priority=state.priority,
        call_chain=open_call.call_chain,
        task_type=state.task_type,
        text=state.text,
        data=state.data,
        handoff=open_call.handoff,
        repair_reasons=open_call.repair_reasons,
    )


def _agent_error(body: AgentFailed) -> AgentError:
    return AgentError(agent_id=body.agent_id, error=f"{body.error_class}: {body.error}")


def _rejection_error(agent_id: str, reasons: tuple[str, ...]) -> AgentError:
    return AgentError(agent_id=agent_id, error=f"handoff rejected: {'; '.join(reasons)}")


def _without(items: Mapping[str, Any], key: str | None) -> dict[str, Any]:
    return {k: v for k, v in items.items() if k != key}
