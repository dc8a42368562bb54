"""FastStream subscribers over many tenants' streams.

A stock FastStream stream subscriber reads one stream over one connection; here one subscriber leases ready tenants of
all shards, and blocks on one connection. Parser, middlewares, dependency injection and AsyncAPI are FastStream's. This
is the only module that builds on FastStream's private bases (hence the pin below 0.8, and a test of their shape):
`LogicSubscriber` is what every Redis subscriber derives from, and of it `_consume` and `stop` are replaced.

- `LogSubscriber`: a message is a `LeasedRound`, batches of several tenants; its handler returns a `Commit` for each.
- `CallSubscriber`: a message is a `TakenCall`; its handler returns the events that settle it.

What a handler returns is written by the settle middleware (`streams/settling.py`), in one atomic step a batch or call.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import structlog
from anyio import Event
from faststream import AckPolicy
from faststream._internal.broker.registrator import Registrator
from faststream._internal.endpoint.subscriber.call_item import CallsCollection
from faststream.message import StreamMessage
from faststream.redis import RedisBroker, StreamSub
from faststream.redis.subscriber.config import RedisSubscriberConfig, RedisSubscriberSpecificationConfig
from faststream.redis.subscriber.specification import StreamSubscriberSpecification
from faststream.redis.subscriber.usecases import LogicSubscriber
from pydantic import ValidationError
from pydantic.json_schema import SkipJsonSchema

from schemas.call import Call
from schemas.errors import ConfigurationError, HeadwaterError, InvalidInputError, StaleLeaseError, UnavailableError
from schemas.event import AgentEvent, encode
from streams.connection import Streams
from streams.doorbell import SWEEP_S, Doorbell
from streams.functions import Commit, Delivery, TenantBatch
from streams.keys import in_lane
from streams.retries import damaged_call, parked_calls
from streams.slots import GIVE_BACK_AFTER_S, Slots

logger = structlog.get_logger(__name__)

MAX_BACKOFF_S = 2.0
MAX_RENEW_S = 1.0
"""Leases are renewed at least this often: it is also how soon a run learns that its task has ended."""


@dataclass(frozen=True, slots=True)
class LeasedRound:
    """The batches that one reader leased at once, of several tenants."""

    reader: str
    batches: list[TenantBatch]


@dataclass(slots=True)
class TakenCall:
    """A call, the delivery under which this worker may write about it, and `instead`: what is to settle the call when
    the events that its handler returned cannot be stored."""

    delivery: Delivery
    call: Call
    instead: Annotated[Callable[[InvalidInputError], Sequence[AgentEvent]] | None, SkipJsonSchema()] = None


class _ReadySubscriber(LogicSubscriber):
    """Fetches from the ready tenants of all shards, for ever. An error of Redis is logged and waited out (I9)."""

    def __init__(self, broker: RedisBroker, streams: Streams, reader: str, address: str) -> None:
        stream = StreamSub(address, group=reader, consumer="worker")
        config = RedisSubscriberConfig(
            stream_sub=stream,
            no_reply=True,
            _outer_config=broker.config,  # type: ignore[arg-type]  # a composition that acts as the config
            _ack_policy=AckPolicy.MANUAL,
        )
        config.parser = self._parse
        config.decoder = self._decode
        calls: CallsCollection[Any] = CallsCollection()
        specification = StreamSubscriberSpecification(
            broker.config,  # type: ignore[arg-type]
            RedisSubscriberSpecificationConfig(title_=reader, description_=None),
            calls,
            stream_sub=stream,
        )
        super().__init__(config, specification, calls)
        self.streams = streams
        self.reader = reader
        self.doorbell = Doorbell(streams.redis, streams.functions.pipe, streams.keys, reader)
        self.handled_at: float | None = None
        """Loop time of the last successful fetch: health means having read lately, not a ping."""
        Registrator.subscriber(broker, self)

    async def _parse(self, message: Any) -> StreamMessage[Any]:
        # An own correlation id spares the random UUID that FastStream would make for each message.
        return StreamMessage(raw_message=message, body=message, message_id=self.reader, correlation_id=self.reader)

    async def _decode(self, message: StreamMessage[Any]) -> Any:
        return message.body

    async def _consume(self, *args: Any, start_signal: Event) -> None:
        start_signal.set()
        backoff_s = 0.05
        while self.running:
            try:
                await self._get_msgs()
                self.handled_at = asyncio.get_running_loop().time()
                backoff_s = 0.05
            except Exception as error:
                logger.warning("fetch_failed", reader=self.reader, error=str(error), retry_in_s=backoff_s)
                await asyncio.sleep(backoff_s)
                self.doorbell.sweep_again()
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)

    async def stop(self) -> None:
        await super().stop()
        await self.doorbell.close()

    async def get_one(self, *, timeout: float = 5) -> None:  # noqa: ASYNC109  # the signature is FastStream's
        """Not offered: what is read here must be committed, and only a handler's result is."""
        raise ConfigurationError("this subscriber is read by its handler only")

    def __aiter__(self) -> AsyncIterator[Any]:
        raise ConfigurationError("this subscriber is read by its handler only")


