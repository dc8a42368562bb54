"""How things stood at a moment: the task's folded state, its session, what agents were given, and the ledger."""

import re
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from handlers.supervisor import TaskState, evolve
from headwater.replay.recording import Fields, Recording, resolved
from projections.history import Spent
from projections.projection import Position, format_position, parse_position
from schemas.bodies import ContextCompiled, LlmAttempted, SessionCleared, TaskCompleted, TaskSubmitted
from schemas.errors import InvalidInputError, NotFoundError, UnreadableEventError
from schemas.event import AgentEvent, decode
from schemas.money import plain

LAST_SEQ = 2**63 - 1
_SAID = frozenset({SessionCleared.type, TaskSubmitted.type, TaskCompleted.type})
"""What makes a session's messages."""
_BESIDE = {"tenant_id", "session_id", "task_id"}
"""What of a state stands beside it."""
_POSITION = re.compile(r"\d{1,19}-\d{1,19}")


async def events_of(
    recording: Recording,
    tenant_id: str,
    *,
    task_id: str | None = None,
    session_id: str | None = None,
    types: Collection[str] | None = None,
) -> AsyncIterator[AgentEvent]:
    """The readable events of a tenant, a task or a session, in log order."""
    async for position, fields in recording.entries(tenant_id, task_id=task_id, session_id=session_id, types=types):
        event = read(tenant_id, position, fields)
        if event is not None:
            yield event


def read(tenant_id: str, position: str, fields: Fields) -> AgentEvent | None:
    """The event in an entry, or None if it cannot be read: `headwater events` names those."""
    try:
        return decode(tenant_id, position, fields)
    except UnreadableEventError:
        return None


async def task_events(recording: Recording, tenant_id: str, task_id: str) -> list[AgentEvent]:
    """All events of one task. Raises `NotFoundError` if there are none."""
    events = [event async for event in events_of(recording, tenant_id, task_id=task_id)]
    if not events:
        raise NotFoundError(f"tenant {tenant_id!r} has no task {task_id!r} in this log")
    return events


def position_of(text: str, events: list[AgentEvent]) -> Position:
    """The position that `text` means: a position, the id of one of `events`, or a time (ISO 8601, UTC if it has no
    zone).

    Raises:
        InvalidInputError: it is none of them.
    """
    if _POSITION.fullmatch(text):
        return parse_position(text)
    for event in events:
        if event.id == text and event.position is not None:
            return parse_position(event.position)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInputError(
            f"{text!r} is no position (such as 1732450000000-0), no event of this task, and no ISO 8601 time"
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000), LAST_SEQ


def place(event: AgentEvent) -> Position:
    """Where an event stands."""
    return parse_position(event.position or "0-0")


def state_at(events: list[AgentEvent], at: Position) -> TaskState | None:
    """The supervisor's state of a task at a position; None before it was submitted and after it ended."""
    state: TaskState | None = None
    for event in events:
        if place(event) <= at:
            state = evolve(state, event)
    return state


@dataclass(slots=True)
class Ledger:
    """What a tenant had spent up to a position."""

    by_agent: dict[str, Spent] = field(default_factory=dict)

    def add(self, body: LlmAttempted) -> None:
        """Count one attempt."""
        before = self.by_agent.get(body.agent_id, Spent(0, Decimal(0)))
        self.by_agent[body.agent_id] = Spent(before.attempts + 1, before.usd + Decimal(body.cost_usd or 0))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "total_usd": plain(sum((spent.usd for spent in self.by_agent.values()), Decimal(0))),
            "attempts": sum(spent.attempts for spent in self.by_agent.values()),
            "by_agent": {agent: plain(spent.usd) for agent, spent in sorted(self.by_agent.items())},
        }


async def ledger_at(recording: Recording, tenant_id: str, at: Position) -> Ledger:
    """The tenant's ledger as it stood at a position: what is known of it already, and then the log."""
    known, reached = await recording.spent_to(tenant_id, at)
    ledger = Ledger(known)
    if reached >= at:
        return ledger
    async for position, fields in recording.entries(tenant_id, types={LlmAttempted.type}, after=reached):
        if parse_position(position) > at:
            break
        event = read(tenant_id, position, fields)
        if event is not None and isinstance(event.body, LlmAttempted):
            ledger.add(event.body)
    return ledger


async def moment(recording: Recording, tenant_id: str, events: list[AgentEvent], at: Position) -> dict[str, Any]:
    """A task and what surrounds it at a position, as JSON: `status`, `state`, `messages`, `contexts`, `ledger`."""
    seen = [event for event in events if place(event) <= at]
    state = state_at(events, at)
    ended = next((event for event in seen if event.body.terminal), None)
    status = "not submitted" if not seen else ended.type.removeprefix("task.") if ended else "running"
    return {
        "tenant": tenant_id,
        "session": events[0].session_id,
        "task": events[0].task_id,
        "status": status,
        "at": format_position(min(at, place(seen[-1])) if seen else at),
        "state": None if state is None else state.model_dump(mode="json", exclude_defaults=True, exclude=_BESIDE),
        "messages": await messages_at(recording, tenant_id, events[0].session_id, at),
        "contexts": await contexts_at(recording, tenant_id, seen),
        "ledger": (await ledger_at(recording, tenant_id, at)).as_dict(),
    }


async def messages_at(recording: Recording, tenant_id: str, session_id: str, at: Position) -> list[dict[str, Any]]:
    """A session's messages at a position: what users wrote and what was answered since it was last cleared."""
    messages: list[dict[str, Any]] = []
    async for event in events_of(recording, tenant_id, session_id=session_id, types=_SAID):
        if place(event) > at:
            break
        match event.body:
            case SessionCleared():
                messages = []
            case TaskSubmitted() as body:
                messages.append({"role": "user", "task": event.task_id, "content": body.text})
            case TaskCompleted(fork_of=None) as body:
                messages.append({"role": "assistant", "task": event.task_id, "content": body.result})
    return [m | {"content": await resolved(recording, tenant_id, m["content"])} for m in messages]


async def contexts_at(recording: Recording, tenant_id: str, seen: list[AgentEvent]) -> list[dict[str, Any]]:
    """What each call of an agent was given last: its compiled context, or the messages of its LLM request."""
    last: dict[str, AgentEvent] = {}
    for event in seen:
        if isinstance(event.body, ContextCompiled | LlmAttempted):
            last[event.body.call_id] = event
    found = []
    for call_id, event in last.items():
        body = event.body
        assert isinstance(body, ContextCompiled | LlmAttempted)
        value = body.context if isinstance(body, ContextCompiled) else body.request
        given = await resolved(recording, tenant_id, value)
        found.append({"agent": event.source_agent_id, "call": call_id, "position": event.position, "given": given})
    return found
