"""Submit, decide, run, settle, project: the whole way, in processes, on every implementation (row F5)."""

import asyncio
import contextlib
import signal
from collections import Counter
from decimal import Decimal
from pathlib import Path

from redis.asyncio.cluster import RedisCluster
from redis.crc import key_slot

from headwater.simulator import SimulatorConfig, SimulatorProcess, load_prices
from projections.db import Pool
from projections.projection import parse_position
from projections.rebuild import digests, rebuild, rebuildable
from schemas.event import AgentEvent
from schemas.task import NewTask, TaskOutcome
from streams.bus import TenantEventBus
from streams.connection import Streams
from streams.log import readable
from streams.outcomes import Outcomes
from tests.chaos.conftest import PRICES
from tests.conftest import SHARDS
from tests.contract.servers import NODES, SLOTS
from tests.processes import HeadwaterProcess, until

TENANTS = [f"tenant-{n}" for n in range(12)]
TASKS_EACH = 4


def environment(redis_url: str, database_url: str, simulator_url: str) -> dict[str, str]:
    return {
        "REDIS_URL": redis_url,
        "DATABASE_URL": database_url,
        "HEADWATER_SHARDS": str(SHARDS),
        "HEADWATER_LEASE_MS": "20000",
        "HEADWATER_LLM_BASE_URL": f"{simulator_url}/v1",
        "HEADWATER_LLM_API_KEY": "simulator",
        "HEADWATER_FAST_MODELS": "openai/sim-fast",
        "HEADWATER_REASONING_MODELS": "openai/sim-reasoning",
        "HEADWATER_PRICES": str(PRICES),
        "HEADWATER_LOG_LEVEL": "warning",
    }


async def run_all(streams: Streams) -> list[TaskOutcome]:
    outcomes = Outcomes(streams)

    async def one(tenant: str, number: int) -> TaskOutcome:
        # Some texts are so large that they are blobs.
        task = NewTask(tenant=tenant, session=f"s{number}", text=f"{number} of {tenant} " * (1 + 200 * (number % 2)))
        return await outcomes.submit_and_wait(TenantEventBus(streams, tenant), task)

    try:
        async with asyncio.timeout(90):
            return await asyncio.gather(*(one(tenant, n) for n in range(TASKS_EACH) for tenant in TENANTS))
    finally:
        await outcomes.close()


async def events(streams: Streams) -> list[AgentEvent]:
    found: list[AgentEvent] = []
    for tenant in TENANTS:
        read, unreadable = readable(tenant, await streams.log.read(tenant, limit=100_000))
        assert not unreadable
        found += read
    return found


async def projected(streams: Streams, pool: Pool) -> bool:
    rows = await pool.fetch("SELECT tenant, ms, seq FROM positions WHERE projection = 'archive'")
    there = {row["tenant"]: (row["ms"], row["seq"]) for row in rows}
    return there == {tenant: parse_position(await streams.log.end(tenant)) for tenant in TENANTS}


async def test_tasks_go_in_and_results_and_a_bill_come_out(
    streams: Streams, redis_url: str, pool: Pool, database_url: str, tmp_path: Path
) -> None:
    with SimulatorProcess(SimulatorConfig(prices=load_prices(PRICES))) as simulator, contextlib.ExitStack() as stack:
        env = environment(redis_url, database_url, simulator.url)
        worker = ["worker", "--agents", "tests.chaos.team:team"]
        started = [
            stack.enter_context(HeadwaterProcess(arguments, env, tmp_path / f"{number}.log"))
            for number, arguments in enumerate([worker, worker, ["projector"]])
        ]
        outcomes = await run_all(streams)
        await until(lambda: projected(streams, pool), "the projector read everything")
        bill = simulator.bill()
        assert [process.is_running() for process in started] == [True] * 3
        for process in started:
            process.signal(signal.SIGTERM)
        await until(lambda: _all_ended(started), "the processes ended cleanly")
        logs = "".join(process.output() for process in started)
        assert '"level": "error"' not in logs, logs[-2000:]
    assert Counter(outcome.status for outcome in outcomes) == {"completed": TASKS_EACH * len(TENANTS)}
    assert all(outcome.call_chain == ("user", "supervisor", "reader", "writer") for outcome in outcomes)
    log = await events(streams)
    assert set(Counter(event.task_id for event in log if event.body.terminal).values()) == {1}
    assert len({(event.tenant_id, event.id) for event in log}) == len(log)
    cost = await pool.fetchval("SELECT sum(cost_usd) FROM ledger")
    assert cost == Decimal(bill["total_usd"]) > 0
    assert await pool.fetchval("SELECT count(*) FROM blobs") >= 2 * len(TENANTS)
    live = {found.projection: found for found in await digests(pool)}
    await rebuild(pool, rebuildable())
    assert {found.projection: found for found in await digests(pool)} == live
    # What has ended leaves nothing open behind, on whichever node it lived.
    for tenant in TENANTS:
        prefix = streams.keys.prefix(tenant)
        assert await streams.redis.exists(f"{prefix}:state") == 0
        assert [key async for key in streams.redis.scan_iter(f"{prefix}:call:*")] == []
    assert [await streams.redis.zcard(streams.keys.leases(shard)) for shard in range(SHARDS)] == [0] * SHARDS
    if isinstance(streams.redis, RedisCluster):
        slots = [key_slot(streams.keys.log(tenant).encode()) for tenant in TENANTS]
        assert len({slot * NODES // SLOTS for slot in slots}) > 1, "the tenants were to live on several nodes"


async def _all_ended(processes: list[HeadwaterProcess]) -> bool:
    return not any(process.is_running() for process in processes)


async def test_a_node_that_lost_its_functions_gets_them_back(streams: Streams) -> None:
    if isinstance(streams.redis, RedisCluster):
        # As after a failover to an empty replica, or a new node: the others still have them.
        for node in streams.redis.get_primaries():
            await streams.redis.execute_command("FUNCTION FLUSH", "SYNC", target_nodes=[node])
            positions = await asyncio.gather(*(_submit(streams, tenant) for tenant in TENANTS))
            assert len(positions) == len(TENANTS)
    else:
        await streams.redis.function_flush("SYNC")
        await _submit(streams, "acme")


async def _submit(streams: Streams, tenant: str) -> str:
    return (await TenantEventBus(streams, tenant).submit(NewTask(tenant=tenant, session="s", text="x"))).position
