"""FastStream subscribers over many tenants' streams.

A stock FastStream stream subscriber reads one stream over one connection; here one subscriber leases ready tenants of
all shards, and blocks on one connection. Parser, middlewares, dependency injection and AsyncAPI are FastStream's. This
is the only module that builds on FastStream's private bases (hence the pin below 0.8, and a test of their shape):
`LogicSubscriber` is what every Redis subscriber derives from, and of it `_consume` and `stop` are replaced.

- `LogSubscriber`: a message is a `LeasedRound`, batches of several tenants; its handler returns a `Commit` for each.
- `CallSubscriber`: a message is a `TakenCall`; its handler returns the events that settle it.

What a handler returns is written by the settle middleware, in one atomic step a batch or call.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from anyio import Event
from faststream import AckPolicy, BaseMiddleware
from faststream._internal.broker.registrator import Registrator
from faststream._internal.endpoint.subscriber.call_item import CallsCollection
from faststream.message import StreamMessage
from faststream.redis import RedisBroker, StreamSub
from faststream.redis.subscriber.config import RedisSubscriberConfig, RedisSubscriberSpecificationConfig
from faststream.redis.subscriber.specification import StreamSubscriberSpecification
from faststream.redis.subscriber.usecases import LogicSubscriber
from pydantic import ValidationError

from schemas.call import Call
from schemas.errors import ConfigurationError, StaleLeaseError
from schemas.event import AgentEvent, encode
from streams.connection import Streams
from streams.doorbell import Doorbell
from streams.functions import Commit, Delivery, FunctionError, TenantBatch

logger = structlog.get_logger(__name__)

MAX_BACKOFF_S = 2.0


@dataclass(frozen=True, slots=True)
class LeasedRound:
    """The batches that one reader leased at once, of several tenants."""

    reader: str
    batches: list[TenantBatch]


@dataclass(frozen=True, slots=True)
class TakenCall:
    """A call, and the delivery under which this worker may write about it."""

    delivery: Delivery
    call: Call


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
        self.doorbell = Doorbell(streams.redis, streams.keys, reader)
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

    async def _get_msgs(self, *args: Any) -> None:
        shards = await self.doorbell.shards()
        leased = await self.streams.functions.lease(shards, self.reader, **self._options)
        for shard, batches in zip(shards, leased, strict=True):
            if not batches:
                self.doorbell.cold(shard)
        found = [batch for batches in leased for batch in batches]
        if found:
            await self.process_message(LeasedRound(self.reader, found))


class CallSubscriber(_ReadySubscriber):
    """Takes calls for the agents in `capacity` (agent → runs at once in this process) and runs them concurrently.

    Calls are renewed while they run. A run whose lease was lost is cancelled, for it can write nothing more.
    """

    def __init__(
        self, broker: RedisBroker, streams: Streams, worker: str, *, lease_ms: int, capacity: Mapping[str, int]
    ) -> None:
        super().__init__(broker, streams, "worker", address="hw:<shard>:<tenant>:queue:<agent>")
        self.worker = worker
        self.lease_ms = lease_ms
        self._free = dict(capacity)
        self._held: dict[asyncio.Task[None], Delivery] = {}
        self._freed = asyncio.Event()
        self._turn = 0

    async def start(self) -> None:
        await super().start()
        self.add_task(self._renew)

    async def _get_msgs(self, *args: Any) -> None:
        shards = await self.doorbell.shards()
        if self.doorbell.swept:
            await self.streams.functions.reclaim(shards)
        wants = self._wants(shards)
        if not wants:
            self._freed.clear()
            await self._freed.wait()
            return
        taken = await self.streams.functions.take(wants, self.worker, lease_ms=self.lease_ms)
        for (shard, agents), deliveries in zip(wants, taken, strict=True):
            if not deliveries and len(agents) == len(self._free):
                self.doorbell.cold(shard)
            for delivery in deliveries:
                self._start(delivery)

    def _wants(self, shards: list[int]) -> list[tuple[int, list[tuple[str, int]]]]:
        """Divides the free places among the shards; with fewer places than shards, the shards take turns."""
        turn = self._turn % len(shards)
        self._turn += 1
        ordered = shards[turn:] + shards[:turn]
        wants: dict[int, list[tuple[str, int]]] = {}
        for agent_id, free in self._free.items():
            for shard in ordered[:free]:
                wants.setdefault(shard, []).append((agent_id, max(1, free // len(shards))))
        return list(wants.items())

    def _start(self, delivery: Delivery) -> None:
        agent_id = delivery.agent_id
        self._free[agent_id] -= 1
        task = asyncio.create_task(self._run(delivery))
        self._held[task] = delivery

        def finished(task: asyncio.Task[None]) -> None:
            del self._held[task]
            self._free[agent_id] += 1
            self._freed.set()

        task.add_done_callback(finished)

    async def _run(self, delivery: Delivery) -> None:
        # Without a settle the lease ends, and the call is delivered again, to this or another worker.
        try:
            taken = TakenCall(delivery, Call.model_validate_json(delivery.body))
            await self.process_message(taken)
        except StaleLeaseError as error:
            logger.warning("lease_lost", tenant=delivery.tenant_id, call=delivery.call_id, error=str(error))
        except (ValidationError, Exception) as error:
            logger.error("call_not_settled", tenant=delivery.tenant_id, call=delivery.call_id, error=str(error))

    async def _renew(self) -> None:
        while self.running:
            await asyncio.sleep(self.lease_ms / 3000)
            held = list(self._held.items())
            kept = await self.streams.functions.renew([d for _, d in held], lease_ms=self.lease_ms)
            for (task, delivery), is_kept in zip(held, kept, strict=True):
                if not is_kept and not task.done():
                    logger.warning("lease_lost", tenant=delivery.tenant_id, call=delivery.call_id)
                    task.cancel()


def settle_middleware(streams: Streams) -> type[BaseMiddleware[Any, Any]]:
    """The middleware that writes what a handler returned."""

    class SettleMiddleware(BaseMiddleware[Any, Any]):
        async def consume_scope(self, call_next: Callable[[Any], Awaitable[Any]], msg: StreamMessage[Any]) -> None:
            result = await call_next(msg)
            message: TakenCall | LeasedRound = msg.raw_message
            if isinstance(message, TakenCall):
                await _settle(streams, message.delivery, result)
            else:
                await _commit(streams, message, result)

    return SettleMiddleware


async def _settle(streams: Streams, delivery: Delivery, events: Sequence[AgentEvent]) -> None:
    blobs: dict[str, bytes] = {}
    facts = [encode(event, blobs) for event in events]
    await streams.functions.settle(delivery, facts=facts, blobs=blobs)


async def _commit(streams: Streams, leased: LeasedRound, commits: Sequence[Commit]) -> None:
    try:
        written = await streams.functions.commit(leased.reader, list(zip(leased.batches, commits, strict=True)))
    except FunctionError:
        # Named in the log. That tenant's lease ends, and its batch is tried again; the others are written.
        return
    for batch, is_written in zip(leased.batches, written, strict=True):
        if not is_written:
            logger.warning("stale_lease", reader=leased.reader, tenant=batch.tenant_id)
