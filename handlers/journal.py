"""The durable memory of one call: what its agent did is recorded as it happens, and given back after a crash.

Every LLM request and step of a call has an ordinal, in the order the agent asked for them. Its facts are appended to
the log under the call's lease and remembered with the call by step key, `<ordinal>.<n>@<delivery>`. When the call is
delivered again, the keys lead back to the facts.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import structlog

from schemas.bodies import AgentStarted, BudgetExceeded, EventBody, LlmAttempted, StepRecorded
from schemas.content import Json
from schemas.errors import HeadwaterError, StaleLeaseError
from schemas.event import AgentEvent, encode
from schemas.ids import derived_id
from streams.budgets import picos, spent_usd
from streams.connection import Streams
from streams.functions import Fields
from streams.subscriber import TakenCall

logger = structlog.get_logger(__name__)

NOTHING = Decimal(0)
STARTED_DELAY_S = 0.02
"""`agent.started` waits this long for another fact to travel with: most fast agents settle before."""


class Journal:
    """Records the facts of one delivery of a call, and knows those of earlier deliveries."""

    def __init__(self, streams: Streams, taken: TakenCall, *, lease_ms: int) -> None:
        self.call = taken.call
        self.delivery = taken.delivery
        self._streams = streams
        self._lease_ms = lease_ms
        self._ordinal = -1
        self._recorded: dict[int, list[AgentEvent]] = {}
        self.given: list[str] = []
        """Positions of what the agent was given so far, by this delivery or from the record, in its order."""
        self._last_recorder = 1
        """The newest delivery that recorded anything: if it was not this one, it died after that."""
        self.answered_live = False
        """Has a live LLM request of this delivery been answered? Until then, an earlier one may have been in flight."""
        started = AgentStarted(
            agent_id=self.call.agent_id,
            call_id=self.call.call_id,
            delivery=self.delivery.delivery,
            worker=self.delivery.worker,
        )
        # Only an agent's run has a beginning worth a fact; a question to a model is short.
        is_agent = self.call.kind == "agent"
        self._started = self.event(started, "started", self.delivery.delivery) if is_agent else None
        self._flush: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._aside: list[AgentEvent] = []
        self._order = asyncio.Lock()
        """Held while a fact is on its way: on a cluster, or where a connection was lost and what was on it is sent
        again, the later of two may arrive first."""

    async def load(self) -> None:
        """Read what earlier deliveries recorded."""
        keys = [key for key in self.delivery.steps if not key.startswith("started")]
        events = await self._streams.log.fetch(self.call.tenant_id, [self.delivery.steps[key] for key in keys])
        for key, event in zip(keys, events, strict=True):
            self._recorded.setdefault(int(key.partition(".")[0]), []).append(event)
            self._last_recorder = max(self._last_recorder, int(key.rpartition("@")[2]))
        for found in self._recorded.values():
            found.sort(key=_place)

    def announce(self) -> None:
        """Record `agent.started` soon, unless another fact takes it along before."""
        self._timer = asyncio.get_running_loop().call_later(STARTED_DELAY_S, self._record_started)

    def _record_started(self) -> None:
        if self._started is not None:
            self._flush = asyncio.create_task(self._flush_started())

    async def _flush_started(self) -> None:
        async with self._order:
            blobs: dict[str, bytes] = {}
            # Asked for only now: a fact that was faster has taken it along.
            if facts := [encode(event, blobs) for event in self.final([])]:
                await self._write(f"started@{self.delivery.delivery}", facts, blobs)

    async def close(self) -> None:
        """Wait for a fact that is still on its way, and send none any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._flush is not None:
            with contextlib.suppress(HeadwaterError):
                await self._flush

    def next_ordinal(self) -> int:
        """The ordinal of the agent's next request or step."""
        self._ordinal += 1
        return self._ordinal

    def recorded(self, ordinal: int) -> list[AgentEvent]:
        """The facts that earlier deliveries recorded at this ordinal, oldest first."""
        return self._recorded.get(ordinal, [])

    def last_recorded(self) -> tuple[int, EventBody] | None:
        """The newest fact that earlier deliveries recorded under an ordinal, and the ordinal."""
        newest = [(found[-1], ordinal) for ordinal, found in self._recorded.items()]
        event, ordinal = max(newest, key=lambda item: _place(item[0]), default=(None, -1))
        return None if event is None else (ordinal, event.body)

    def reuse(self, event: AgentEvent) -> None:
        """Note that the agent was given a recorded fact."""
        if event.position is not None:
            self.given.append(event.position)

    def lost_delivery(self) -> int | None:
        """The earlier delivery that may have had a request in flight when it died, or None.

        A delivery records what its predecessor may have lost before it sends anything itself, so only the last one
        that recorded anything can have sent a request that nobody recorded.
        """
        if self.delivery.delivery == 1 or self.answered_live:
            return None
        return self._last_recorder

    def attempt_id(self, ordinal: int, attempt: int, delivery: int | None = None) -> str:
        """The id of the event of an LLM attempt, known before the request is sent."""
        return derived_id(self.call.call_id, "llm", ordinal, attempt, delivery or self.delivery.delivery)

    def event(self, body: EventBody, *cause: str | int, event_id: str | None = None) -> AgentEvent:
        """An event of this call's agent."""
        return AgentEvent(
            id=event_id or derived_id(self.call.call_id, *cause),
            tenant_id=self.call.tenant_id,
            session_id=self.call.session_id,
            task_id=self.call.task_id,
            priority=self.call.priority,
            source_agent_id=self.call.agent_id,
            call_chain=self.call.call_chain,
            parent_event_id=self.call.ordered_by,
            at=datetime.now(UTC),
            body=body,
        )

    async def record_attempt(self, body: LlmAttempted) -> AgentEvent:
        """Record one LLM attempt. Raises `StaleLeaseError` if this worker lost the call."""
        event = self.event(body, event_id=self.attempt_id(body.ordinal, body.attempt, body.delivery))
        key = f"{body.ordinal}.{body.attempt}@{self.delivery.delivery}"
        if self.call.budget_usd is None or body.cost_usd is None:
            await self.record(key, event)
        else:
            await self.record(key, event, spent_usd=Decimal(body.cost_usd))
        return event

    async def spent_usd(self) -> Decimal:
        """What the call's task has spent, if it has a budget: all attempts on record, of all its calls."""
        return await spent_usd(self._streams, self.call.tenant_id, self.call.task_id)

    async def record_refusal(self, body: BudgetExceeded) -> None:
        """Record a request that was not sent, once however often its call is delivered. The agent was given nothing.

        Raises `StaleLeaseError` if this worker lost the call.
        """
        if not any(isinstance(event.body, BudgetExceeded) for event in self.recorded(body.ordinal)):
            event = self.event(body, "budget", body.ordinal, body.delivery)
            await self._record(f"{body.ordinal}.budget@{body.delivery}", event, NOTHING)

    async def record_to_the_end(self, body: LlmAttempted) -> None:
        """Record an attempt from a task that is being cancelled, whatever else cancels it meanwhile.

        A lost lease and a Redis that is away are logged only: the cancellation goes on.
        """
        await self._to_the_end(self.record_attempt(body))

    def set_aside(self, body: LlmAttempted) -> None:
        """Keep an attempt to be recorded together with the next fact of this call, if there is one."""
        self._aside.append(self.event(body, event_id=self.attempt_id(body.ordinal, body.attempt, body.delivery)))

    def check_lease(self) -> None:
        """Raises `StaleLeaseError` if the lease may have ended: a worker that was paused sends no new requests."""
        if self.delivery.lease_over():
            raise StaleLeaseError(
                f"call {self.call.call_id} of tenant {self.call.tenant_id!r}: the lease was not renewed in time; "
                "nothing was sent"
            )

    async def record_step(self, body: StepRecorded) -> None:
        """Record a finished step. Raises `StaleLeaseError` if this worker lost the call."""
        event = self.event(body, "step", body.ordinal, self.delivery.delivery)
        await self.record(f"{body.ordinal}.0@{self.delivery.delivery}", event)

    async def record(self, key: str, event: AgentEvent, *, spent_usd: Decimal = NOTHING) -> None:
        """Record a fact under a step key of this call, after those that this delivery recorded before.

        Raises `StaleLeaseError` if this worker lost the call.
        """
        self.given.append(await self._record(key, event, spent_usd))

    async def _record(self, key: str, event: AgentEvent, spent_usd: Decimal) -> str:
        blobs: dict[str, bytes] = {}
        facts: list[Fields] = []

        async def write() -> str:
            async with self._order:
                if not facts:
                    facts.extend([encode(event, blobs) for event in self.final([event])])
                return await self._write(key, facts, blobs, spent_usd)

        try:
            return await write()
        except asyncio.CancelledError:
            # It may still be on its way, and must not arrive after the settle. Under one key it is one fact.
            await self._to_the_end(write())
            raise

    async def _write(self, key: str, facts: list[Fields], blobs: dict[str, bytes], spent_usd: Decimal = NOTHING) -> str:
        spent = (self.call.task_id, picos(spent_usd)) if spent_usd else None
        return await self._streams.functions.record(
            self.delivery, lease_ms=self._lease_ms, key=key, facts=facts, blobs=blobs, spent=spent
        )

    async def _to_the_end(self, write: Coroutine[Any, Any, Any]) -> None:
        writing = asyncio.ensure_future(write)
        while not writing.done():
            with contextlib.suppress(asyncio.CancelledError, HeadwaterError):
                await asyncio.shield(writing)
        if isinstance(error := writing.exception(), HeadwaterError):
            logger.warning("fact_not_recorded", tenant=self.call.tenant_id, call=self.call.call_id, error=str(error))

    def final(self, events: list[AgentEvent]) -> list[AgentEvent]:
        """`events`, with what is not in the log yet in front: `agent.started`, and attempts that were set aside."""
        started, self._started = self._started, None
        aside, self._aside = self._aside, []
        return [*([] if started is None else [started]), *aside, *events] if started or aside else events

    async def resolve(self, value: Json) -> Json:
        """A content of this tenant, read in full."""
        return await self._streams.log.resolve(self.call.tenant_id, value)


def _place(event: AgentEvent) -> tuple[int, ...]:
    return tuple(map(int, (event.position or "0-0").split("-")))
