"""Running a task again: a new task that takes over the recorded facts before a point and lives on from there, live.

The recorded part is not paid again. What comes after is real: agents run, models are asked, and tools do what they do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

from handlers.refold import causes
from handlers.state import TaskState, evolve, first_waiting, taken_over
from headwater.client import Headwater
from headwater.lane import OtherTeam
from headwater.replay.moments import task_events
from headwater.replay.recording import Recording
from projections.archive import blob_hashes
from schemas.bodies import (
    AgentCompleted,
    AgentFailed,
    EventBody,
    HandoffProposed,
    SupervisorAnswered,
    SupervisorAsked,
    TaskForked,
    TaskSubmitted,
)
from schemas.content import canonical_json, content_hash, seal
from schemas.errors import InvalidInputError
from schemas.event import AgentEvent, encode_body
from schemas.ids import derived_id, new_id
from schemas.money import plain
from schemas.task import Accepted

TIERS = ("fast", "reasoning")
_OWN = frozenset(
    {
        *("tenant_id", "session_id", "task_id", "priority", "task_type", "text", "data"),
        *("models", "budget_usd", "fork_of", "root_task_id", "lane", "waiting"),
    }
)
"""What of a state the forking's event says itself."""
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class ForkOptions:
    """How a task is to be run again.

    Raises:
        InvalidInputError: a tier is not known or has no model, or the budget is no amount above 0.
    """

    at: str | None = None
    """A recorded fact that is decided anew, or a decision on it: event id or position. None: from the start."""
    models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Tier → models."""
    data: dict[str, Any] | None = None
    """In the place of the origin's data."""
    budget_usd: str | None = None
    team: OtherTeam | None = None
    """Who decides and works, in the place of the running team."""
    lane: str | None = None
    """Where that team is served."""

    def __post_init__(self) -> None:
        for tier, names in self.models.items():
            if tier not in TIERS or not names or not all(names):
                raise InvalidInputError(f"tier {tier!r}: name a model for one of {', '.join(TIERS)}")
        if self.budget_usd is not None:
            object.__setattr__(self, "budget_usd", _amount(self.budget_usd))

    @property
    def fingerprint(self) -> str:
        """The same for the same options."""
        models = {tier: list(names) for tier, names in self.models.items()}
        team = None if self.team is None else [self.team.agents, self.team.code_hash]
        return content_hash(canonical_json([self.at, models, self.data, self.budget_usd, team]))[:16]


@dataclass(frozen=True, slots=True)
class Moment:
    """A fact that the supervisor decided on, and what it knew before. None: nothing, the task began with it."""

    event: AgentEvent
    before: TaskState | None
    answer_id: str | None = None
    """In a lane: the answer of the team there, which led to the decisions."""


def _amount(text: str) -> str:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise InvalidInputError(f"budget {text!r} is no amount of US dollars") from None
    if not amount.is_finite() or not 0 < amount < 10**9:
        raise InvalidInputError(f"budget {text!r}: use an amount of US dollars above 0")
    return plain(amount)


def moments_of(events: list[AgentEvent]) -> list[Moment]:
    """The facts that a task can be forked at, in log order.

    Raises:
        InvalidInputError: the log does not have the task's beginning.
    """
    wanted, recorded = causes(events)
    state: TaskState | None = None
    found: list[Moment] = []
    for cause in wanted:
        moment = _moment(state, cause)
        if moment is not None and moment.answer_id is not None and found and found[-1].event.id == moment.event.id:
            found[-1] = moment
        elif moment is not None:
            found.append(moment)
        state = evolve(state, cause)
        for decision in recorded.get(cause.id, []):
            state = evolve(state, decision)
    if not found or not isinstance(found[0].event.body, TaskSubmitted | TaskForked):
        raise InvalidInputError("the log does not have the beginning of this task: it cannot be run again")
    return found


def _moment(state: TaskState | None, cause: AgentEvent) -> Moment | None:
    if state is None or state.lane is None:
        return Moment(cause, state) if _decided_on(state, cause.body) else None
    body = cause.body
    if isinstance(body, SupervisorAnswered) and body.question == "decide" and body.call_id in state.calls:
        before, event = first_waiting(state)
        return Moment(event, before, cause.id)
    return None


def _decided_on(state: TaskState | None, body: EventBody) -> bool:
    match body:
        case TaskSubmitted() | TaskForked():
            return state is None
        case AgentCompleted(handed_over=True):
            return False
        case AgentCompleted() | AgentFailed() | HandoffProposed() | SupervisorAnswered():
            return state is not None and body.call_id in state.calls
    return False


