"""PostgreSQL is older than Redis' checkpoint: restored from a backup, or replaced by an empty one (I4, I9, I10).

What Redis still has is read again by itself, exactly once. What was trimmed meanwhile is named, and work goes on.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from structlog.testing import capture_logs

from headwater.app import create_app
from headwater.embedded import Endpoints
from headwater.history import History
from headwater.rewinding import rewinding
from headwater.runtime import add_projector, make_broker
from headwater.settings import Settings
from headwater.trimming import trim_logs
from projections.db import Pool, connect, create_database, drop_database, migrate
from projections.projection import START, format_position, parse_position
from projections.rebuild import digests, rebuild, rebuild_outdated, rebuildable
from projections.rewinding import Missing, missing_ranges, rewind_all
from projections.runner import PROJECTIONS, Runner
from schemas.bodies import TaskCompleted
from schemas.task import NewTask
from streams.bus import TenantEventBus
from streams.connection import Streams
from streams.functions import Commit
from tests.conftest import SHARDS
from tests.processes import HeadwaterProcess, until
from tests.projecting import READER, event, project

TENANTS = ("acme", "globex", "initech")
NAMES = [projection.name for projection in PROJECTIONS]


class Database:
    """A database that can be turned back, as restoring a backup of it does."""

    def __init__(self, admin_url: str, url: str) -> None:
        self.url = url
        self._admin_url = admin_url
        self._name = urlsplit(url).path[1:]
        self._backup = f"{self._name}_backup"
        self.pool: Pool

    async def open(self) -> Pool:
        """Connect, as a process does that starts."""
        self.pool = await connect(self.url)
        await migrate(self.pool)
        return self.pool

    async def back_up(self) -> None:
        """Keep what is in it now. Nobody else may be connected."""
        await self.pool.close()
        await self._run(f"CREATE DATABASE {self._backup} TEMPLATE {self._name}")
        await self.open()

    async def restore(self, *, keep_pool: bool = False) -> None:
        """Put the backup in its place. Who is connected is cut off; with `keep_pool`, the pool's connections too."""
        if not keep_pool:
            await self.pool.close()
        await self._run(
            f"DROP DATABASE {self._name} WITH (FORCE)", f"CREATE DATABASE {self._name} TEMPLATE {self._backup}"
        )
        if not keep_pool:
            await self.open()

    async def drop_backup(self) -> None:
        """Clean up."""
        await self._run(f"DROP DATABASE IF EXISTS {self._backup}")

    async def _run(self, *statements: str) -> None:
        admin = await asyncpg.connect(self._admin_url)
        try:
            for statement in statements:
                await admin.execute(statement)
        finally:
            await admin.close()


@pytest.fixture
async def database(endpoints: Endpoints, database_url: str) -> AsyncIterator[Database]:
    """A migrated database."""
    found = Database(endpoints.database_url, database_url)
    await found.open()
    yield found
    await found.pool.close()
    await found.drop_backup()


async def work(streams: Streams, *tenants: str, tasks: int = 2) -> None:
    """Finished tasks."""
    for tenant in tenants:
        bus = TenantEventBus(streams, tenant)
        for n in range(tasks):
            accepted = await bus.submit(NewTask(tenant=tenant, session="s1", text=f"task {n}"))
            done = TaskCompleted(result=f"of {tenant}", routed_by="rules", agent_results={})
            await bus.publish(event(done, tenant, "s1", accepted.task_id, agent="supervisor"))


async def is_archived(streams: Streams, pool: Pool, *tenants: str) -> bool:
    """Is everything that is in their logs applied?"""
    rows = await pool.fetch("SELECT tenant, ms, seq FROM positions")
    there = {row["tenant"]: (row["ms"], row["seq"]) for row in rows}
    return all([there.get(t) == parse_position(await streams.log.end(t)) for t in tenants])


