"""Memory search among many rows of others: recall and latency of tenants of three sizes.

`python -m bench.memory_recall --rows 1000000 --dimensions 256`. The rows are made by SQL on an embedded PostgreSQL.
Each is a topic (one of 2,000) plus noise of the same size, as texts about the same thing are; so are the queries.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path

from headwater.embedded import EmbeddedServers
from projections.db import Pool, connect, migrate
from projections.memory import ensure_index, find_pgvector, vector_text
from projections.memory_search import MemorySearch, prepare_memory
from streams.connection import open_streams

EMBEDDER = "bench"
TOPICS = 2000
K = 10
QUERIES = 50
TENANTS = {"tiny": 20, "middling": 2_000, "large": 20_000}
"""Memories of the tenants that are asked about; all other rows belong to 1,000 others."""

_TOPICS = """
CREATE UNLOGGED TABLE topics AS
SELECT t, (SELECT array_agg(random() - 0.5)::real[]::{ns}.vector FROM generate_series(1, {d}) WHERE t > 0) AS v
FROM generate_series(1, {topics}) t
"""
_FILL = """
INSERT INTO memories
    (tenant, event_id, ms, seq, at, agent, session, task, text, metadata, embedder, dimensions, embedding)
SELECT $1::text || n % $2::int, $1 || n, n, 0, now(), 'a', 's', 't', to_json('memory ' || n), '{{}}', $3, {d},
    v OPERATOR({ns}.+)
        (SELECT array_agg(random() - 0.5)::real[]::{ns}.vector FROM generate_series(1, {d}) WHERE n > 0)
FROM generate_series(1, $4::int) n JOIN topics ON t = 1 + (n::bigint * 7919) % {topics}
"""


async def main(rows: int, dimensions: int, database_url: str, redis_url: str) -> None:
    """Fill, index, ask."""
    random.seed(1)
    pool = await connect(database_url)
    streams = await open_streams(redis_url, shards=1)
    await migrate(pool)
    assert await prepare_memory(pool)
    async with pool.acquire() as conn, conn.transaction():
        pgvector = await find_pgvector(conn)
        assert pgvector is not None
        names = {"ns": pgvector.schema, "d": dimensions, "topics": TOPICS}
        await conn.execute("SELECT setseed(0.5)")
        await conn.execute(_TOPICS.format(**names))
        began = time.monotonic()
        for tenant, number in TENANTS.items():
            await conn.execute(_FILL.format(**names), tenant, 1, EMBEDDER, number)
        await conn.execute(_FILL.format(**names), "other", 1000, EMBEDDER, rows - sum(TENANTS.values()), timeout=None)
        print(f"filled {rows:,} rows in {time.monotonic() - began:.0f} s", flush=True)
        began = time.monotonic()
        await conn.execute("SET LOCAL maintenance_work_mem = '3GB'; SET LOCAL max_parallel_maintenance_workers = 0")
        await ensure_index(conn, pgvector, dimensions)
        print(f"indexed in {time.monotonic() - began:.0f} s", flush=True)
    await pool.execute("ANALYZE memories", timeout=None)
    search = MemorySearch(pool, streams.log)
    print("| tenant | its memories | recall@10 | median | slowest |")
    print("|---|---|---|---|---|")
    for tenant, number in TENANTS.items():
        print(await _measure(pool, search, pgvector.schema, f"{tenant}0", number), flush=True)
    await pool.close()
    await streams.close()


async def _measure(pool: Pool, search: MemorySearch, schema: str, tenant: str, number: int) -> str:
    hits, took_ms = 0, []
    for _ in range(QUERIES):
        topic = await pool.fetchval("SELECT v::text FROM topics WHERE t = $1", random.randint(1, TOPICS))
        query = [float(x) + random.random() - 0.5 for x in topic.strip("[]").split(",")]
        began = time.perf_counter()
        found = await search.search_vector(tenant, query, embedder=EMBEDDER, k=K)
        took_ms.append((time.perf_counter() - began) * 1000)
        exact = await pool.fetch(
            "WITH mine AS MATERIALIZED (SELECT event_id, embedding FROM memories WHERE tenant = $1) "
            f"SELECT event_id FROM mine ORDER BY embedding OPERATOR({schema}.<=>) $2::text::{schema}.vector LIMIT $3",
            tenant,
            vector_text(query),
            K,
        )
        hits += len({entry.event_id for entry in found} & {row["event_id"] for row in exact})
    recall = hits / (QUERIES * K)
    return f"| {tenant} | {number:,} | {recall:.3f} | {statistics.median(took_ms):.1f} ms | {max(took_ms):.1f} ms |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hw-bench-") as directory:
        Path(directory).chmod(0o711)
        with EmbeddedServers(Path(directory)) as servers:
            asyncio.run(main(options.rows, options.dimensions, servers.database_url, servers.redis_url))
