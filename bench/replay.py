"""Replay over the live archive: a tenant of a million events in PostgreSQL, its last ones on the stream only."""

import tempfile
import time
from pathlib import Path

from bench.client import headwater
from bench.figures import Figure
from bench.recorded import PER_TASK, TEAM, TENANT, recorded_task, stored, task_id_of
from bench.world import SHARDS, World
from projections.archive import Archive, keep_blobs
from projections.db import Pool, connect, create_database, drop_database, migrate
from projections.ledger import Ledger
from projections.projection import Position, Recorded, Relevant
from streams.connection import Streams

EVENTS = 1_000_000
STREAMED = 1_000
"""Tasks at the log's end that no projector has read."""
BATCH = 500
"""Tasks that are archived in one transaction."""
PRICES = "examples/research_team/prices.json"
_MOVE = """
INSERT INTO positions (projection, tenant, ms, seq, events) SELECT name, $1, $2, $3, $4
FROM unnest(ARRAY['archive', 'ledger']) name
"""


async def run(world: World) -> list[Figure]:
    """Peak memory and time of each command that reads a log again. The servers' memory is not in it."""
    tasks = (20_000 if world.quick else EVENTS) // PER_TASK
    streamed = world.count(STREAMED)
    url = await create_database(world.endpoints.database_url)
    try:
        async with world.log() as streams:
            clock = time.perf_counter()
            pool = await connect(url)
            await migrate(pool)
            await fill(streams, pool, tasks, streamed)
            await pool.close()
            filled_s = time.perf_counter() - clock
            note = f"{streamed * PER_TASK:,} of them on the stream only; made in {filled_s:.0f} s"
            figures = [Figure("events of the tenant", tasks * PER_TASK, "events", note=note)]
            env = {
                "REDIS_URL": f"{world.endpoints.redis_url}?db=0",
                "DATABASE_URL": url,
                "HEADWATER_SHARDS": f"{SHARDS}",
            }
            with tempfile.TemporaryDirectory() as directory:
                for name, words in _commands(tasks, Path(directory) / "log.jsonl").items():
                    figures += (await headwater(*words, env=env)).figures(name)
    finally:
        await drop_database(world.endpoints.database_url, url)
    return figures


def _commands(tasks: int, exported: Path) -> dict[str, list[str]]:
    tenant = ["--tenant", TENANT]
    old, new = [*tenant, "--task", task_id_of(tasks // 2)], [*tenant, "--task", task_id_of(tasks - 1)]
    return {
        "story of a task in the archive": ["replay", *old],
        "story of a task on the stream": ["replay", *new],
        "--at in the middle, with the ledger": ["replay", *old, "--at", f"{_ms(tasks // 2)}-5", "--json"],
        "--at the log's end, with the ledger": ["replay", *new, "--at", f"{_ms(tasks - 1)}-5", "--json"],
        "replay --verify --tenant": ["replay", "--verify", "--agents", TEAM, *tenant],
        "reprice --tenant": ["reprice", *tenant, "--prices", PRICES],
        "export --tenant": ["export", *tenant, "-o", str(exported)],
    }


def _ms(number: int) -> int:
    """When a task was: the first half of its entries' positions."""
    return 1_760_000_000_000 + number


async def fill(streams: Streams, pool: Pool, tasks: int, streamed: int, *, tenant: str = TENANT) -> None:
    """Make a tenant's log. Its entries are archived by the projections' own code, rows and sums of the ledger too, and
    the last ones are added to the stream as they are stored."""
    archived = tasks - streamed
    for start in range(0, archived, BATCH):
        await _archive(pool, tenant, range(start, min(start + BATCH, archived)))
    await pool.execute(_MOVE, tenant, _ms(archived - 1), PER_TASK - 1, archived * PER_TASK)
    # As autovacuum does some time after.
    await pool.execute("VACUUM ANALYZE events, ledger, blobs", timeout=600)
    key = streams.keys.log(tenant)
    for number in range(archived, tasks):
        pipeline = streams.redis.pipeline(transaction=False)
        entries, blobs = _entries(tenant, number)
        for sha, data in blobs.items():
            pipeline.set(streams.keys.blob(tenant, sha), data)
        for entry in entries:
            pipeline.xadd(key, dict(entry.fields), id=_text(entry.position))  # type: ignore[arg-type]
        await pipeline.execute()


async def _archive(pool: Pool, tenant: str, numbers: range) -> None:
    entries: list[Recorded] = []
    blobs: dict[tuple[str, str], bytes] = {}
    for number in numbers:
        made, large = _entries(tenant, number)
        entries += made
        blobs |= {(tenant, sha): data for sha, data in large.items()}
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("SET LOCAL synchronous_commit = off")
        await keep_blobs(conn, blobs)
        for projection in (Archive(), Ledger()):
            await projection.apply(conn, Relevant(entries).to(projection))


def _entries(tenant: str, number: int) -> tuple[list[Recorded], dict[str, bytes]]:
    blobs: dict[str, bytes] = {}
    events = list(recorded_task(number, blobs, tenant))
    return [Recorded(e, (_ms(number), place), stored(e, blobs)) for place, e in enumerate(events)], blobs


def _text(position: Position) -> str:
    return f"{position[0]}-{position[1]}"
