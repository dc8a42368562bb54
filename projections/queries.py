"""Questions people ask of the read models. A tenant's questions go through `tenant_connection`, so that row-level
security answers for them; those across tenants are an administrator's."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import asyncpg
import orjson

from projections.db import Connection, Pool, database_errors, tenant_connection
from projections.projection import START, Position
from schemas.content import Json, blob_of, unseal
from schemas.event import FIELDS
from schemas.money import plain

_TASK_COSTS = """
SELECT coalesce(sum(cost_usd), 0) AS cost, count(*) AS attempts, count(*) FILTER (WHERE cost_status = 'unpriced')
    AS unpriced, count(*) FILTER (WHERE cost_status = 'unknown') AS unknown FROM ledger WHERE tenant = $1 AND task = $2
"""
_SESSION_COSTS = """
SELECT coalesce(sum(cost_usd), 0) AS cost, coalesce(sum(attempts), 0)::bigint AS attempts,
    coalesce(sum(unpriced), 0)::bigint AS unpriced, coalesce(sum(unknown), 0)::bigint AS unknown
FROM ledger_tasks WHERE tenant = $1 AND session = $2
"""


async def task(pool: Pool, tenant_id: str, task_id: str) -> dict[str, Any] | None:
    """A task with its outcome and exact cost, or None."""
    async with tenant_connection(pool, tenant_id) as conn:
        row = await conn.fetchrow("SELECT * FROM tasks WHERE tenant = $1 AND task = $2", tenant_id, task_id)
        if row is None:
            return None
        costs = await conn.fetchrow(_TASK_COSTS, tenant_id, task_id)
        assert costs is not None
        return await _task(conn, row) | _costs(costs)


async def cost_of_tasks(pool: Pool, tenant_id: str, tasks: Sequence[str]) -> Decimal:
    """What some tasks of a tenant have cost together, as far as it is known, in US dollars."""
    async with tenant_connection(pool, tenant_id) as conn:
        return Decimal(
            await conn.fetchval(
                "SELECT coalesce(sum(cost_usd), 0) FROM ledger WHERE tenant = $1 AND task = ANY($2)", tenant_id, tasks
            )
        )


async def session(pool: Pool, tenant_id: str, session_id: str) -> dict[str, Any] | None:
    """A session with its messages and state since it was last cleared, all its tasks, and its cost; or None."""
    async with tenant_connection(pool, tenant_id) as conn:
        key = (tenant_id, session_id)
        row = await conn.fetchrow("SELECT * FROM sessions WHERE tenant = $1 AND session = $2", *key)
        if row is None:
            return None
        messages = await conn.fetch(
            "SELECT * FROM messages WHERE tenant = $1 AND session = $2 AND (ms, seq) > ($3, $4) ORDER BY ms, seq",
            *key,
            row["cleared_ms"],
            row["cleared_seq"],
        )
        tasks = await conn.fetch(
            "SELECT task, status, type, submitted_at, ended_at, fork_of FROM tasks WHERE tenant = $1 AND session = $2 "
            "ORDER BY submitted_at, task",
            *key,
        )
        state = await conn.fetch("SELECT key, value FROM session_state WHERE tenant = $1 AND session = $2", *key)
        costs = await conn.fetchrow(_SESSION_COSTS, *key)
        assert costs is not None
        return {
            "tenant": tenant_id,
            "session": session_id,
            "first_at": iso(row["first_at"]),
            "last_at": iso(row["last_at"]),
            "cleared_at": iso(row["cleared_at"]),
            "messages": [
                {
                    "position": f"{m['ms']}-{m['seq']}",
                    "role": m["role"],
                    "task": m["task"],
                    "content": await _content(conn, tenant_id, orjson.loads(m["content"])),
                }
                for m in messages
            ],
            "state": {
                row["key"]: await _content(conn, tenant_id, orjson.loads(row["value"]))
                for row in sorted(state, key=lambda row: str(row["key"]))
            },
            "tasks": [
                {**dict(t), "submitted_at": iso(t["submitted_at"]), "ended_at": iso(t["ended_at"])} for t in tasks
            ],
        } | _costs(costs)


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


async def blobs(pool: Pool, tenant_id: str, hashes: Sequence[str]) -> dict[str, bytes]:
    """SHA-256 → content, of those of the tenant's large contents that are archived."""
    async with tenant_connection(pool, tenant_id) as conn:
        rows = await conn.fetch(
            "SELECT sha256, data FROM blobs WHERE tenant = $1 AND sha256 = ANY($2)", tenant_id, hashes
        )
    return {row["sha256"]: row["data"] for row in rows}


async def position(pool: Pool, tenant_id: str) -> Position:
    """How far every projection has read the tenant's log."""
    async with tenant_connection(pool, tenant_id) as conn:
        row = await conn.fetchrow("SELECT ms, seq FROM positions WHERE tenant = $1 ORDER BY ms, seq LIMIT 1", tenant_id)
    return START if row is None else (row["ms"], row["seq"])


async def positions_of(pool: Pool, tenants: Sequence[str]) -> dict[tuple[str, str], Position]:
    """(projection, tenant) → how far it has read that tenant's log, where it has begun: an administrator's question."""
    with database_errors():
        rows = await pool.fetch("SELECT projection, tenant, ms, seq FROM positions WHERE tenant = ANY($1)", tenants)
    return {(row["projection"], row["tenant"]): (row["ms"], row["seq"]) for row in rows}


async def tenants(pool: Pool) -> list[str]:
    """All tenants that the archive knows: an administrator's list."""
    with database_errors():
        rows = await pool.fetch("SELECT tenant FROM positions WHERE projection = 'archive' ORDER BY tenant")
    return [row["tenant"] for row in rows]


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
        "submitted_at": iso(row["submitted_at"]),
        "ended_at": iso(row["ended_at"]),
        "fork_of": row["fork_of"],
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


def iso(moment: datetime | None) -> str | None:
    """A time as JSON has it."""
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
