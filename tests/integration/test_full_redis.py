"""A Redis that takes no writes: nothing is half written, who waits is told why, and trimming gets it out of it (I9)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from headwater.embedded import Endpoints
from headwater.settings import Settings
from projections.db import Pool
from schemas.errors import StaleLeaseError, UnavailableError
from schemas.task import NewTask
from streams.bus import TenantEventBus
from streams.connection import Streams, open_streams
from streams.functions import Commit, Delivery, NewCall
from tests.conftest import SHARDS
from tests.deciding import Rule, submit, supervisor
from tests.integration.test_trim import LONG, archived, do, projector, trim, whole_log


@contextlib.asynccontextmanager
async def full(streams: Streams) -> AsyncIterator[None]:
    """Redis at its memory limit, as the whole session's server must not stay."""
    before = (await streams.redis.config_get("maxmemory"))["maxmemory"]
    await streams.redis.config_set("maxmemory", 1)
    try:
        yield
    finally:
        await streams.redis.config_set("maxmemory", before or 0)


@contextlib.asynccontextmanager
async def replica(streams: Streams) -> AsyncIterator[None]:
    """Redis as a read-only replica, as after a failover that a client has not noticed."""
    await streams.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        yield
    finally:
        await streams.redis.execute_command("REPLICAOF", "NO", "ONE")


@pytest.mark.parametrize(("state", "said"), [(full, "memory limit.*headwater trim"), (replica, "takes no writes now")])
async def test_a_server_without_writes_is_unavailable_and_nothing_is_half_written(
    streams: Streams, state: Callable[[Streams], contextlib.AbstractAsyncContextManager[None]], said: str
) -> None:
    tenants = ("acme", "globex")
    for tenant in tenants:
        await TenantEventBus(streams, tenant).submit(NewTask(tenant=tenant, session="s", text=LONG))
    before = {tenant: await streams.log.read(tenant) for tenant in tenants}
    async with state(streams):
        for tenant in tenants:
            with pytest.raises(UnavailableError, match=said):
                await TenantEventBus(streams, tenant).submit(NewTask(tenant=tenant, session="s", text=f"more {LONG}"))
        assert {tenant: await streams.log.read(tenant) for tenant in tenants} == before, "it can be read"
    for tenant in tenants:
        await TenantEventBus(streams, tenant).submit(NewTask(tenant=tenant, session="s", text=f"more {LONG}"))
        assert len(await streams.log.read(tenant)) == len(before[tenant]) + 1


async def test_a_full_redis_can_be_opened_and_trimmed(
    streams: Streams, pool: Pool, endpoints: Endpoints, settings: Settings
) -> None:
    async with supervisor(streams, endpoints, settings, Rule()), projector(streams, endpoints, pool, settings):
        for tenant in ("acme", "globex"):
            await do(streams, tenant, LONG)
        await archived(streams, pool, "acme", "globex")
    before = await whole_log(streams, pool, "acme")
    globex = await streams.log.read("globex")
    async with full(streams):
        # As another process that comes to help does.
        helper = await open_streams(endpoints.redis_url, shards=SHARDS)
        try:
            [trimmed] = await trim(helper, pool, "acme")
        finally:
            await helper.close()
        # The last entry stays where the decider was stopped before it said that it has read it.
        assert (trimmed.entries, trimmed.blobs) in {(3, 1), (4, 1)}
        assert len(await streams.log.read("acme")) == 4 - trimmed.entries
        assert await whole_log(streams, pool, "acme") == before
        assert await streams.log.read("globex") == globex
    async with supervisor(streams, endpoints, settings, Rule()):
        await do(streams, "acme", "work goes on")


async def begun(streams: Streams, tenant: str) -> Delivery:
    """A call of a task, given to a worker."""
    await submit(streams, tenant, "x")
    leased = await streams.functions.lease(range(SHARDS), "decider", lease_ms=9_000, max_tenants=9, max_entries=9)
    [batch] = [batch for batches in leased for batch in batches]
    await streams.functions.commit("decider", [(batch, Commit(calls=[NewCall("c1", "idle", 2, b"{}")]))])
    [[delivery]] = await streams.functions.take([(batch.shard, [("idle", 1)])], "worker", lease_ms=9_000)
    return delivery


async def test_what_was_begun_is_kept_and_written_when_there_is_room(streams: Streams) -> None:
    deliveries = [await begun(streams, tenant) for tenant in ("acme", "globex")]
    async with full(streams):
        settling = [
            asyncio.create_task(streams.functions.settle(delivery, facts=[], blobs={})) for delivery in deliveries
        ]
        lease_ends_at = [delivery.lease_ends_at for delivery in deliveries]
        assert await streams.functions.renew(deliveries, lease_ms=60_000) == [True, True]
        assert all(d.lease_ends_at > end for d, end in zip(deliveries, lease_ends_at, strict=True))
        assert await streams.functions.slots("worker", [("idle", 1, 1, 5)], lease_ms=60_000) == [(1, 4)], (
            "granted, free"
        )
        assert not any(task.done() for task in settling), "it waits, for what it has was done and paid for"
    await asyncio.gather(*settling)
    # Gone, so it cannot be settled again.
    for delivery in deliveries:
        with pytest.raises(StaleLeaseError):
            await streams.functions.settle(delivery, facts=[], blobs={})
