"""How much waits, read from every implementation: counted over all shards, whichever node they are on (row E4)."""

from redis.asyncio.cluster import RedisCluster

from schemas.ids import new_id
from schemas.task import NewTask
from streams.backlog import READERS, calls, oldest_unread_s, reader_backlog
from streams.bus import TenantEventBus
from streams.connection import Streams
from streams.functions import Commit, NewCall
from streams.memory import node_memory
from tests.conftest import SHARDS

TENANTS = [f"tenant-{n}" for n in range(9)]
LONG_MS = 60_000


async def test_lag_and_calls_are_summed_over_the_shards(streams: Streams) -> None:
    assert await oldest_unread_s(streams, []) == 0
    for tenant in TENANTS:
        await TenantEventBus(streams, tenant).submit(NewTask(tenant=tenant, session="s", text="hello"))
    for reader in READERS:
        found = await reader_backlog(streams, reader)
        assert (found.tenants, sorted(tenant for tenant, _ in found.places)) == (len(TENANTS), TENANTS)
        assert 0 <= await oldest_unread_s(streams, found.places) < LONG_MS
    leased = await streams.functions.lease(range(SHARDS), "decider", lease_ms=LONG_MS, max_tenants=100, max_entries=100)
    order = [(b, Commit(calls=[NewCall(new_id(), "writer", 2, b"{}")])) for shard in leased for b in shard]
    assert all(await streams.functions.commit("decider", order))
    assert await calls(streams, ["writer", "nobody"]) == await calls(streams, ["writer"])
    found_calls = await calls(streams, ["writer"])
    assert (found_calls.queued, found_calls.running) == (len(TENANTS), 0)
    assert (await reader_backlog(streams, "decider")).tenants == 0


async def test_every_node_says_how_full_it_is(streams: Streams) -> None:
    found = await node_memory(streams)
    assert len(found) == (3 if isinstance(streams.redis, RedisCluster) else 1)
    assert len({one.node for one in found}) == len(found)
    assert all(one.used_bytes > 0 <= one.limit_bytes for one in found)
