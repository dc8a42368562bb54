"""Questions people ask of the read models. A tenant's questions go through `tenant_connection`, so that row-level
security answers for them; those across tenants are an administrator's."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

import asyncpg
import orjson

from projections.db import Connection, Pool, database_errors, tenant_connection
from projections.projection import START, Position
from schemas.content import Json, blob_of, unseal
from schemas.errors import InvalidInputError
from schemas.event import FIELDS
from schemas.money import plain

CostKey = Literal["agent", "model", "session", "task", "day", "tenant"]
_COST_KEYS: dict[str, str] = {
    "agent": "agent",
    "model": "model",
    "session": "session",
    "task": "task",
    "day": "to_char(at, 'YYYY-MM-DD')",
    "tenant": "tenant",
}
_TASK_COSTS = """
SELECT coalesce(sum(cost_usd), 0) AS cost, count(*) AS attempts, count(*) FILTER (WHERE cost_status = 'unpriced')
    AS unpriced, count(*) FILTER (WHERE cost_status = 'unknown') AS unknown FROM ledger WHERE tenant = $1
"""


@dataclass(frozen=True, slots=True)
class CostRow:
    """Costs of one group, such as one agent. `unpriced` and `unknown` attempts are not in `cost_usd`."""

    key: str
    cost_usd: Decimal
    input_uncached: int
    cache_read: int
    cache_write: int
    output_text: int
    output_reasoning: int
    attempts: int
    failed: int
    unpriced: int
    unknown: int

    @property
    def tokens(self) -> int:
        """Tokens of all classes."""
        return self.input_uncached + self.cache_read + self.cache_write + self.output_text + self.output_reasoning


async def task(pool: Pool, tenant_id: str, task_id: str) -> dict[str, Any] | None:
    """A task with its outcome and exact cost, or None."""
    async with tenant_connection(pool, tenant_id) as conn:
        row = await conn.fetchrow("SELECT * FROM tasks WHERE tenant = $1 AND task = $2", tenant_id, task_id)
        if row is None:
            return None
        costs = await conn.fetchrow(_TASK_COSTS + "AND task = $2", tenant_id, task_id)
        assert costs is not None
        return await _task(conn, row) | _costs(costs)


async def session(pool: Pool, tenant_id: str, session_id: str) -> dict[str, Any] | None:
    """A session with its messages and tasks, or None."""
    async with tenant_connection(pool, tenant_id) as conn:
        key = (tenant_id, session_id)
        row = await conn.fetchrow("SELECT * FROM sessions WHERE tenant = $1 AND session = $2", *key)
        if row is None:
            return None
        messages = await conn.fetch("SELECT * FROM messages WHERE tenant = $1 AND session = $2 ORDER BY ms, seq", *key)
        tasks = await conn.fetch(
            "SELECT task, status, type, submitted_at, ended_at FROM tasks WHERE tenant = $1 AND session = $2 "
            "ORDER BY submitted_at, task",
            *key,
        )
        costs = await conn.fetchrow(_TASK_COSTS + "AND session = $2", *key)
        assert costs is not None
        return {
            "tenant": tenant_id,
            "session": session_id,
            "first_at": _iso(row["first_at"]),
            "last_at": _iso(row["last_at"]),
            "messages": [
                {
                    "position": f"{m['ms']}-{m['seq']}",
                    "role": m["role"],
                    "task": m["task"],
                    "content": await _content(conn, tenant_id, orjson.loads(m["content"])),
                }
                for m in messages
            ],
            "tasks": [
                {**dict(t), "submitted_at": _iso(t["submitted_at"]), "ended_at": _iso(t["ended_at"])} for t in tasks
            ],
        } | _costs(costs)


async def costs(
    pool: Pool, *, by: CostKey, tenant_id: str | None = None, agent_id: str | None = None, days: int = 30
) -> list[CostRow]:
    """Costs of the last `days` days by agent, model, session, task, day or tenant, the dearest first.

    With `tenant_id`, what that tenant may see; without it, an administrator's view over all tenants.
    """
    if by not in _COST_KEYS:
        raise InvalidInputError(f"costs cannot be grouped by {by!r}: choose from {', '.join(_COST_KEYS)}")
    query = f"""
        SELECT {_COST_KEYS[by]} AS key, coalesce(sum(cost_usd), 0) AS cost_usd,
            sum(input_uncached)::bigint AS input_uncached, sum(cache_read)::bigint AS cache_read,
            sum(cache_write)::bigint AS cache_write, sum(output_text)::bigint AS output_text,
            sum(output_reasoning)::bigint AS output_reasoning, count(*) AS attempts,
            count(*) FILTER (WHERE status <> 'ok') AS failed,
            count(*) FILTER (WHERE cost_status = 'unpriced') AS unpriced,
            count(*) FILTER (WHERE cost_status = 'unknown') AS unknown
        FROM ledger
        WHERE at >= now() - make_interval(days => $1) AND ($2::text IS NULL OR tenant = $2)
            AND ($3::text IS NULL OR agent = $3)
        GROUP BY 1 ORDER BY 2 DESC, 1
    """
    if tenant_id is not None:
        async with tenant_connection(pool, tenant_id) as conn:
            rows = await conn.fetch(query, days, tenant_id, agent_id)
    else:
        with database_errors():
            rows = await pool.fetch(query, days, None, agent_id)
    return [CostRow(**row) for row in rows]


async def events(
    pool: Pool,
    tenant_id: str,
    *,
    session_id: str | None = None,
    task_id: str | None = None,
    after: Position = START,
    limit: int = 1000,
) -> list[tuple[str, dict[str, str]]]:
    """Archived entries of a tenant in log order, as (position, fields)."""
    async with tenant_connection(pool, tenant_id) as conn:
        rows = await conn.fetch(
            "SELECT * FROM events WHERE tenant = $1 AND (ms, seq) > ($2, $3) AND ($4::text IS NULL OR session = $4) "
            "AND ($5::text IS NULL OR task = $5) ORDER BY ms, seq LIMIT $6",
            tenant_id,
            *after,
            session_id,
            task_id,
            limit,
        )
    return [(f"{row['ms']}-{row['seq']}", {name: row[name] for name in FIELDS}) for row in rows]


async def blob(pool: Pool, tenant_id: str, sha256: str) -> bytes | None:
    """A large content of the tenant, from the archive."""
    async with tenant_connection(pool, tenant_id) as conn:
        data: bytes | None = await conn.fetchval(
            "SELECT data FROM blobs WHERE tenant = $1 AND sha256 = $2", tenant_id, sha256
        )
        return data


@dataclass(frozen=True, slots=True)
class LedgerTotals:
    """The whole ledger in one line, across tenants."""

    attempts: int
    priced: int
    cost_usd: Decimal
    unpriced: int
    unknown: int


async def ledger_totals(pool: Pool) -> LedgerTotals:
    """An administrator's total over all tenants."""
    with database_errors():
        row = await pool.fetchrow(
            "SELECT count(*) AS attempts, count(*) FILTER (WHERE cost_status = 'priced') AS priced, "
            "coalesce(sum(cost_usd), 0) AS cost_usd, count(*) FILTER (WHERE cost_status = 'unpriced') AS unpriced, "
            "count(*) FILTER (WHERE cost_status = 'unknown') AS unknown FROM ledger"
        )
    assert row is not None
    return LedgerTotals(**row)