async def assert_whole(streams: Streams, pool: Pool, *tenants: str) -> None:
    """Every event of the logs is archived once, and every read model is what a rebuild makes of that."""
    assert await is_archived(streams, pool, *tenants)
    for tenant in tenants:
        in_redis = [position for position, _ in await streams.log.read(tenant)]
        rows = await pool.fetch("SELECT ms, seq FROM events WHERE tenant = $1 ORDER BY ms, seq", tenant)
        assert [format_position((row["ms"], row["seq"])) for row in rows] == in_redis
        counts = await pool.fetch("SELECT DISTINCT events FROM positions WHERE tenant = $1", tenant)
        assert [row["events"] for row in counts] == [len(in_redis)]
        completed = await pool.fetchval(
            "SELECT sum(value) FROM metrics WHERE tenant = $1 AND metric = 'supervisor_tasks_total'", tenant
        )
        assert completed == Decimal(len(in_redis) // 2)
    live = await digests(pool)
    await rebuild(pool, rebuildable())
    assert await digests(pool) == live


@contextlib.asynccontextmanager
async def projector(streams: Streams, endpoints: Endpoints, pool: Pool, settings: Settings) -> AsyncIterator[None]:
    """What the projector process runs."""
    broker = make_broker(endpoints.redis_url, streams)
    runner = Runner(pool, streams.log)
    add_projector(broker, streams, runner, settings)
    async with rewinding(streams, pool, runner):
        await broker.start()
        try:
            yield
        finally:
            await broker.stop()


async def test_a_tenants_next_event_brings_what_its_restored_database_lacks(
    streams: Streams, database: Database
) -> None:
    await work(streams, "acme", "globex")
    await project(streams, database.pool)
    await database.back_up()
    await work(streams, "acme", tasks=3)
    await project(streams, database.pool)
    await database.restore()
    await work(streams, "acme", "globex", tasks=1)
    with capture_logs() as logs:
        await project(streams, database.pool)
    [line] = [line for line in logs if line["event"] == "database_behind"]
    assert line["tenant"] == "acme"
    assert "events_missing" not in [line["event"] for line in logs]
    await assert_whole(streams, database.pool, "acme", "globex")
    assert await missing_ranges(database.pool) == []


async def test_tenants_without_new_events_are_found(streams: Streams, database: Database) -> None:
    await work(streams, "acme", "globex")
    await project(streams, database.pool)
    await database.back_up()
    # One that the backup does not know, too.
    await work(streams, "acme", "initech")
    await project(streams, database.pool)
    await database.restore()
    assert sorted(await rewind_all(streams, database.pool, NAMES)) == ["acme", "initech"]
    await project(streams, database.pool)
    await assert_whole(streams, database.pool, *TENANTS)
    assert await rewind_all(streams, database.pool, NAMES) == []


async def test_a_database_that_is_turned_back_under_a_running_projector(
    streams: Streams, database: Database, endpoints: Endpoints, settings: Settings
) -> None:
    await work(streams, "acme")
    await project(streams, database.pool)
    await database.back_up()
    async with projector(streams, endpoints, database.pool, settings):
        await work(streams, "acme", "globex")
        await until(lambda: is_archived(streams, database.pool, "acme", "globex"), "all is applied")
        await database.restore(keep_pool=True)
        # It finds that out although nobody appends anything, and its pool has new connections already.
        await until(lambda: is_whole(streams, database, "acme", "globex"), "all is applied again")
    await assert_whole(streams, database.pool, "acme", "globex")


async def is_whole(streams: Streams, database: Database, *tenants: str) -> bool:
    """`is_archived`, by a connection that nobody has cut."""
    own = await connect(database.url, max_size=1)
    try:
        return await is_archived(streams, own, *tenants)
    finally:
        await own.close()


async def test_an_empty_database_is_filled_from_the_streams(
    streams: Streams, endpoints: Endpoints, database: Database, settings: Settings, tmp_path: Path
) -> None:
    await work(streams, *TENANTS, tasks=20)
    await project(streams, database.pool)
    live = await digests(database.pool)
    empty = Database(endpoints.database_url, await create_database(endpoints.database_url))
    env = {"REDIS_URL": endpoints.redis_url, "DATABASE_URL": empty.url, "HEADWATER_SHARDS": str(SHARDS)}
    process = HeadwaterProcess(["projector"], env, tmp_path / "projector.log")
    await empty.open()
    try:
        await until(lambda: is_archived(streams, empty.pool, *TENANTS), "the new database has everything")
        await assert_whole(streams, empty.pool, *TENANTS)
        assert await digests(empty.pool) == live
    finally:
        process.kill()
        await empty.pool.close()
        await drop_database(endpoints.database_url, empty.url)


async def lose(streams: Streams, database: Database) -> Missing:
    """Trim a part of acme's log that only the newer database had. Returns what is missing."""
    await work(streams, "acme", "globex")
    await project(streams, database.pool)
    await database.back_up()
    after = await streams.log.end("acme")
    await work(streams, "acme", tasks=3)
    lost = [position for position, _ in await streams.log.read("acme", after=after)][:-1]
    await project(streams, database.pool)
    await trim(streams, database.pool, "acme")
    await work(streams, "acme", tasks=1)
    before = await streams.log.oldest("acme")
    assert before is not None
    await database.restore()
    # The reader's own position is kept: the last of those that were applied.
    assert all(parse_position(after) < parse_position(p) < parse_position(before) for p in lost)
    assert len(await streams.log.read("acme")) == 1 + 2
    return Missing("acme", after, before, datetime.now(UTC))


async def trim(streams: Streams, pool: Pool, tenant: str | None = None) -> int:
    """Trim all that may be, once the decider has read everything. Returns how many entries that were."""
    while batches := [
        batch
        for found in await streams.functions.lease(
            range(SHARDS), "decider", lease_ms=60_000, max_tenants=9, max_entries=99
        )
        for batch in found
    ]:
        await streams.functions.commit("decider", [(batch, Commit()) for batch in batches])
    return sum(one.entries for one in await trim_logs(streams, pool, retention_hours=-1, tenant_id=tenant))


async def test_what_was_trimmed_is_named_once_and_the_rest_goes_on(streams: Streams, database: Database) -> None:
    expected = await lose(streams, database)
    for noticed_by in ("its next event", "looking at all tenants"):
        pool = database.pool
        with capture_logs() as logs:
            if noticed_by == "looking at all tenants":
                assert await rewind_all(streams, pool, NAMES) == ["acme"]
            await project(streams, pool)
        [line] = [line for line in logs if line["event"] == "events_missing"]
        assert (line["tenant"], line["after"], line["before"]) == ("acme", expected.after, expected.before)
        assert line["log_level"] == "error"
        [found] = await missing_ranges(pool)
        assert (found.tenant, found.after, found.before) == ("acme", expected.after, expected.before)
        assert await missing_ranges(pool, tenant_id="globex") == []
        assert await is_archived(streams, pool, "acme", "globex")
        # The archive has what was in the backup and what Redis had, and nothing twice.
        page = await History(streams.log, pool).page("acme", after=START, limit=100)
        assert len(page.entries) == 4 + 3
        assert await pool.fetchval("SELECT count(*) FROM events WHERE tenant = 'acme'") == 4 + 3
        live = await digests(pool)
        await rebuild(pool, rebuildable())
        assert await digests(pool) == live
        await database.restore()


async def test_the_missing_part_is_told_by_the_command_and_by_readiness(
    streams: Streams, database: Database, endpoints: Endpoints, settings: Settings
) -> None:
    env = {"REDIS_URL": endpoints.redis_url, "DATABASE_URL": database.url, "HEADWATER_SHARDS": str(SHARDS)}
    assert await command(env, "missing") == "nothing is missing\n"
    expected = await lose(streams, database)
    await project(streams, database.pool)
    [line] = (await command(env, "missing", "--json")).splitlines()
    told = json.loads(line)
    assert {name: told[name] for name in ("tenant", "after", "before")} == {
        name: value for name, value in asdict(expected).items() if name != "noticed_at"
    }
    shown = await command(env, "missing", "--tenant", "acme")
    assert expected.after in shown
    assert expected.before in shown
    assert await command(env, "missing", "--tenant", "globex", "--json") == ""

    app = create_app(settings, Endpoints(endpoints.redis_url, database.url))
    async with app.router.lifespan_context(app):
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://headwater")
        async with client:
            answer = await client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "checks": {"redis": True, "postgres": True}, "missing": 1}