def find_moment(events: list[AgentEvent], at: str | None) -> Moment:
    """The moment that `at` names; None is the task's start.

    Raises:
        InvalidInputError: nothing was decided there. The text has what there is to choose from.
    """
    moments = moments_of(events)
    if at is None:
        return moments[0]
    named = next((event for event in events if at in (event.id, event.position)), None)
    if named is not None:
        cause = named.parent_event_id if named.body.decision else named.id
        if isinstance(named.body, SupervisorAsked) and named.body.question == "decide":
            cause = named.body.about_event_id
        for moment in moments:
            if cause in (moment.event.id, moment.answer_id):
                return moment
    what = "is no event of this task" if named is None else f"is a {named.type}, on which nothing was decided"
    choices = [f"{m.event.id} ({m.event.type} by {m.event.source_agent_id})" for m in moments]
    more = f" and {len(choices) - _SHOWN} more" if len(choices) > _SHOWN else ""
    raise InvalidInputError(f"{at!r} {what}; fork at one of: {', '.join(choices[:_SHOWN])}{more}")


def forking(events: list[AgentEvent], options: ForkOptions, *, task_id: str, key: str | None = None) -> TaskForked:
    """The event that begins a fork of the task that `events` are all of. Raises `InvalidInputError`."""
    first = events[0]
    moment = find_moment(events, options.at)
    begun = moments_of(events)[0].event.body
    assert isinstance(begun, TaskSubmitted | TaskForked)
    before, point = moment.before, moment.event.body
    if isinstance(point, TaskForked):
        before, fact = taken_over(moment.event, point)
        point = point if fact is None else fact.body
    from_start = isinstance(point, TaskSubmitted | TaskForked)
    ids = {} if before is None else {call: derived_id(task_id, "call", call) for call in before.calls}
    return TaskForked(
        task_type=begun.task_type,
        text=begun.text,
        data=begun.data if options.data is None else seal(options.data),
        origin_task_id=first.task_id,
        origin_event_id=None if moment.before is None and from_start else moment.event.id,
        root_task_id=begun.root_task_id if isinstance(begun, TaskForked) else first.task_id,
        state=None if from_start or before is None else _state(before, ids),
        point=None if from_start else _point(point, ids),
        models=(begun.models if isinstance(begun, TaskForked) else {}) | dict(options.models),
        budget_usd=options.budget_usd,
        lane=options.lane,
        agents=None if options.team is None else options.team.agents,
        idempotency_key=key,
    )


def _state(before: TaskState, ids: Mapping[str, str]) -> dict[str, Any]:
    """A state with other call ids: a call's id is its place in the tenant, and the origin has had that."""
    renamed = before.model_copy(
        update={
            "calls": {ids[call_id]: call for call_id, call in before.calls.items()},
            "proposals": {
                event_id: proposed.model_copy(update={"call_id": ids.get(proposed.call_id, proposed.call_id)})
                for event_id, proposed in before.proposals.items()
            },
        }
    )
    state: dict[str, Any] = orjson.loads(renamed.model_dump_json(exclude=set(_OWN)))
    return state


def _point(body: EventBody, ids: Mapping[str, str]) -> dict[str, Any]:
    recorded = orjson.loads(encode_body(body, {}))
    recorded["call_id"] = ids[recorded["call_id"]]
    return {"type": body.type, "v": str(body.version), "body": recorded}


async def fork_task(
    hw: Headwater, tenant_id: str, task_id: str, options: ForkOptions, *, key: str | None = None
) -> Accepted:
    """Run a task again. With an idempotency key, once per key: also when the key itself was forgotten meanwhile.

    Raises:
        NotFoundError: the tenant has no such task.
        InvalidInputError: it cannot be forked there, or the options make no sense.
        IdempotencyConflictError: the key was used for something else.
    """
    recording = hw.history
    events = await task_events(recording, tenant_id, task_id)
    fork_id = new_id() if key is None else fork_id_of(tenant_id, key)
    body = forking(events, options, task_id=fork_id, key=key)
    first = events[0]
    return await hw.bus(tenant_id).fork(
        body,
        task_id=fork_id,
        session_id=first.session_id,
        priority=first.priority,
        blobs=await _blobs(recording, tenant_id, body),
        fingerprint=content_hash(f"{task_id} {options.fingerprint}".encode())[:16],
    )


def fork_id_of(tenant_id: str, key: str) -> str:
    """The task id of the fork that is made under an idempotency key."""
    return derived_id("fork", tenant_id, key)


async def _blobs(recording: Recording, tenant_id: str, body: TaskForked) -> dict[str, bytes]:
    """The large contents that a fork takes over: the log may have dropped them since."""
    hashes = sorted(blob_hashes(encode_body(body, {}).decode()))
    return {sha: await recording.blob(tenant_id, sha) for sha in hashes}