async def position(pool: Pool, tenant_id: str) -> Position:
    """How far every projection has read the tenant's log."""
    async with tenant_connection(pool, tenant_id) as conn:
        row = await conn.fetchrow("SELECT ms, seq FROM positions WHERE tenant = $1 ORDER BY ms, seq LIMIT 1", tenant_id)
    return START if row is None else (row["ms"], row["seq"])


async def unfinished_tasks(pool: Pool) -> int:
    """How many tasks have not ended yet, across tenants: an administrator's number."""
    with database_errors():
        return int(await pool.fetchval("SELECT count(*) FROM tasks WHERE ended_at IS NULL"))


async def _task(conn: Connection, row: asyncpg.Record) -> dict[str, Any]:
    tenant_id = row["tenant"]
    agent_results = _loads(row["agent_results"]) or {}
    return {
        "tenant": tenant_id,
        "session": row["session"],
        "task": row["task"],
        "type": row["type"],
        "priority": row["priority"],
        "status": row["status"],
        "result": await _content(conn, tenant_id, _loads(row["result"])),
        "call_chain": _loads(row["call_chain"]),
        "routed_by": row["routed_by"],
        "decomposed": row["decomposed"],
        "agent_results": {k: await _content(conn, tenant_id, v) for k, v in agent_results.items()},
        "error": _loads(row["error"]),
        "errors": _loads(row["errors"]) or [],
        "submitted_at": _iso(row["submitted_at"]),
        "ended_at": _iso(row["ended_at"]),
    }


def _costs(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "cost_usd": plain(row["cost"]),
        "llm_attempts": row["attempts"],
        "unpriced_attempts": row["unpriced"],
        "unknown_attempts": row["unknown"],
    }


async def _content(conn: Connection, tenant_id: str, value: Json) -> Json:
    sha = blob_of(value)
    if sha is None:
        return unseal(value)
    data = await conn.fetchval("SELECT data FROM blobs WHERE tenant = $1 AND sha256 = $2", tenant_id, sha)
    return value if data is None else unseal(orjson.loads(data))


def _loads(text: str | None) -> Json:
    return None if text is None else orjson.loads(text)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
