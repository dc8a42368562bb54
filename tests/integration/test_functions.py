"""Every function of the library in `streams/headwater.lua`, through its typed face, on a real Redis."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from schemas.errors import StaleLeaseError
from schemas.event import entry_fields
from schemas.ids import new_id
from streams.connection import Streams
from streams.functions import Commit, Delivery, Fields, FunctionError, NewCall, TenantBatch
from tests.conftest import SHARDS

LONG_MS = 60_000
DEADLINE_S = 10.0
AGENT = "writer"


def fact(event_type: str = "task.submitted", task: str = "task-1") -> Fields:
    return [new_id(), event_type, "1", "s1", task, "normal", "user", "user", "", "2026-01-01T00:00:00Z", "{}"]


def call(call_id: str, rank: int = 2) -> NewCall:
    return NewCall(call_id, AGENT, rank, b"{}")


def neighbours(streams: Streams, count: int) -> list[str]:
    """Tenants that live on one shard, where one could stand in another's way; in the order of their names."""
    names = (f"tenant-{n:04}" for n in itertools.count())
    return list(itertools.islice((name for name in names if streams.keys.shard_of(name) == 0), count))


async def reclaim(streams: Streams) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await streams.functions.reclaim(range(SHARDS)):
            continue


async def next_ms(streams: Streams) -> None:
    """Waits for the server's next millisecond: by it turns are told apart, and leases end."""
    _, before = await streams.redis.time()
    while (await streams.redis.time())[1] // 1000 == before // 1000:
        continue


async def append(streams: Streams, tenant: str, task: str = "task-1", **more: Any) -> tuple[str, str, str]:
    item: dict[str, Any] = {"key": new_id(), "fingerprint": "f", "ttl_ms": LONG_MS, "blobs": {}} | more
    return await streams.functions.append(tenant, task_id=task, **({"fact": fact(task=task)} | item))


async def lease(streams: Streams, reader: str = "decider", **more: Any) -> list[TenantBatch]:
    options = {"lease_ms": LONG_MS, "max_tenants": 1000, "max_entries": 1000} | more
    leased = await streams.functions.lease(range(SHARDS), reader, **options)
    return [batch for batches in leased for batch in batches]


async def commit(streams: Streams, batch: TenantBatch, commit: Commit | None = None) -> bool:
    return (await streams.functions.commit("decider", [(batch, commit or Commit())]))[0]


async def order(streams: Streams, calls: dict[str, Sequence[NewCall]]) -> None:
    """Put calls on the tenants' queues, as a decider does."""
    await asyncio.gather(*(append(streams, tenant) for tenant in calls))
    for batch in await lease(streams):
        assert await commit(streams, batch, Commit(calls=list(calls[batch.tenant_id])))


async def take(streams: Streams, count: int = 1, lease_ms: int = LONG_MS) -> list[Delivery]:
    wants = [(shard, [(AGENT, count)]) for shard in range(SHARDS)]
    taken = await streams.functions.take(wants, "worker-1", lease_ms=lease_ms)
    return [delivery for deliveries in taken for delivery in deliveries]


async def everything(streams: Streams) -> dict[Any, Any]:
    """All of Redis, byte for byte."""
    return {key: await streams.redis.dump(key) for key in await streams.redis.keys()}


async def types(streams: Streams, tenant: str) -> list[str]:
    return [entry_fields(flat)["type"] for _, flat in await streams.log.read(tenant)]


async def test_append_once_per_key(streams: Streams) -> None:
    outcome, position, task = await append(streams, "acme", key="k", task="first", blobs={"sha": b"1"})
    assert (outcome, task) == ("new", "first")
    before = await everything(streams)
    assert await append(streams, "acme", key="k", task="second", blobs={"sha2": b"2"}) == ("duplicate", position, task)
    assert await append(streams, "acme", key="k", task="third", fingerprint="g") == ("conflict", position, task)
    assert await everything(streams) == before
    assert await streams.log.blobs("acme", ["sha"]) == {"sha": b"1"}
    # A key means something within its tenant only, and for its life.
    assert (await append(streams, "globex", key="k", ttl_ms=20))[0] == "new"
    async with asyncio.timeout(DEADLINE_S):
        while (await append(streams, "globex", key="k"))[0] != "new":
            continue
    assert len(await types(streams, "globex")) == 2


async def test_append_concurrently_from_two_processes(streams: Streams, other: Streams) -> None:
    appends = [append(client, "acme", key="k", task=f"{n}") for n in range(20) for client in (streams, other)]
    outcomes = await asyncio.gather(*appends)
    assert Counter(outcome for outcome, _, _ in outcomes) == {"new": 1, "duplicate": 39}
    assert len({(position, task) for _, position, task in outcomes}) == 1
    assert len(await types(streams, "acme")) == 1


