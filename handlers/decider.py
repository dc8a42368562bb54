"""Runs the pure supervisor over events: live, on a leased round (`Decider`), or over a recorded log (`redecide`)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from pydantic import ValidationError

from handlers.refold import causes, refold
from handlers.state import contents_for
from handlers.supervisor import DECIDER, SUPERVISOR, Decision, Rules, TaskState, call_for, decide, evolve
from schemas.bodies import EventBody, TaskResumed
from schemas.errors import UnavailableError, UnreadableEventError
from schemas.event import AgentEvent, encode, encode_body
from schemas.ids import derived_id
from schemas.task import PRIORITY_RANK
from streams.functions import Commit, NewCall, TenantBatch
from streams.keys import in_lane
from streams.log import Entry, Log, read_event
from streams.retries import DEFAULT_DELAYS_MS, Setbacks
from streams.subscriber import LeasedRound

logger = structlog.get_logger(__name__)

BLOB_HASH_CHARS = 64


def decided_event(cause: AgentEvent, ordinal: int, decision: Decision, at: datetime) -> AgentEvent:
    """The event that records a decision. Its id follows from its cause, so deciding twice gives the same event."""
    return AgentEvent(
        id=derived_id(cause.id, ordinal),
        tenant_id=cause.tenant_id,
        session_id=cause.session_id,
        task_id=cause.task_id,
        priority=cause.priority,
        source_agent_id=SUPERVISOR,
        call_chain=decision.call_chain,
        parent_event_id=cause.id,
        at=at,
        body=decision.body,
    )


class Decider:
    """The supervisor's place on the log. `handle` is a FastStream handler over leased rounds."""

    def __init__(
        self,
        log: Log,
        rules: Rules,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        retry_delays_ms: Sequence[int] = DEFAULT_DELAYS_MS,
    ) -> None:
        self._log = log
        self._rules = rules
        self._now = now
        self._retry_delays_ms = retry_delays_ms

    async def handle(self, leased: LeasedRound) -> list[Commit]:
        """Decide every batch of a round. One tenant's trouble does not hold up the others."""
        return [await self._decide_batch(batch) for batch in leased.batches]

    async def _decide_batch(self, batch: TenantBatch) -> Commit:
        commit = Commit()
        setbacks = Setbacks(DECIDER, batch, commit, self._retry_delays_ms)
        states: dict[str, TaskState | None] = {}
        for entry in batch.entries:
            if setbacks.holds(entry):
                continue
            try:
                made = await self._decide_entry(batch, entry, states)
            except UnavailableError:
                raise
            except Exception as error:
                # A defect, ours or a custom router's. Or an entry that only a newer version of the code understands:
                # then there is nothing to wait for.
                setbacks.failed(entry, error, for_good=isinstance(error, UnreadableEventError))
            else:
                setbacks.handled(entry)
                commit.add(made)
        for task_id, state in states.items():
            if state is not None:
                commit.states[task_id] = state.__pydantic_serializer__.to_json(state)
            elif task_id in batch.states:
                commit.ended.append(task_id)
        return commit

    async def _decide_entry(self, batch: TenantBatch, entry: Entry, states: dict[str, TaskState | None]) -> Commit:
        """What comes of one entry. When anything raises, nothing does, and `states` is as it was."""
        made = Commit()
        event = read_event(batch.tenant_id, entry)
        if event.task_id not in states:
            states[event.task_id] = await self._state(batch, event)
        state = states[event.task_id]
        decisions = decide(state, event, self._rules, await self._contents(state, event))
        states[event.task_id] = self._apply(made, evolve(state, event), event, decisions)
        return made

    async def _state(self, batch: TenantBatch, event: AgentEvent) -> TaskState | None:
        stored = batch.states.get(event.task_id)
        try:
            return None if stored is None else TaskState.model_validate_json(stored)
        except ValidationError as error:
            # Damaged, or left by a newer version of the code.
            first = error.errors(include_url=False, include_input=False)[0]
            logger.warning("state_folded_anew", tenant=batch.tenant_id, task=event.task_id, error=first["msg"])
            return await refold(self._log, batch.tenant_id, event.task_id, before=event.position or "")

    async def _contents(self, state: TaskState | None, event: AgentEvent) -> dict[str, bytes]:
        hashes = contents_for(state, event)
        return await self._log.blobs(event.tenant_id, hashes) if hashes else {}

    def _apply(
        self, commit: Commit, state: TaskState | None, cause: AgentEvent, decisions: list[Decision]
    ) -> TaskState | None:
        for ordinal, decision in enumerate(decisions):
            event = decided_event(cause, ordinal, decision, self._now())
            if event.body.terminal:
                # Nobody waits for these any more; one that was settled already is not there to be cancelled.
                commit.cancels += state.calls if state is not None else ()
                commit.notify.append((event.task_id, len(commit.facts)))
            for warning in getattr(event.body, "warnings", ()):
                logger.warning("handoff_warning", tenant=event.tenant_id, task=event.task_id, warning=warning)
            state = evolve(state, event)
            commit.facts.append(encode(event, commit.blobs))
            for call_id in _ordered(event.body) if state is not None else ():
                assert state is not None
                call = call_for(state, call_id)
                body = call.__pydantic_serializer__.to_json(call)
                queue = in_lane(call.agent_id, state.lane)
                commit.calls.append(NewCall(call_id, queue, PRIORITY_RANK[call.priority], body))
        return state