class LogSubscriber(_ReadySubscriber):
    """Leases batches of the tenants' logs for `reader`, one round at a time.

    `types` limits which entries are sent (others are read past on the server); `states` asks for the folded states of
    the tasks that the entries name.
    """

    def __init__(
        self,
        broker: RedisBroker,
        streams: Streams,
        reader: str,
        *,
        lease_ms: int,
        max_tenants: int = 64,
        max_entries: int = 500,
        types: Sequence[str] | None = None,
        states: bool = False,
    ) -> None:
        super().__init__(broker, streams, reader, address="hw:<shard>:<tenant>:log")
        self._options: dict[str, Any] = {
            "lease_ms": lease_ms,
            "max_tenants": max_tenants,
            "max_entries": max_entries,
            "types": types,
            "states": states,
        }
        self._hot: set[int] = set()
        """Shards that may have something ready."""
        self._due_at: dict[int, float] = {}
        """When something deferred is due on a shard, in monotonic seconds."""

    async def _get_msgs(self, *args: Any) -> None:
        if self.doorbell.sweep_is_due():
            self._hot = set(range(self.streams.keys.shards))
        wait_s = 0.0 if self._hot else min([SWEEP_S, *(at - time.monotonic() for at in self._due_at.values())])
        self._hot |= (await self.doorbell.hear(wait_s, skip=self._hot)).keys()
        self._hot |= {shard for shard, at in self._due_at.items() if at <= time.monotonic()}
        shards = sorted(self._hot)
        leased = await self.streams.functions.lease(shards, self.reader, **self._options)
        for shard, batches in zip(shards, leased, strict=True):
            if not batches:
                self._hot.discard(shard)
            self._due_at.pop(shard, None)
            if batches.due_in_ms is not None:
                self._due_at[shard] = time.monotonic() + batches.due_in_ms / 1000
        found = [batch for batches in leased for batch in batches]
        if found:
            try:
                await self.process_message(LeasedRound(self.reader, found))
            except Exception:
                await self._give_back(found)
                raise

    async def _give_back(self, batches: list[TenantBatch]) -> None:
        """Let nobody wait for the leases of a round that came to nothing to end: the next one can have it at once."""
        unread = [(replace(batch, end=batch.start, behind=[], tried={}), Commit()) for batch in batches]
        with contextlib.suppress(HeadwaterError):
            await self.streams.functions.commit(self.reader, unread)