async def test_lease_gives_a_tenant_to_one_reader_at_a_time(streams: Streams, other: Streams) -> None:
    first, second = neighbours(streams, 2)
    positions = [(await append(streams, first))[1] for _ in range(3)]
    [batch] = await lease(streams, max_entries=2)
    assert (batch.tenant_id, batch.epoch, batch.start, batch.end) == (first, 1, "0-0", positions[1])
    assert [position for position, _ in batch.entries] == positions[:2]
    await asyncio.gather(append(streams, first), append(streams, second))
    # Only the newly ready tenant: what came in under a lease waits for the commit.
    assert [b.tenant_id for b in await lease(other)] == [second]
    # Another reader has positions of its own.
    assert {b.tenant_id: len(b.entries) for b in await lease(other, "projector")} == {first: 4, second: 1}
    assert await commit(streams, batch)
    [rest] = await lease(other)
    assert (rest.epoch, rest.start, len(rest.entries)) == (2, positions[1], 2)


async def test_lease_goes_round_the_tenants(streams: Streams) -> None:
    tenants = neighbours(streams, 3)
    await asyncio.gather(*(append(streams, tenant) for tenant in tenants for _ in range(4)))
    # Of one millisecond, the tenant that was just served and one that waits would be in the order of their names.
    await next_ms(streams)
    seen = []
    for _ in range(12):
        [batch] = await lease(streams, max_tenants=1, max_entries=1)
        seen.append(batch.tenant_id)
        assert await commit(streams, batch)
        await next_ms(streams)
    assert [sorted(seen[i : i + 3]) for i in range(0, 12, 3)] == [tenants] * 4


async def test_lease_reads_past_unwanted_types(streams: Streams) -> None:
    for event_type in ("agent.started", "task.submitted", "agent.started"):
        await append(streams, "acme", fact=fact(event_type))
    await append(streams, "globex", fact=fact("agent.started"))
    [batch] = await lease(streams, types=["task.submitted"])
    assert [entry_fields(flat)["type"] for _, flat in batch.entries] == ["task.submitted"]
    assert batch.end == await streams.log.end("acme")
    assert await commit(streams, batch)
    assert await lease(streams, types=["task.submitted"]) == []
    # globex had nothing wanted, and is past it without a commit. Read without a filter, it is still past it.
    assert await lease(streams) == []


async def test_a_lease_that_ended_makes_the_tenant_ready_and_its_commit_writes_nothing(streams: Streams) -> None:
    await append(streams, "acme")
    made = Commit([fact()], {"sha": b"1"}, [call("c1")], {"task-1": b"{}"}, ["task-2"], [["x", "y"]], [("task-1", 0)])
    [dead] = await lease(streams, lease_ms=1)
    await next_ms(streams)
    await next_ms(streams)
    before = await everything(streams)
    assert not await commit(streams, dead, made)  # although nobody took over
    assert await everything(streams) == before
    [alive] = await lease(streams)
    assert (dead.epoch, alive.epoch, alive.start, alive.entries) == (1, 2, dead.start, dead.entries)
    before = await everything(streams)
    assert not await commit(streams, dead, made)
    assert await everything(streams) == before
    assert await commit(streams, alive)
    assert not await commit(streams, alive, made)  # a second time
    assert len(await types(streams, "acme")) == 1


async def test_commit_is_one_step_and_jumps_over_its_own_facts(streams: Streams) -> None:
    await append(streams, "acme")
    pubsub: Any = streams.redis.pubsub(ignore_subscribe_messages=True)
    await pubsub.subscribe(streams.keys.done("acme"))
    assert await pubsub.get_message(timeout=DEADLINE_S) is None  # the subscription's own answer
    made = Commit([fact("task.routed"), fact("task.completed")], {"sha": b"1"}, [call("c1")])
    made.states, made.parked = {"open": b"{1}", "task-1": b"{2}"}, [["why", "broken"]]
    made.notify = [("task-1", 1)]
    assert await commit(streams, (await lease(streams))[0], made)
    assert await types(streams, "acme") == ["task.submitted", "task.routed", "task.completed"]
    end = await streams.log.end("acme")
    assert (await pubsub.get_message(timeout=DEADLINE_S))["data"] == f"task-1 {end}".encode()
    await pubsub.aclose()
    assert await streams.log.blobs("acme", ["sha"]) == {"sha": b"1"}
    assert await streams.redis.xlen(streams.keys.parked("acme")) == 1
    assert [(d.tenant_id, d.call_id) for d in await take(streams)] == [("acme", "c1")]
    # The decider does not get its own facts back; the projector gets all.
    assert await lease(streams) == []
    assert [len(b.entries) for b in await lease(streams, "projector")] == [3]
    await append(streams, "acme", task="open")
    [batch] = await lease(streams, states=True)
    assert (batch.start, batch.states) == (end, {"open": "{1}"})
    # This time a fact comes in between: then nothing may be jumped over.
    await append(streams, "acme", fact=fact("agent.completed"))
    assert await commit(streams, batch, Commit([fact("task.failed", "open")], ended=["open"]))
    [rest] = await lease(streams, states=True)
    assert [entry_fields(flat)["type"] for _, flat in rest.entries] == ["agent.completed", "task.failed"]
    assert (rest.start, rest.states) == (batch.end, {"task-1": "{2}"})