async def test_nothing_is_trimmed_that_the_restored_database_lacks(streams: Streams, database: Database) -> None:
    await work(streams, "acme", "globex")
    await project(streams, database.pool)
    await database.back_up()
    end = await streams.log.end("acme")
    await work(streams, "acme", "globex")
    await project(streams, database.pool)
    await database.restore()
    # Redis' checkpoint is at the end of both logs. PostgreSQL has half of them.
    lacking = await streams.log.read("acme", after=end)
    assert await trim(streams, database.pool) == 2 * 3
    assert await streams.log.read("acme", after=end) == lacking
    assert sorted(await rewind_all(streams, database.pool, NAMES)) == ["acme", "globex"]
    # Also before it has read on.
    assert await trim(streams, database.pool) == 0
    await project(streams, database.pool)
    assert await missing_ranges(database.pool) == []
    assert await database.pool.fetchval("SELECT count(*) FROM events WHERE tenant = 'acme'") == 2 * 4


async def test_one_read_model_that_is_behind_the_archive_catches_up(streams: Streams, database: Database) -> None:
    pool = database.pool
    await work(streams, "acme", "globex")
    await project(streams, pool)
    await pool.execute("DELETE FROM positions WHERE projection = 'sessions' AND tenant = 'acme'")
    await pool.execute("DELETE FROM messages WHERE tenant = 'acme'")
    await pool.execute("DELETE FROM tasks WHERE tenant = 'acme'")
    await pool.execute("DELETE FROM sessions WHERE tenant = 'acme'")
    assert await rewind_all(streams, pool, NAMES) == ["acme"]
    await project(streams, pool)
    await assert_whole(streams, pool, "acme", "globex")
    # What it lacks is only in the archive: the next projector that starts makes it again from there.
    assert await trim(streams, pool) == 2 * 3
    await pool.execute("DELETE FROM positions WHERE projection = 'sessions' AND tenant = 'acme'")
    assert await rewind_all(streams, pool, NAMES) == ["acme"]
    assert await missing_ranges(pool) == []
    assert await rebuild_outdated(pool) == ["sessions"]
    await project(streams, pool)
    live = await digests(pool)
    await rebuild(pool, rebuildable())
    assert await digests(pool) == live


