"""A recorded task as a fixture for tests: sanitised facts, and the decisions that follow from them.

Replacing names and numbers changes what a decision says (a reason quotes a text), so the decisions are made again from
the sanitised facts, and must be the same kinds, for the same agents, in the same order as the recorded ones. A
recording that does not verify makes no fixture.
"""

from collections.abc import AsyncIterator, Iterable
from typing import Any

import orjson

from handlers.decider import decided_event
from handlers.state import TaskState, evolve
from handlers.supervisor import WANTED, Rules, decide
from headwater.replay.moments import place, task_events
from headwater.replay.recording import FORMAT, Recording, resolved
from headwater.replay.sanitise import Sanitiser
from headwater.replay.verify import verify
from schemas.bodies import MemoryStored, SupervisorAnswered, TaskForked, TaskRouted
from schemas.content import offload, seal
from schemas.errors import HeadwaterError
from schemas.event import FIELDS, AgentEvent, encode

_FREE_TEXT = ("reason", "reasoning", "error")
"""Fields beside the contents whose text people or models wrote."""

_IDENTIFIERS = ("idempotency_key", "worker", "provider_response_id")


class FixtureError(HeadwaterError):
    """A task cannot be made a fixture. The text says why, and what to do."""


async def fixture(
    recording: Recording, tenant_id: str, task_id: str, rules: Rules, *, keep: Iterable[str] = ()
) -> AsyncIterator[bytes]:
    """The lines of an export file with the sanitised task in it.

    Raises:
        NotFoundError: there is no such task.
        FixtureError: the recorded decisions do not follow from the facts by these rules, or sanitising changes them;
            or the task is a fork that was not decided on from its start, by one team.
    """
    events = [e for e in await task_events(recording, tenant_id, task_id) if not isinstance(e.body, MemoryStored)]
    _check_own(events)
    report = await verify(recording, [tenant_id], rules, task_id=task_id)
    if report.differences:
        found = report.differences[0]
        raise FixtureError(
            f"task {task_id} does not verify with this team (decision {found.event_id}, {found.pointer}): make "
            "fixtures with the team that it was recorded with"
        )
    bodies = {event.id: await _open(recording, tenant_id, event) for event in events}
    sanitiser = Sanitiser({*keep, *(agent.agent_id for agent in rules.team.registry)})
    for event in events:
        if not event.body.decision:
            for value in _writable(event, bodies[event.id]):
                sanitiser.learn(value)
    blobs: dict[str, bytes] = {}
    facts = [_sanitised(event, bodies[event.id], sanitiser, blobs) for event in events]
    made = _decided_again(events, facts, rules, blobs)
    yield orjson.dumps({"headwater": FORMAT, "sanitised": True}) + b"\n"
    tenant = made[0].tenant_id
    lines = [dict(zip(FIELDS, map(_text, encode(event, blobs)), strict=True)) for event in made]
    for sha, data in sorted(blobs.items()):
        yield orjson.dumps({"tenant": tenant, "blob": sha, "data": data.decode()}) + b"\n"
    for event, fields in zip(made, lines, strict=True):
        yield orjson.dumps({"tenant": tenant, "position": event.position, **fields}) + b"\n"


def _check_own(events: list[AgentEvent]) -> None:
    """What a fork took over, and what another team decided, is told in shapes that cannot be sanitised one by one."""
    first = events[0].body
    if isinstance(first, TaskForked) and (first.state is not None or first.lane is not None):
        how = (
            "took over recorded facts" if first.lane is None else f"was decided on by {first.agents or 'another team'}"
        )
        raise FixtureError(
            f"task {events[0].task_id} is a fork that {how}: make a fixture of its origin, {first.root_task_id}"
        )


async def _open(recording: Recording, tenant_id: str, event: AgentEvent) -> dict[str, Any]:
    """The event's body as JSON, its contents read in full."""
    body: dict[str, Any] = orjson.loads(event.body.model_dump_json())
    for path in event.body.contents:
        name, _, key = path.partition(".")
        if not key:
            body[name] = await resolved(recording, tenant_id, body.get(name))
        elif isinstance(body.get(name), dict):
            for inner, value in body[name].items():
                if key in ("*", inner):
                    body[name][inner] = await resolved(recording, tenant_id, value)
    return body