async def test_take_by_priority_then_age(streams: Streams) -> None:
    await order(streams, {"acme": [call("low", 3), call("old"), call("new"), call("critical", 0), call("high", 1)]})
    assert [d.call_id for d in await take(streams, 9)] == ["critical", "high", "old", "new", "low"]


async def test_one_call_does_not_wait_behind_a_thousand(streams: Streams) -> None:
    loud, quiet = neighbours(streams, 2)
    await order(streams, {loud: [call(f"c{n}", rank=0) for n in range(1000)]})
    await order(streams, {quiet: [call("only", rank=3)]})
    # I7: tenants take turns, whatever the priorities and lengths of their queues.
    assert quiet in [d.tenant_id for d in await take(streams) + await take(streams)]
    await order(streams, {quiet: [call("one"), call("two")]})
    assert Counter(d.tenant_id for d in await take(streams, 6)) == {loud: 4, quiet: 2}


async def test_a_reclaimed_call_is_delivered_again_and_its_first_delivery_is_fenced(streams: Streams) -> None:
    await order(streams, {"acme": [call("c1"), call("c2"), call("c3")]})
    dead, kept = await take(streams, 2, lease_ms=150)
    assert await streams.functions.renew([kept], lease_ms=LONG_MS) == [True]
    await reclaim(streams)
    # c1 is first in the queue again, and c2 was kept. The same worker gets no right back by its new delivery.
    alive, _ = await take(streams, 9)
    assert (dead.call_id, dead.delivery, alive.call_id, alive.delivery) == ("c1", 1, "c1", 2)
    before = await everything(streams)
    with pytest.raises(StaleLeaseError):
        await streams.functions.settle(dead, facts=[fact()], blobs={"sha": b"1"})
    with pytest.raises(StaleLeaseError):
        await streams.functions.record(dead, lease_ms=LONG_MS, key="k", facts=[fact()], blobs={})
    assert await streams.functions.renew([dead], lease_ms=LONG_MS) == [False]
    assert await everything(streams) == before
    await streams.functions.settle(alive, facts=[fact("agent.completed")], blobs={"sha": b"1"})
    assert (await types(streams, "acme"))[1:] == ["agent.completed"]
    assert await streams.log.blobs("acme", ["sha"]) == {"sha": b"1"}
    assert [len(b.entries) for b in await lease(streams)] == [1]  # the decider was woken
    # Nothing is held of a call that was settled, or whose lease ended, although nobody took it over.
    assert await streams.functions.renew([kept], lease_ms=1) == [True]
    await next_ms(streams)
    await next_ms(streams)
    assert await streams.functions.renew([alive, kept], lease_ms=LONG_MS) == [False, False]
    with pytest.raises(StaleLeaseError):
        await streams.functions.settle(kept, facts=[fact()], blobs={})


async def test_record_once_per_key(streams: Streams) -> None:
    await order(streams, {"acme": [call("c1")]})
    [first] = await take(streams)
    for key in ("0:a", "0:a", "1:b"):
        await streams.functions.record(first, lease_ms=LONG_MS, key=key, facts=[fact("x"), fact(key)], blobs={})
    # A step that is known writes nothing, and still sets the lease.
    await streams.functions.record(first, lease_ms=1, key="0:a", facts=[fact("again")], blobs={})
    assert (await types(streams, "acme"))[1:] == ["x", "0:a", "x", "1:b"]
    assert [len(b.entries) for b in await lease(streams, "projector")] == [5]
    await reclaim(streams)
    [second] = await take(streams)
    entries = await streams.log.read("acme")
    assert (first.steps, second.steps) == ({}, {"0:a": entries[2][0], "1:b": entries[4][0]})
    await streams.functions.record(second, lease_ms=LONG_MS, key="1:b", facts=[fact("again")], blobs={})
    assert await streams.log.read("acme") == entries


