"""Retries, dead letters, slots and trimming, on every implementation of the log's server (rows A1, B3, F5)."""

import asyncio

import pytest

from headwater.embedded import Endpoints
from headwater.settings import Settings
from schemas.errors import NotFoundError
from streams.backlog import read_places
from streams.connection import Streams
from streams.functions import Commit
from streams.parked import DeadLetter, DeadLetters
from tests.conftest import SHARDS
from tests.deciding import BROKEN, Rule, ask_to_cancel, submit, supervisor, until_types
from tests.processes import until

TENANTS = [f"tenant-{n}" for n in range(8)]
"""On every shard there is one of them."""


async def test_what_cannot_be_handled_is_retried_parked_and_redriven(
    streams: Streams, redis_url: str, settings: Settings
) -> None:
    assert {streams.keys.shard_of(tenant) for tenant in TENANTS} == set(range(SHARDS))
    rule, letters = Rule(), DeadLetters(streams)
    settings = settings.model_copy(update={"retry_delays_s": (0.05, 0.1)})
    async with supervisor(streams, Endpoints(redis_url, ""), settings, rule):
        stuck = [await submit(streams, tenant, BROKEN) for tenant in TENANTS]
        for accepted in stuck:
            await until_types(streams, accepted, ["task.submitted", "event.parked"])
            assert len(rule.asked_at[accepted.task_id]) == 3
            await ask_to_cancel(streams, accepted)
        rule.mended = True
        for accepted in stuck:
            [letter] = await letters.page(accepted.tenant_id)
            tries = await asyncio.gather(
                *(letters.redrive(accepted.tenant_id, letter.id) for _ in range(3)), return_exceptions=True
            )
            assert sum(isinstance(found, DeadLetter) for found in tries) == 1
            assert sum(isinstance(found, NotFoundError) for found in tries) == 2
            wanted = ["task.submitted", "event.parked", "task.cancel_requested", "event.redriven"]
            await until_types(streams, accepted, [*wanted, "task.routed", "task.cancelled"])


async def test_the_slots_of_an_agent_are_lent_over_all_shards(streams: Streams) -> None:
    async def say(worker: str, busy: int, wanted: int, lease_ms: int = 60_000) -> tuple[int, int]:
        [reply] = await streams.functions.slots(worker, [("writer", busy, wanted, 5)], lease_ms=lease_ms)
        return reply

    assert await say("one", 0, 9) == (5, 0)
    # Another worker comes: what runs is not taken away, what does not is shared.
    assert await say("two", 0, 9) == (0, 0)
    assert await say("one", 4, 9) == (4, 1)
    assert await say("two", 0, 9) == (1, 0)
    assert await say("one", 1, 9) == (3, 1)
    assert await say("two", 1, 9) == (2, 0)
    # Said again, it is the same; with nothing wanted, all is given back.
    assert await say("two", 2, 2) == (2, 0)
    assert await say("one", 0, 0) == (0, 3)
    assert await say("two", 2, 9) == (5, 0)
    # A worker that says nothing more loses its slots.
    assert await say("two", 2, 2, lease_ms=1) == (2, 3)

    async def lost() -> bool:
        return await say("three", 0, 5) == (5, 0)

    await until(lost, "the slots of the silent worker went to another")
    # When it wakes up it has none left, whatever it thinks is running.
    assert (await say("two", 2, 2))[0] == 0


@pytest.mark.parametrize("tenant", TENANTS[:4])
async def test_trimming_goes_no_further_than_the_slowest_reader(streams: Streams, tenant: str) -> None:
    positions = [(await submit(streams, tenant, str(n))).position for n in range(3)]
    assert (await streams.functions.trim(tenant, upto="9999999999999-0"))[:2] == (0, "0-0")
    for reader in ("decider", "projector"):
        leased = await streams.functions.lease(
            range(SHARDS), reader, lease_ms=60_000, max_tenants=9, max_entries=2 if reader == "decider" else 9
        )
        for batch in (batch for batches in leased for batch in batches):
            assert await streams.functions.commit(reader, [(batch, Commit())]) == [True]
    removed, bound, _ = await streams.functions.trim(tenant, upto="9999999999999-0")
    assert (removed, bound) == (1, positions[1])
    assert [position for position, _ in await streams.log.read(tenant)] == positions[1:]
    assert await streams.log.trimmed_to(tenant) == positions[0]


async def test_every_reader_is_found_and_can_be_turned_back(streams: Streams) -> None:
    positions = {tenant: (await submit(streams, tenant, "x")).position for tenant in TENANTS}
    # Names that look like those of readers, and a tenant that nobody has read.
    await streams.redis.zadd(streams.keys.ready(0, "agent:readers"), {"acme": 1})
    await read_all(streams)
    await submit(streams, "unread", "x")
    found = dict([place async for places in read_places(streams, "projector") for place in places])
    assert found == positions
    first, *others = TENANTS
    assert await streams.functions.rewind(first, "projector", start=positions[first], back_to="0-0")
    assert not await streams.functions.rewind(others[0], "projector", start="0-0", back_to="0-0")
    assert await read_all(streams) == {first: [positions[first]], "unread": [await streams.log.end("unread")]}


async def read_all(streams: Streams) -> dict[str, list[str]]:
    """Lease and commit all that is there for the projector. Returns the positions by tenant."""
    leased = await streams.functions.lease(range(SHARDS), "projector", lease_ms=60_000, max_tenants=99, max_entries=99)
    batches = [batch for batches in leased for batch in batches]
    assert all(await streams.functions.commit("projector", [(batch, Commit()) for batch in batches]))
    return {batch.tenant_id: [position for position, _ in batch.entries] for batch in batches}
