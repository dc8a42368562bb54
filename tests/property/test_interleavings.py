"""Any order of the log's functions, with crashes, repeats and leases that end, checked against a small model:
nothing is lost, nothing is doubled, and who lost a lease writes nothing (I1, I2), checked against a small model.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from headwater.embedded import Endpoints
from schemas.errors import StaleLeaseError
from schemas.event import entry_fields
from schemas.ids import derived_id, new_id
from streams.connection import Streams, open_streams
from streams.functions import Commit, Delivery, Fields, NewCall, TenantBatch

SHARDS = 2
LEASE_MS = 600_000
"""Leases end when the model says so: by setting their end, not by waiting."""
TENANTS = ("acme", "globex", "initech")
READERS = ("decider", "projector")
AGENT = "writer"
EXAMPLES = 120
MAX_ROUNDS = 200


def fact(event_id: str, event_type: str, task: str) -> Fields:
    return [event_id, event_type, "1", "s", task, "normal", "user", "user", "", "2026-01-01T00:00:00Z", "{}"]


class Model:
    """What must be true of the log, and the processes that work on it. Every method is one step of one of them."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.accepted: dict[tuple[str, str], str] = {}
        """(tenant, idempotency key) → task"""
        self.leases: dict[tuple[str, str], TenantBatch] = {}
        """(reader, tenant) → the batch whose lease is good"""
        self.checkpoints: dict[tuple[str, str], str] = {}
        self.batches: list[tuple[str, TenantBatch]] = []
        """All that were ever leased, by living processes and dead ones."""
        self.good: dict[str, Delivery] = {}
        """Call → its delivery whose lease is good"""
        self.numbers: Counter[str] = Counter()
        self.settled: set[str] = set()
        self.deliveries: list[Delivery] = []
        self.recorded: dict[tuple[str, str], str] = {}
        self.projected: dict[str, list[str]] = {tenant: [] for tenant in TENANTS}

    async def append(self, tenant: int, key: int, other: int) -> None:
        """A producer submits under one of a few keys; sometimes another task under a key that was used."""
        name, k = TENANTS[tenant % len(TENANTS)], f"k{key % 4}"
        task = derived_id(name, k, new_id())
        fingerprint = "other" if other % 5 == 0 else "same"
        outcome, _, found = await self.streams.functions.append(
            name,
            key=k,
            fingerprint=fingerprint,
            ttl_ms=LEASE_MS,
            task_id=task,
            fact=fact(derived_id(task, "submitted"), "task.submitted", task),
            blobs={},
        )
        known = self.accepted.get((name, k))
        assert (outcome == "new") == (known is None)
        assert found == (known or task)
        self.accepted.setdefault((name, k), found)

    async def lease(self, reader: int, tenants: int, entries: int) -> None:
        """A reader leases what is ready."""
        name = READERS[reader % 2]
        leased = await self.streams.functions.lease(
            range(SHARDS),
            name,
            lease_ms=LEASE_MS,
            max_tenants=1 + tenants % 3,
            max_entries=1 + entries % 4,
            states=True,
        )
        for batch in [batch for batches in leased for batch in batches]:
            place = (name, batch.tenant_id)
            assert place not in self.leases, "two readers hold one tenant"
            assert batch.start == self.checkpoints.get(place, "0-0")
            self.leases[place] = batch
            self.batches.append((name, batch))

    async def commit(self, which: int, *_: int) -> None:
        """Somebody commits a batch: of a good lease, of one that ended, or once more."""
        if not self.batches:
            return
        reader, batch = _recent(self.batches, which)
        place = (reader, batch.tenant_id)
        made = _decisions(batch) if reader == "decider" else Commit()
        before = await self.streams.log.end(batch.tenant_id)
        [written] = await self.streams.functions.commit(reader, [(batch, made)])
        assert written == (self.leases.get(place) is batch)
        after = await self.streams.log.end(batch.tenant_id)
        if not written:
            assert after == before
            return
        del self.leases[place]
        redis: Any = self.streams.redis
        self.checkpoints[place] = (await redis.hget(self.streams.keys.readers(batch.tenant_id), reader)).decode()
        if reader == "projector":
            self.projected[batch.tenant_id] += [position for position, _ in batch.entries]

    async def supervise(self, *_: int) -> None:
        """The decider leases and commits what is ready, as it does when nothing goes wrong."""
        known = len(self.batches)
        await self.lease(0, 2, 3)
        for batch in range(len(self.batches) - known):
            await self.commit(batch)

    async def take(self, worker: int, count: int, *_: int) -> None:
        """A worker takes calls."""
        wants = [(shard, [(AGENT, 1 + count % 3)]) for shard in range(SHARDS)]
        taken = await self.streams.functions.take(wants, f"w{worker % 2}", lease_ms=LEASE_MS)
        for delivery in [delivery for deliveries in taken for delivery in deliveries]:
            call = delivery.call_id
            assert call not in self.good, "a call is run twice at once"
            assert call not in self.settled
            self.numbers[call] += 1
            assert delivery.delivery == self.numbers[call]
            assert delivery.steps == {key: p for (c, key), p in self.recorded.items() if c == call}
            self.good[call] = delivery
            self.deliveries.append(delivery)

    async def record(self, which: int, key: int, *_: int) -> None:
        """A worker, alive or dead, records a step."""
        if not self.deliveries:
            return
        delivery, name = _recent(self.deliveries, which), f"{key % 3}.0"
        step = (delivery.call_id, name)
        facts = [fact(derived_id(delivery.call_id, name, delivery.delivery), "step.recorded", "t")]
        try:
            position = await self.streams.functions.record(delivery, lease_ms=LEASE_MS, key=name, facts=facts, blobs={})
        except StaleLeaseError:
            assert self.good.get(delivery.call_id) is not delivery
        else:
            assert self.good.get(delivery.call_id) is delivery
            # Recorded twice, it is the first one that counts.
            assert self.recorded.setdefault(step, position) == position

    async def settle(self, which: int, *_: int) -> None:
        """A worker, alive or dead, settles a call."""
        if not self.deliveries:
            return
        delivery = _recent(self.deliveries, which)
        task = delivery.body
        facts = [fact(derived_id(delivery.call_id, "completed", delivery.delivery), "agent.completed", task)]
        try:
            await self.streams.functions.settle(delivery, facts=facts, blobs={})
        except StaleLeaseError:
            assert self.good.get(delivery.call_id) is not delivery
        else:
            assert self.good.pop(delivery.call_id) is delivery
            self.settled.add(delivery.call_id)

    async def renew(self, which: int, *_: int) -> None:
        """A worker, alive or dead, renews."""
        if self.deliveries:
            delivery = _recent(self.deliveries, which)
            [kept] = await self.streams.functions.renew([delivery], lease_ms=LEASE_MS)
            assert kept == (self.good.get(delivery.call_id) is delivery)

    async def reclaim(self, *_: int) -> None:
        """A sweep: calls whose lease ended wait again."""
        await self.streams.functions.reclaim(range(SHARDS))

    async def leases_end(self, *_: int) -> None:
        """So much time passes that every lease ends: their holders died, or were stopped."""
        redis: Any = self.streams.redis
        for shard in range(SHARDS):
            for name in (
                *(self.streams.keys.ready(shard, reader) for reader in READERS),
                self.streams.keys.leases(shard),
            ):
                for member in await redis.zrange(name, 0, -1):
                    await redis.zadd(name, {member: 1})
        self.leases.clear()
        self.good.clear()

    async def take_over(self, worker: int, count: int, *_: int) -> None:
        """Workers died or slept, and their calls go to others, or to themselves once more."""
        await self.leases_end()
        await self.reclaim()
        await self.take(worker, count)

    async def drain(self) -> None:
        """Everybody works on until there is nothing left to do."""
        await self.leases_end()
        for _ in range(MAX_ROUNDS):
            before = (len(self.batches), len(self.deliveries))
            await self.reclaim()
            for reader in range(len(READERS)):
                await self.lease(reader, 2, 3)
            for place in range(len(self.batches) - before[0]):
                await self.commit(place)
            await self.take(0, 2)
            for place in range(len(self.deliveries) - before[1]):
                await self.settle(place)
            if before == (len(self.batches), len(self.deliveries)):
                return
        raise AssertionError("there is no end to it")

    async def check(self) -> None:
        """Every accepted task went all its way once, and nothing is left behind."""
        for tenant in TENANTS:
            entries = await self.streams.log.read(tenant, limit=100_000)
            fields = [entry_fields(flat) for _, flat in entries]
            tasks = sorted(task for (name, _), task in self.accepted.items() if name == tenant)
            for event_type in ("task.submitted", "task.routed", "agent.completed", "task.completed"):
                assert sorted(f["task"] for f in fields if f["type"] == event_type) == tasks, event_type
            assert max(Counter(f["id"] for f in fields).values(), default=1) == 1
            # The projections saw the whole log, in order, each entry once.
            assert self.projected[tenant] == [position for position, _ in entries]
            prefix = self.streams.keys.prefix(tenant)
            redis: Any = self.streams.redis
            assert await redis.hgetall(f"{prefix}:state") == {}
            assert await redis.keys(f"{prefix.replace('{', '?').replace('}', '?')}:call:*") == []
            assert await redis.zcard(f"{prefix}:queue:{AGENT}") == 0
        for shard in range(SHARDS):
            assert await self.streams.redis.zcard(self.streams.keys.leases(shard)) == 0