async def test_functions_that_the_server_lost_are_loaded_again(streams: Streams) -> None:
    await order(streams, {"acme": [call("c1")]})
    await streams.redis.function_flush("SYNC")
    assert len(await take(streams)) == 1
    await streams.redis.function_flush("SYNC")
    outcomes = await asyncio.gather(*(append(streams, f"tenant-{n}", key="k") for n in range(200)))
    assert Counter(outcome for outcome, _, _ in outcomes) == {"new": 200}


async def test_an_item_that_fails_fails_alone(streams: Streams) -> None:
    good, bad, last = neighbours(streams, 3)
    await streams.redis.set(streams.keys.log(bad), "not a stream")
    outcomes = await asyncio.gather(*(append(streams, t) for t in (good, bad, last)), return_exceptions=True)
    assert isinstance(outcomes[1], FunctionError)
    assert [o[0] for o in (outcomes[0], outcomes[2]) if isinstance(o, tuple)] == ["new", "new"]


TENANT_KEYS = ["state", "parked", "due", "call:c1", f"queue:{AGENT}"]
SHARD_KEYS = ["turn", "bell:worker", f"ready:agent:{AGENT}", "ready:projector"]


@pytest.mark.parametrize("damaged", [f"acme:{key}" for key in TENANT_KEYS] + SHARD_KEYS)
async def test_a_commit_that_fails_writes_nothing(streams: Streams, damaged: str) -> None:
    await append(streams, "acme")
    [batch] = await lease(streams)
    key = f"{streams.keys.prefixes[streams.keys.shard_of('acme')]}:{damaged}"
    await streams.redis.delete(key)
    await (
        streams.redis.set(key, "no list, hash, set or stream") if key[-4:] != "turn" else streams.redis.lpush(key, 1)
    )
    before = await everything(streams)
    made = Commit([fact()], {"sha": b"1"}, [call("c1")], {"task-1": b"{}"}, parked=[["why", "broken"]])
    with pytest.raises(FunctionError):
        await commit(streams, batch, made)
    assert await everything(streams) == before
    # With the damage gone, the same commit is written.
    await streams.redis.delete(key)
    assert await commit(streams, batch, made)


READY_KEYS = ["ready:decider", "bell:decider", "ready:projector", "bell:projector"]


@pytest.mark.parametrize("damaged", ["acme:log", *READY_KEYS])
async def test_an_append_that_fails_writes_nothing(streams: Streams, damaged: str) -> None:
    key = f"{streams.keys.prefixes[streams.keys.shard_of('acme')]}:{damaged}"
    await streams.redis.set(key, "no list, sorted set or stream")
    before = await everything(streams)
    with pytest.raises(FunctionError):
        await append(streams, "acme")
    assert await everything(streams) == before
    await streams.redis.delete(key)
    assert (await append(streams, "acme"))[0] == "new"


@pytest.mark.parametrize("how", ["record", "settle"])
@pytest.mark.parametrize("damaged", ["acme:log", *READY_KEYS[2:]])
async def test_a_call_that_cannot_be_written_about_stays_as_it_is(streams: Streams, damaged: str, how: str) -> None:
    await order(streams, {"acme": [call("c1")]})
    [held] = await take(streams)
    # Read to the end, so that the projector is to be woken by what comes.
    [batch] = await lease(streams, "projector")
    assert await streams.functions.commit("projector", [(batch, Commit())]) == [True]
    key = f"{streams.keys.prefixes[streams.keys.shard_of('acme')]}:{damaged}"
    await streams.redis.delete(key)
    await streams.redis.set(key, "no list, sorted set or stream")
    before = await everything(streams)

    async def write() -> None:
        if how == "record":
            await streams.functions.record(held, lease_ms=LONG_MS, key="0:a", facts=[fact("x")], blobs={})
        else:
            await streams.functions.settle(held, facts=[fact("x")], blobs={})

    with pytest.raises(FunctionError):
        await write()
    assert await everything(streams) == before
    await streams.redis.delete(key)
    await write()


@pytest.mark.parametrize("damaged", ["log", f"queue:{AGENT}"])
async def test_a_damaged_tenant_does_not_stop_its_neighbours(streams: Streams, damaged: str) -> None:
    bad, good = neighbours(streams, 2)
    await order(streams, {bad: [call("c1")], good: [call("c2")]})
    await asyncio.gather(append(streams, bad), append(streams, good))
    await streams.redis.delete(f"{streams.keys.prefix(bad)}:{damaged}")
    await streams.redis.set(f"{streams.keys.prefix(bad)}:{damaged}", "not what belongs here")
    assert good in [b.tenant_id for b in await lease(streams)]
    assert "c2" in [d.call_id for d in await take(streams, 9)]
