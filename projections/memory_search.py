"""Searching memories by meaning: the tenant first, always (contract row D2).

A tenant (or agent) with few memories has them compared one by one: exact, and quick. One with many is searched in the
HNSW index, which goes on (`iterative_scan`) until it has found enough of *this* tenant's; if it gives up before that,
they are compared one by one after all. So a small tenant finds its own among any number of others'.
"""

from collections.abc import Sequence
from typing import Any

import asyncpg
import orjson
import structlog

from projections.contents import read_contents
from projections.db import Connection, Pool, database_errors, tenant_connection
from projections.memory import Pgvector, find_pgvector, vector_text
from projections.reading import catch_up
from schemas.memory import MemoryEntry
from streams.log import Log

logger = structlog.get_logger(__name__)

EXACT_ROWS = 10_000
"""Up to so many memories are compared one by one."""
EF_SEARCH = 400
"""How many candidates the index keeps in view: more find more, and take longer."""
OVERFETCH = 4
MAX_SCAN_TUPLES = 200_000
CATCH_UP_S = 10.0

MINE = "tenant = $1 AND embedder = $2 AND dimensions = {dimensions} AND ($3::text IS NULL OR agent = $3)"
_SHOWN = "event_id, at, agent, session, task, text, metadata, embedder"


async def prepare_memory(pool: Pool) -> bool:
    """Make long-term memory ready; False, and one log line, where pgvector cannot be had.

    Raises:
        UnavailableError: PostgreSQL is away.
    """
    with database_errors():
        schema = await pool.fetchval("SELECT prepare_memory()")
    if schema is None:
        logger.warning(
            "long_term_memory_off",
            reason="PostgreSQL has no extension 'vector', or this login may not create it",
            remedy="install pgvector, run CREATE EXTENSION vector in this database, restart, and run "
            "'headwater rebuild memories'",
        )
    return schema is not None


class MemorySearch:
    """The memories of all tenants; every question names its tenant and sees nobody else's."""

    def __init__(self, pool: Pool, log: Log, *, exact_rows: int = EXACT_ROWS, catch_up_s: float = CATCH_UP_S) -> None:
        self._pool = pool
        self._log = log
        self._exact_rows = exact_rows
        self._catch_up_s = catch_up_s

    async def is_available(self) -> bool:
        """Can memories be searched here? Not without pgvector."""
        with database_errors():
            async with self._pool.acquire() as conn:
                return await find_pgvector(conn) is not None

    async def search_vector(
        self, tenant_id: str, vector: Sequence[float], *, embedder: str, k: int, agent_id: str | None = None
    ) -> list[MemoryEntry]:
        """The `k` memories of a tenant nearest to `vector`, among those that the same embedder made; best first.

        Nothing where pgvector is missing.

        Raises:
            UnavailableError: PostgreSQL or Redis is away, or the projections are behind the log.
        """
        await catch_up(self._pool, self._log, tenant_id, timeout_s=self._catch_up_s)
        async with tenant_connection(self._pool, tenant_id) as conn:
            pgvector = await find_pgvector(conn)
            if pgvector is None:
                return []
            mine = MINE.format(dimensions=len(vector))
            who = (tenant_id, embedder, agent_id)
            number = await conn.fetchval(
                f"SELECT count(*) FROM (SELECT FROM memories WHERE {mine} LIMIT $4) few", *who, self._exact_rows + 1
            )
            kind = pgvector.indexed_type(len(vector))
            rows: list[asyncpg.Record] = []
            if number > self._exact_rows and kind is not None:
                rows = await _search_index(conn, pgvector, mine, kind, (*who, vector_text(vector), k))
            if len(rows) < min(k, number):
                rows = await _compare_all(conn, pgvector, mine, (*who, vector_text(vector), k))
            return await _entries(conn, tenant_id, rows)


async def _search_index(
    conn: Connection, pgvector: Pgvector, mine: str, kind: str, arguments: tuple[Any, ...]
) -> list[asyncpg.Record]:
    *who, vector, k = arguments
    # Relaxed order keeps what a strict one would throw away; the order is made exact among more than were asked for.
    await conn.execute(
        "SELECT set_config('hnsw.iterative_scan', 'relaxed_order', true), set_config('hnsw.ef_search', $1, true), "
        "set_config('hnsw.max_scan_tuples', $2, true), set_config('plan_cache_mode', 'force_custom_plan', true)",
        str(EF_SEARCH),
        str(MAX_SCAN_TUPLES),
    )
    return await conn.fetch(index_query(pgvector, mine, kind), *who, vector, OVERFETCH * k, k)


def index_query(pgvector: Pgvector, mine: str, kind: str) -> str:
    """The query for the index: tenant, embedder, agent, vector, how many to fetch, how many to give."""
    distance = f"embedding::{kind} {pgvector.distance} $4::text::{kind}"
    return (
        f"WITH near AS MATERIALIZED (SELECT {_SHOWN}, {distance} AS distance FROM memories WHERE {mine} "
        f"ORDER BY {distance} LIMIT $5) SELECT {_SHOWN}, 1 - distance AS score FROM near "
        # "+ 0", or the planner takes the relaxed order for a sorted one and does not sort again.
        "ORDER BY distance + 0, event_id LIMIT $6"
    )


async def _compare_all(
    conn: Connection, pgvector: Pgvector, mine: str, arguments: tuple[Any, ...]
) -> list[asyncpg.Record]:
    # The distances are made in a step of their own, so that the planner cannot take the index of everybody's; and the
    # query's vector is read from its text once, not once a row.
    return await conn.fetch(
        f"WITH asked AS MATERIALIZED (SELECT $4::text::{pgvector.schema}.vector AS v), "
        f"mine AS MATERIALIZED (SELECT event_id, embedding {pgvector.distance} (SELECT v FROM asked) AS distance "
        f"FROM memories WHERE {mine} AND embedding IS NOT NULL), "
        "near AS (SELECT event_id, distance FROM mine ORDER BY distance, event_id LIMIT $5) "
        f"SELECT {_SHOWN}, 1 - distance AS score FROM near JOIN memories USING (event_id) WHERE tenant = $1 "
        "ORDER BY distance, event_id",
        *arguments,
    )


async def _entries(conn: Connection, tenant_id: str, rows: Sequence[asyncpg.Record]) -> list[MemoryEntry]:
    texts = await read_contents(conn, tenant_id, [orjson.loads(row["text"]) for row in rows])
    return [
        MemoryEntry(
            tenant_id=tenant_id,
            event_id=row["event_id"],
            agent_id=row["agent"],
            session_id=row["session"],
            task_id=row["task"],
            text=text,
            metadata=orjson.loads(row["metadata"]),
            at=row["at"],
            embedder=row["embedder"],
            score=max(-1.0, min(1.0, row["score"])),
        )
        for row, text in zip(rows, texts, strict=True)
    ]