T = TypeVar("T")


def _recent(items: list[T], back: int) -> T:
    """One of the items, counted from the newest: those that are not long dead."""
    return items[-1 - back % len(items)]


def _decisions(batch: TenantBatch) -> Commit:
    """A small supervisor: a submitted task is routed, a completed run completes it; states show what is open."""
    made = Commit()
    states = dict(batch.states)
    for _, flat in batch.entries:
        fields = entry_fields(flat)
        task = fields["task"]
        if fields["type"] == "task.submitted" and task not in states:
            call = derived_id(fields["id"], "call")
            states[task] = call
            made.facts.append(fact(derived_id(fields["id"], 0), "task.routed", task))
            made.calls.append(NewCall(call, AGENT, 2, task.encode()))
        elif fields["type"] == "agent.completed" and task in states:
            del states[task]
            made.facts.append(fact(derived_id(fields["id"], 0), "task.completed", task))
            made.notify.append((task, len(made.facts) - 1))
            made.ended.append(task)
    made.states = {task: call.encode() for task, call in states.items()}
    return made


STEPS: list[Callable[..., Coroutine[Any, Any, None]]] = [
    Model.append,
    Model.append,
    Model.supervise,
    Model.supervise,
    Model.lease,
    Model.lease,
    Model.commit,
    Model.commit,
    Model.take,
    Model.take,
    Model.record,
    Model.settle,
    Model.settle,
    Model.renew,
    Model.take_over,
    Model.reclaim,
    Model.leases_end,
]
numbers = st.integers(0, 11)
steps = st.lists(st.tuples(st.sampled_from(STEPS), numbers, numbers, numbers), min_size=15, max_size=80)


@pytest.fixture
def runner() -> Any:
    with asyncio.Runner() as one:
        yield one


def test_nothing_is_lost_and_nothing_doubled(endpoints: Endpoints, runner: asyncio.Runner) -> None:
    async def start() -> Streams:
        async with Redis.from_url(endpoints.redis_url) as client:
            await client.flushall()
        return await open_streams(endpoints.redis_url, shards=SHARDS)

    streams = runner.run(start())
    settled = 0

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(steps)
    def play(script: list[tuple[Callable[..., Coroutine[Any, Any, None]], int, int, int]]) -> None:
        async def run() -> None:
            nonlocal settled
            await streams.redis.flushall()
            model = Model(streams)
            for step, *arguments in script:
                await step(model, *arguments)
            await model.drain()
            await model.check()
            settled += len(model.settled)

        runner.run(run())

    play()

    async def end() -> None:
        await streams.redis.flushall()
        await streams.close()

    runner.run(end())
    # It was about something: tasks went all their way. About twice as many as examples do; far fewer would be nothing.
    assert settled > EXAMPLES // 2