def _ordered(body: EventBody) -> tuple[str, ...]:
    """The calls that a decision orders."""
    if isinstance(body, TaskResumed):
        return body.call_ids
    call_id = getattr(body, "call_id", None)
    return () if call_id is None else (call_id,)


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where deciding again gave something else than the log has. `recorded` or `now` is None if one is missing."""

    cause: AgentEvent
    ordinal: int
    recorded: AgentEvent | None
    now: AgentEvent | None


def redecide(events: Iterable[AgentEvent], rules: Rules, blobs: Mapping[str, bytes]) -> Iterator[Divergence]:
    """Decide a recorded log again, and yield every difference (I5). `events` in log order, of any number of tasks.

    States are folded from the *recorded* decisions, so one difference does not make all that follows differ. A task
    whose recorded decisions do not follow from each other is reported once, at the first that does not. An event that
    somebody dropped was never decided on, and is left out here too. Raises `KeyError` with the hash of a large content
    that is needed and not in `blobs`.
    """
    wanted, recorded = causes(events)
    states: dict[tuple[str, str], TaskState | None] = {}
    broken: set[tuple[str, str]] = set()
    for cause in wanted:
        key = (cause.tenant_id, cause.task_id)
        if key in broken:
            continue
        was = recorded.get(cause.id, [])
        try:
            decisions = decide(states.get(key), cause, rules, blobs)
        except LookupError as error:
            if len(str(error.args[0])) == BLOB_HASH_CHARS:
                raise
            # It asks for what a decision that the log does not have would have brought.
            broken.add(key)
            yield Divergence(cause, 0, was[0] if was else None, None)
            continue
        now = [decided_event(cause, n, d, was[n].at if n < len(was) else cause.at) for n, d in enumerate(decisions)]
        for ordinal in range(max(len(was), len(now))):
            old = was[ordinal] if ordinal < len(was) else None
            new = now[ordinal] if ordinal < len(now) else None
            if old is None or new is None or not _same(old, new):
                yield Divergence(cause, ordinal, old, new)
        state = evolve(states.get(key), cause)
        for ordinal, event in enumerate(was):
            try:
                state = evolve(state, event)
            except LookupError:
                # It stands on a decision that the log does not have.
                broken.add(key)
                yield Divergence(cause, ordinal, event, None)
                break
        states[key] = state


def _same(a: AgentEvent, b: AgentEvent) -> bool:
    return (
        a.id == b.id
        and a.type == b.type
        and a.call_chain == b.call_chain
        # As stored: a large content in the log is a reference, and becomes the same one when stored again.
        and encode_body(a.body, {}) == encode_body(b.body, {})
    )
