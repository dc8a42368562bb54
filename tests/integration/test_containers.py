"""The servers that the suite runs on: containers where a real engine can run, the embedded ones elsewhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.containers import serving
from tests.engine import docker_engine

ROOT = Path(__file__).parents[2]
PROBE = """
import asyncio, json, sys
from headwater.settings import Settings
from projections.db import connect, migrate
from projections.memory_search import prepare_memory
from projections.queries import positions_of
from projections.runner import Runner
from schemas.task import NewTask
from streams.bus import TenantEventBus
from streams.connection import open_streams
from tests.containers import serving
from tests.projecting import project

async def main(found):
    streams = await open_streams(found.redis_url, shards=4)
    pool = await connect(found.database_url)
    await migrate(pool)
    await prepare_memory(pool)
    for tenant in ("acme", "globex"):
        await TenantEventBus(streams, tenant).submit(NewTask(tenant=tenant, session="s", text="hello"))
    await project(streams, pool)
    rows = await pool.fetch("SELECT tenant, count(*) AS n FROM tasks GROUP BY tenant ORDER BY tenant")
    vector = await pool.fetchval("SELECT count(*) FROM pg_extension WHERE extname = 'vector'")
    print(json.dumps([found.redis_url, found.database_url, [[r["tenant"], r["n"]] for r in rows], vector]))
    await pool.close()
    await streams.close()

with serving() as found:
    asyncio.run(main(found))
"""


def probe(**environment: str) -> tuple[str, str]:
    """Submit and project a task of two tenants on the servers that a test session would get. Returns their URLs."""
    kept = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "DATABASE_URL", "DOCKER_HOST")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    redis_url, database_url, tenants, vector = json.loads(done.stdout.splitlines()[-1])
    assert tenants == [["acme", 1], ["globex", 1]]
    assert vector == 1
    return redis_url, database_url


def test_containers_of_a_real_engine_serve_where_one_can_run() -> None:
    with docker_engine() as url:
        if url is None:
            # Where none can, the next test says what serves instead.
            return
        more = {"TESTCONTAINERS_RYUK_DISABLED": "true", "TESTCONTAINERS_CONNECTION_MODE": "docker_host"}
        redis_url, database_url = probe(DOCKER_HOST=url, **more)
        assert redis_url.startswith("redis://"), "in a container"
        assert "@localhost:" in database_url or "@127.0.0.1:" in database_url


def test_where_no_engine_answers_the_embedded_servers_serve() -> None:
    redis_url, database_url = probe(DOCKER_HOST="unix:///nowhere/docker.sock")
    assert redis_url.startswith("unix://"), "embedded"
    assert "host=" in database_url


def test_given_servers_come_first() -> None:
    with serving({"REDIS_URL": "redis://r", "DATABASE_URL": "postgresql://d", "DOCKER_HOST": "unix:///x"}) as found:
        assert (found.redis_url, found.database_url) == ("redis://r", "postgresql://d")