def _writable(event: AgentEvent, body: dict[str, Any]) -> list[Any]:
    """The values of a body that hold what people and models wrote."""
    found = [body.get(name) for name in _FREE_TEXT]
    for path in event.body.contents:
        name, _, key = path.partition(".")
        inner = body.get(name)
        found.append(inner if not key or key == "*" else (inner or {}).get(key))
    if "payload" in body:
        found.append(body["payload"].get("reason"))
    return [value for value in found if value is not None]


def _sanitised(event: AgentEvent, body: dict[str, Any], sanitiser: Sanitiser, blobs: dict[str, bytes]) -> AgentEvent:
    """The event with stand-ins in it, its contents offloaded again."""
    tenant = sanitiser.identifier("tenant", event.tenant_id)
    cleaned = dict(body)
    # The indices of steps in a model's answer are no amounts.
    numbers = not isinstance(event.body, SupervisorAnswered)
    for name in _FREE_TEXT:
        if isinstance(cleaned.get(name), str):
            cleaned[name] = sanitiser.clean(cleaned[name])
    for path in event.body.contents:
        name, _, key = path.partition(".")
        inner = cleaned.get(name)
        if not key:
            cleaned[name] = offload(seal(sanitiser.clean(inner, numbers=numbers)), blobs)
        elif isinstance(inner, dict):
            cleaned[name] = inner | {
                k: offload(seal(sanitiser.clean(v, numbers=numbers)), blobs)
                for k, v in inner.items()
                if key in ("*", k)
            }
    if isinstance(cleaned.get("payload"), dict):
        payload = cleaned["payload"]
        named = tenant if payload["tenant_id"] == event.tenant_id else payload["tenant_id"]
        cleaned["payload"] = payload | {"tenant_id": named, "reason": sanitiser.clean(payload["reason"])}
    for name in _IDENTIFIERS:
        if cleaned.get(name):
            cleaned[name] = sanitiser.identifier(name.partition("_")[0], cleaned[name])
    return _with_body(event, cleaned, tenant, sanitiser.identifier("session", event.session_id))


def _with_body(event: AgentEvent, body: dict[str, Any], tenant: str, session: str) -> AgentEvent:
    return AgentEvent(
        id=event.id,
        tenant_id=tenant,
        session_id=session,
        task_id=event.task_id,
        source_agent_id=event.source_agent_id,
        call_chain=event.call_chain,
        at=event.at,
        body=type(event.body).model_validate_json(orjson.dumps(body)),
        priority=event.priority,
        parent_event_id=event.parent_event_id,
        position=event.position,
    )


def _decided_again(
    recorded: list[AgentEvent], facts: list[AgentEvent], rules: Rules, blobs: dict[str, bytes]
) -> list[AgentEvent]:
    """The facts, with the decisions that follow from them in place of the recorded ones."""
    places = {event.id: event for event in recorded if event.body.decision}
    state: TaskState | None = None
    made: list[AgentEvent] = []
    for fact in facts:
        if fact.body.decision:
            continue
        made.append(fact)
        decisions = decide(state, fact, rules, blobs) if fact.type in WANTED else []
        state = evolve(state, fact)
        for ordinal, decision in enumerate(decisions):
            event = decided_event(fact, ordinal, decision, fact.at)
            was = places.pop(event.id, None)
            if was is None or _kind(was) != _kind(event):
                kinds = (None if was is None else _kind(was), _kind(event))
                raise FixtureError(
                    f"sanitising changes what is decided on {fact.type} {fact.id}: {kinds[0]} becomes {kinds[1]}. Keep "
                    "the words that the rules look at with --keep"
                )
            state = evolve(state, event)
            made.append(_with_position(event, was))
    if places:
        raise FixtureError(
            f"sanitising loses the decision {next(iter(places))}: keep what the rules look at with --keep"
        )
    return sorted(made, key=place)


def _with_position(event: AgentEvent, was: AgentEvent) -> AgentEvent:
    return AgentEvent(
        id=event.id,
        tenant_id=event.tenant_id,
        session_id=event.session_id,
        task_id=event.task_id,
        source_agent_id=event.source_agent_id,
        call_chain=event.call_chain,
        at=was.at,
        body=event.body,
        priority=event.priority,
        parent_event_id=event.parent_event_id,
        position=was.position,
    )


def _kind(event: AgentEvent) -> tuple[str, ...]:
    """What two decisions must share to be the same one: their type, and whom they call."""
    agent = event.body.agent_id if isinstance(event.body, TaskRouted) else ""
    return (event.type, agent, *event.call_chain)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
