"""Ten thousand tenants with nothing to do cost one connection per reader, and next to no CPU."""

import asyncio
import contextlib
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from headwater import AgentRegistration, BaseAgent, HybridRouter, Task, TaskContext, Team
from headwater.embedded import Endpoints
from projections.db import Pool
from schemas.bodies import EventBody, TaskCompleted, TaskSubmitted
from schemas.event import AgentEvent, encode
from schemas.ids import new_id
from schemas.task import NewTask
from streams.bus import TenantEventBus
from streams.connection import Streams
from streams.functions import Commit
from streams.outcomes import Outcomes
from tests.conftest import SHARDS
from tests.processes import HeadwaterProcess, until

TENANTS = 10_000
MEASURED_S = 3.0
MAX_CPU = 0.15
"""Share of a core. Measured: under 0.01 a process; a reader that polls each tenant's stream needs a whole core."""
READERS = 3
"""The decider and the agents' calls in the worker, and the projections."""
MAX_CONNECTIONS = 4 * READERS + 4


class Echo(BaseAgent):
    """Answers at once."""

    registration = AgentRegistration(agent_id="echo", name="Echo", description="answers")

    async def execute(self, task: Task, context: TaskContext) -> str:
        """No request, no step."""
        return task.text


team = Team(agents=[Echo()], router=HybridRouter([lambda task: "echo"]))


def _fact(tenant: str, body: EventBody, **more: Any) -> list[str | bytes]:
    event = AgentEvent(
        id=new_id(),
        tenant_id=tenant,
        session_id="s",
        task_id="t",
        source_agent_id="user",
        call_chain=("user", "supervisor"),
        at=datetime.now(UTC),
        body=body,
        **more,
    )
    return encode(event, {})


async def _finished_tasks(streams: Streams, tenants: list[str]) -> None:
    """One task each, submitted and ended as producers and deciders do it."""
    await asyncio.gather(
        *(
            streams.functions.append(
                tenant,
                key="k",
                fingerprint="f",
                ttl_ms=60_000,
                task_id="t",
                fact=_fact(tenant, TaskSubmitted(task_type="task", text="hello")),
                blobs={},
            )
            for tenant in tenants
        )
    )
    done = TaskCompleted(result="hello", routed_by="rules", agent_results={})
    ended = 0
    while ended < len(tenants):
        leased = await streams.functions.lease(
            range(SHARDS), "decider", lease_ms=60_000, max_tenants=500, max_entries=1000
        )
        batches = [batch for batches in leased for batch in batches]
        commits = [(batch, Commit(facts=[_fact(batch.tenant_id, done)])) for batch in batches]
        assert all(await streams.functions.commit("decider", commits))
        ended += len(batches)


async def _redis_cpu_s(streams: Streams) -> float:
    info = await streams.redis.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


async def _blocked(streams: Streams) -> int:
    return sum("b" in client["flags"] for client in await streams.redis.client_list())


async def test_idle_tenants_cost_next_to_nothing(
    streams: Streams, endpoints: Endpoints, pool: Pool, database_url: str, tmp_path: Path
) -> None:
    tenants = [f"tenant-{n:05}" for n in range(TENANTS)]
    await _finished_tasks(streams, tenants)
    own = len(await streams.redis.client_list())
    env = {"REDIS_URL": endpoints.redis_url, "DATABASE_URL": database_url, "HEADWATER_SHARDS": str(SHARDS)}
    worker = ["worker", "--agents", f"{__name__}:team"]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(HeadwaterProcess(arguments, env, tmp_path / f"{arguments[0]}.log"))
            for arguments in (worker, ["projector"])
        ]

        async def caught_up() -> bool:
            return bool(await pool.fetchval("SELECT count(*) = $1 FROM events", 2 * TENANTS))

        await until(caught_up, "the projector read every tenant's log", deadline_s=120)

        async def idle() -> bool:
            return await _blocked(streams) == READERS

        await until(idle, "every reader waits on its one connection")
        watched = [psutil.Process(process.pid) for process in processes]
        before = [sum(process.cpu_times()[:2]) for process in watched]
        redis_before, started = await _redis_cpu_s(streams), time.monotonic()
        # What is measured is time without work, so it has to pass.
        await asyncio.sleep(MEASURED_S)
        elapsed = time.monotonic() - started
        shares = [(sum(process.cpu_times()[:2]) - was) / elapsed for process, was in zip(watched, before, strict=True)]
        shares.append((await _redis_cpu_s(streams) - redis_before) / elapsed)
        assert max(shares) < MAX_CPU, dict(zip(("worker", "projector", "redis"), shares, strict=True))
        assert len(await streams.redis.client_list()) - own <= MAX_CONNECTIONS
        # And none of them is forgotten.
        outcomes = Outcomes(streams)
        async with asyncio.timeout(30):
            for tenant in (tenants[0], tenants[TENANTS // 2], tenants[-1]):
                task = NewTask(tenant=tenant, session="s", text=tenant)
                outcome = await outcomes.submit_and_wait(TenantEventBus(streams, tenant), task)
                assert outcome.result == tenant
        await outcomes.close()
