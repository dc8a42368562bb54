"""Redis or PostgreSQL is killed and comes back on its data: work resumes by itself, nothing is lost or doubled (I9)."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from faststream.redis import RedisBroker

from handlers.agents import AgentRegistration, BaseAgent
from handlers.context import TaskContext
from handlers.llm import LlmService, RetryPolicy
from handlers.prices import PriceTable
from handlers.provider import LitellmProvider
from handlers.router import HybridRouter
from handlers.team import Team
from headwater.embedded import EmbeddedServers, Endpoints
from headwater.runtime import add_decider, add_projector, add_runner, make_broker
from headwater.settings import Settings
from projections.db import Pool, connect, migrate
from projections.projection import parse_position
from projections.rebuild import digests, rebuild, rebuildable
from projections.runner import Runner
from schemas.errors import UnavailableError
from schemas.event import AgentEvent
from schemas.task import NewTask, Task
from streams.bus import TenantEventBus
from streams.connection import Streams, open_streams
from streams.log import readable
from tests.conftest import SHARDS
from tests.processes import HeadwaterProcess, until

TENANTS = ("acme", "globex")
TASKS = 60


class Slow(BaseAgent):
    """Takes a little while, in two durable steps."""

    registration = AgentRegistration(agent_id="slow", name="Slow", description="waits", max_concurrent_tasks=8)

    async def execute(self, task: Task, context: TaskContext) -> str:
        """Two steps."""
        for n in range(2):
            await context.step(f"step {n}", wait_a_little)
        return task.text


async def wait_a_little() -> bool:
    """What the agent does."""
    await asyncio.sleep(0.05)
    return True


TEAM = Team(agents=[Slow()], router=HybridRouter(rules=[lambda task: "slow"]))


@pytest.fixture
def servers() -> Iterator[EmbeddedServers]:
    """Servers of this test's own, to be killed."""
    with tempfile.TemporaryDirectory(prefix="hw-out-") as data:
        Path(data).chmod(0o711)
        own = EmbeddedServers(Path(data))
        with own:
            yield own


@pytest.fixture
def endpoints(servers: EmbeddedServers) -> Endpoints:
    """Where they answer."""
    assert servers.redis is not None
    assert servers.postgres is not None
    return Endpoints(servers.redis.url, servers.postgres.url)


@pytest.fixture
async def streams(endpoints: Endpoints) -> AsyncIterator[Streams]:
    """An empty log on them."""
    opened = await open_streams(endpoints.redis_url, shards=SHARDS)
    yield opened
    await opened.close()


@pytest.fixture
async def pool(endpoints: Endpoints) -> AsyncIterator[Pool]:
    """A migrated database on them."""
    opened = await connect(endpoints.database_url)
    await migrate(opened)
    yield opened
    await opened.close()


@contextlib.asynccontextmanager
async def everything_runs(
    streams: Streams, pool: Pool, endpoints: Endpoints, settings: Settings
) -> AsyncIterator[RedisBroker]:
    """A decider, a worker and a projector."""
    service = LlmService(
        LitellmProvider("http://127.0.0.1:9", "none"),
        {},
        PriceTable.load(None),
        RetryPolicy(attempts_per_model=1, base_delay_ms=1, timeout_s=1.0),
    )
    broker = make_broker(endpoints.redis_url, streams)
    add_decider(broker, streams, TEAM, settings)
    add_runner(broker, streams, TEAM, service, settings, "worker")
    add_projector(broker, streams, Runner(pool, streams.log), settings)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


def kill(pid: int | None) -> None:
    """SIGKILL, as a machine that is out of memory does."""
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


async def submit_all(streams: Streams) -> set[str]:
    """Tasks of two tenants, each once, however often a submission has to be repeated."""

    async def one(number: int) -> str:
        tenant = TENANTS[number % 2]
        task = NewTask(tenant=tenant, session="s", text=f"task {number}", idempotency_key=f"k{number}")
        while True:
            try:
                return (await TenantEventBus(streams, tenant).submit(task)).task_id
            except UnavailableError:
                await asyncio.sleep(0.1)

    return set(await asyncio.gather(*(one(number) for number in range(TASKS))))


async def log_of(streams: Streams) -> list[AgentEvent]:
    events: list[AgentEvent] = []
    for tenant in TENANTS:
        found, unreadable = readable(tenant, await streams.log.read(tenant, limit=100_000))
        assert not unreadable
        events += found
    return events


async def completed(streams: Streams) -> int:
    return sum(event.type == "task.completed" for event in await log_of(streams))


async def check_log(streams: Streams, accepted: set[str]) -> None:
    """Every task ended once, and no event is there twice."""
    events = await log_of(streams)
    ends = Counter(event.task_id for event in events if event.body.terminal)
    assert ends == dict.fromkeys(accepted, 1)
    assert max(Counter(event.id for event in events).values()) == 1