async def test_a_reader_is_not_turned_back_while_it_reads(streams: Streams) -> None:
    await work(streams, "acme")
    place: dict[str, Any] = {"lease_ms": 60_000, "max_tenants": 9, "max_entries": 1}
    [batch] = [b for found in await streams.functions.lease(range(SHARDS), READER, **place) for b in found]
    assert await streams.functions.commit(READER, [(batch, Commit())]) == [True]
    [batch] = [b for found in await streams.functions.lease(range(SHARDS), READER, **place) for b in found]
    assert not await streams.functions.rewind("acme", READER, start=batch.start, back_to="0-0")
    # Who holds the lease turns back with its commit.
    assert await streams.functions.commit(READER, [(batch, Commit(back_to="0-0"))]) == [True]
    [again] = [b for found in await streams.functions.lease(range(SHARDS), READER, **place) for b in found]
    assert (again.start, again.end) == ("0-0", batch.start)
    assert await streams.functions.commit(READER, [(again, Commit())]) == [True]
    # It does not stand there any more.
    assert not await streams.functions.rewind("acme", READER, start=batch.end, back_to="0-0")
    assert await streams.functions.rewind("acme", READER, start=again.end, back_to="0-0")
    assert not await streams.functions.rewind("globex", READER, start="0-0", back_to="0-0")


async def command(env: dict[str, str], *arguments: str) -> str:
    """`headwater …` as a user runs it: its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headwater", *arguments),
        env=os.environ | env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()