class CallSubscriber(_ReadySubscriber):
    """Takes calls for the agents in `capacity` (queue → runs at once, in all workers) and runs them concurrently.

    The queues are those of one `lane`, or of none.

    Calls are renewed while they run. A run whose lease was lost is cancelled, for it can write nothing more; a run
    whose task has ended is cancelled once, and what it returns then settles the call.
    """

    def __init__(
        self,
        broker: RedisBroker,
        streams: Streams,
        worker: str,
        *,
        lease_ms: int,
        capacity: Mapping[str, int],
        lane: str | None = None,
    ) -> None:
        super().__init__(broker, streams, in_lane("worker", lane), address="hw:<shard>:<tenant>:queue:<agent>")
        self.worker = worker
        self.lease_ms = lease_ms
        self.slots = Slots(streams.functions, worker, capacity, lease_ms=lease_ms)
        self._look: dict[str, set[int]] = {agent_id: set() for agent_id in capacity}
        """Shards where calls may be waiting, for each agent."""
        self._held: dict[asyncio.Task[None], Held] = {}
        self._freed = asyncio.Event()
        """Set when a run ended and there is somewhere to look for the agent's next."""
        self._turn = 0
        self._giving_back: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await super().start()
        self.add_task(self._keep)

    async def stop(self) -> None:
        await super().stop()
        if self._giving_back is not None:
            self._giving_back.cancel()
        with contextlib.suppress(HeadwaterError):
            await self.slots.close()

    async def _get_msgs(self, *args: Any) -> None:
        self._freed.clear()
        if self.doorbell.sweep_is_due():
            await self._sweep()
        wants = self._wants(await self._listen())
        if not wants:
            return
        found: Counter[tuple[int, str]] = Counter()
        for _, agents in wants:
            for agent_id, count in agents:
                self.slots.take(agent_id, count)
        try:
            taken = await self.streams.functions.take(
                wants, self.worker, lease_ms=self.lease_ms, taken_up=self.slots.taken_up()
            )
            for delivery in (delivery for deliveries in taken for delivery in deliveries):
                # After a stall as long as a lease, others have the call, and the slot.
                if not delivery.lease_over():
                    found[delivery.shard, delivery.agent_id] += 1
                    self._start(delivery)
        finally:
            for shard, agents in wants:
                for agent_id, count in agents:
                    self.slots.end(agent_id, count - found[shard, agent_id])
                    if found[shard, agent_id] < count:
                        self._look[agent_id].discard(shard)
            self._give_back_later()

    async def _sweep(self) -> None:
        shards = range(self.streams.keys.shards)
        waiting = await self.streams.functions.sweep(shards, list(self._look))
        for shard, agents in zip(shards, waiting, strict=True):
            for agent_id in agents:
                self._look[agent_id].add(shard)

    async def _listen(self) -> list[str]:
        """Hear where calls are waiting, and get slots for them. Returns the agents that a call can be taken for."""
        looking = [agent_id for agent_id, shards in self._look.items() if shards]
        if any(self.slots.free(agent_id) > 0 for agent_id in looking):
            wait_s = 0.0
        else:
            wait_s = min(SWEEP_S, self.slots.ask_again_in_s(looking))
        skip = set.intersection(*self._look.values()) if self._look else set()
        for shard, agents in (await self.doorbell.hear(wait_s, skip=skip, interrupt=self._freed)).items():
            for agent_id in agents & self._look.keys():
                self._look[agent_id].add(shard)
        looking = [agent_id for agent_id, shards in self._look.items() if shards]
        await self.slots.get(looking)
        return [agent_id for agent_id in looking if self.slots.free(agent_id) > 0]

    def _wants(self, agents: list[str]) -> list[tuple[int, list[tuple[str, int]]]]:
        """Divides the free slots among the shards; with fewer slots than shards, the shards take turns."""
        self._turn += 1
        wants: dict[int, list[tuple[str, int]]] = {}
        for agent_id in agents:
            shards, free = sorted(self._look[agent_id]), self.slots.free(agent_id)
            turn = self._turn % len(shards)
            for shard in (shards[turn:] + shards[:turn])[:free]:
                count = max(1, free // len(shards))
                wants.setdefault(shard, []).append((agent_id, count))
        return list(wants.items())

    def _give_back_later(self) -> None:
        if self._giving_back is None or self._giving_back.done():
            self._giving_back = asyncio.create_task(self._give_back_unused())

    async def _give_back_unused(self) -> None:
        later = True
        while later:
            await asyncio.sleep(GIVE_BACK_AFTER_S)
            with contextlib.suppress(UnavailableError):
                later = await self.slots.give_back(agent_id for agent_id, shards in self._look.items() if not shards)

    def _start(self, delivery: Delivery) -> None:
        task = asyncio.create_task(self._run(delivery))
        self._held[task] = Held(delivery)

        def finished(task: asyncio.Task[None]) -> None:
            del self._held[task]
            self.slots.end(delivery.agent_id)
            if self._look[delivery.agent_id]:
                self._freed.set()
            else:
                self._give_back_later()

        task.add_done_callback(finished)

    async def _run(self, delivery: Delivery) -> None:
        # Without a settle the lease ends, and the call is delivered again, to this or another worker.
        try:
            call = Call.model_validate_json(delivery.body)
        except ValidationError as error:
            await self._park(delivery, error)
            return
        try:
            await self.process_message(TakenCall(delivery, call))
        except StaleLeaseError as error:
            logger.warning("lease_lost", tenant=delivery.tenant_id, call=delivery.call_id, error=str(error))
        except Exception as error:
            logger.error("call_not_settled", tenant=delivery.tenant_id, call=delivery.call_id, error=str(error))

    async def _park(self, delivery: Delivery, error: ValidationError) -> None:
        """A call that cannot be read is no call: kept aside, for a person to look at."""
        event = damaged_call(delivery, error)
        blobs: dict[str, bytes] = {}
        try:
            await self.streams.functions.settle(
                delivery, facts=[encode(event, blobs)], blobs=blobs, parked=parked_calls(delivery, [event])
            )
        except HeadwaterError as refused:
            logger.warning("call_not_parked", tenant=delivery.tenant_id, call=delivery.call_id, error=str(refused))

    async def _keep(self) -> None:
        """Renews the leases and the slots together, also while the last runs are drained."""
        every_s = min(MAX_RENEW_S, self.lease_ms / 3000)
        renewal: asyncio.Task[None] | None = None
        while self.running or self._held:
            await asyncio.sleep(every_s)
            if renewal is None or renewal.done():
                renewal = asyncio.create_task(self._renew())
            # A server that does not answer must not keep us from noticing that a lease has ended.
            await asyncio.wait([renewal], timeout=every_s)
            for task, held in list(self._held.items()):
                if held.delivery.lease_over():
                    self._lose(task, held)

    async def _renew(self) -> None:
        held = list(self._held.items())
        try:
            kept, _ = await asyncio.gather(
                self.streams.functions.renew([h.delivery for _, h in held], lease_ms=self.lease_ms), self.slots.renew()
            )
        except HeadwaterError as error:
            logger.warning("leases_not_renewed", worker=self.worker, runs=len(held), error=str(error))
            return
        for (task, one), is_kept in zip(held, kept, strict=True):
            if not is_kept:
                self._lose(task, one)
                continue
            if one.delivery.cancelled and not one.told and not one.delivery.settling and not task.done():
                one.told = True
                logger.info("call_cancelled", tenant=one.delivery.tenant_id, call=one.delivery.call_id)
                task.cancel()

    def _lose(self, task: asyncio.Task[None], held: "Held") -> None:
        # A call that was settled a moment ago is not held any more, and not lost either.
        if held.lost or held.delivery.settling or task.done():
            return
        held.lost = True
        logger.warning("lease_lost", tenant=held.delivery.tenant_id, call=held.delivery.call_id)
        task.cancel()


@dataclass(slots=True)
class Held:
    """A call that this worker runs."""

    delivery: Delivery
    told: bool = False
    """Its run was cancelled because its task has ended."""
    lost: bool = False