async def projected(streams: Streams, pool: Pool) -> bool:
    rows = await pool.fetch("SELECT tenant, ms, seq FROM positions WHERE projection = 'archive'")
    there = {row["tenant"]: (row["ms"], row["seq"]) for row in rows}
    return there == {tenant: parse_position(await streams.log.end(tenant)) for tenant in TENANTS}


async def check_projections(streams: Streams, pool: Pool) -> None:
    """They have read everything, and a rebuild gives the same rows."""
    await until(lambda: projected(streams, pool), "the projections caught up")
    live = {found.projection: found for found in await digests(pool)}
    await rebuild(pool, rebuildable())
    assert {found.projection: found for found in await digests(pool)} == live
    assert await pool.fetchval("SELECT count(*) FROM tasks WHERE status = 'completed'") == TASKS


@pytest.mark.parametrize("lease_ms", [600, 10_000])
async def test_redis_is_killed_and_comes_back(
    servers: EmbeddedServers, streams: Streams, pool: Pool, endpoints: Endpoints, settings: Settings, lease_ms: int
) -> None:
    # With a short lease it is away for longer than that: what ran is run again. With a long one nothing is.
    settings = settings.model_copy(update={"lease_ms": lease_ms})
    assert servers.redis is not None
    async with everything_runs(streams, pool, endpoints, settings):
        submitting = asyncio.create_task(submit_all(streams))

        async def began() -> bool:
            return await completed(streams) >= 5

        await until(began, "the first tasks were completed")
        for _ in range(2):
            kill(servers.redis.process.pid)
            await asyncio.sleep(1.2)
            assert servers.revive() == ["Redis"]
            before = await completed(streams)
            assert before < TASKS, "too fast for the test to mean anything"

            async def goes_on(before: int = before) -> bool:
                return await completed(streams) > before + 3

            await until(goes_on, "work went on")
        accepted = await submitting

        async def all_done() -> bool:
            return await completed(streams) == TASKS

        await until(all_done, "all tasks were completed")
        await check_log(streams, accepted)
        await check_projections(streams, pool)
        if lease_ms == 10_000:
            assert not [event for event in await log_of(streams) if getattr(event.body, "delivery", 1) > 1]


async def test_postgres_is_killed_and_comes_back(
    servers: EmbeddedServers, streams: Streams, pool: Pool, endpoints: Endpoints, settings: Settings
) -> None:
    assert servers.postgres is not None
    async with everything_runs(streams, pool, endpoints, settings):
        submitting = asyncio.create_task(submit_all(streams))

        async def began() -> bool:
            return await pool.fetchval("SELECT count(*) FROM tasks WHERE status = 'completed'") >= 5  # type: ignore[no-any-return]

        await until(began, "the first tasks were projected")
        kill(servers.postgres.process.pid)

        # Nobody who works waits for it.
        async def all_done() -> bool:
            return await completed(streams) == TASKS

        accepted = await submitting
        await until(all_done, "all tasks were completed")
        await check_log(streams, accepted)
        assert servers.revive() == ["PostgreSQL"]
        await check_projections(streams, pool)


@pytest.fixture
def data() -> Iterator[Path]:
    """A data directory that any user can get through to."""
    with tempfile.TemporaryDirectory(prefix="hw-up-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.mark.timeout(200)
async def test_up_starts_its_servers_again(tmp_path: Path, data: Path) -> None:
    env = {"HEADWATER_DATA": str(data), "HEADWATER_SHARDS": str(SHARDS), "HEADWATER_LOG_LEVEL": "warning"}
    arguments = ["up", "--agents", "tests.integration.test_outages:TEAM", "--port", "0", "--workers", "1"]
    with HeadwaterProcess(arguments, env, tmp_path / "up.log") as up:
        node = data / "node.json"

        async def is_up() -> bool:
            assert up.is_running(), up.output()
            return node.exists()

        await until(is_up, "up is up")
        redis_url = json.loads(node.read_text())["redis_url"]
        assert (await submit_and_wait(env, "first"))["result"] == "first"
        streams = await open_streams(redis_url, shards=SHARDS)
        kill((await streams.redis.info("server"))["process_id"])
        kill(int((data / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0]))

        async def revived() -> bool:
            return up.output().count("server_revived") == 2

        await until(revived, "both servers were started again")
        shown = await submit_and_wait(env, "second")
        assert (shown["result"], shown["status"]) == ("second", "completed")
        await streams.close()


async def submit_and_wait(env: dict[str, str], text: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headwater", "submit", "-t", "acme", "-s", "s", "--wait", "--json", text),
        env=os.environ | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    found: dict[str, Any] = json.loads(out)
    return found
