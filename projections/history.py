"""The archived part of a tenant's log, by position: what `headwater.history` joins with the stream."""

from dataclasses import dataclass

import orjson

from projections.db import Pool, tenant_connection
from projections.projection import START, Position
from schemas.bodies import TERMINAL
from schemas.event import FIELDS


@dataclass(frozen=True, slots=True)
class SeenEntry:
    """An entry of a log: its fields, or why they make no event."""

    position: Position
    fields: dict[str, str]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ArchivePage:
    """Archived entries in log order. `archived_to` is how far the archive reaches; `full` says that there may be more
    before that."""

    entries: list[SeenEntry]
    archived_to: Position
    full: bool


async def archived(
    pool: Pool,
    tenant_id: str,
    *,
    after: Position,
    limit: int,
    session_id: str | None = None,
    task_id: str | None = None,
) -> ArchivePage:
    """Up to `limit` archived entries after a position, unreadable ones among them."""
    async with tenant_connection(pool, tenant_id) as conn:
        # The position first: what is archived while the next query runs is not read past.
        row = await conn.fetchrow(
            "SELECT ms, seq FROM positions WHERE tenant = $1 AND projection = 'archive'", tenant_id
        )
        archived_to = START if row is None else (row["ms"], row["seq"])
        rows = await conn.fetch(
            "SELECT * FROM events WHERE tenant = $1 AND (ms, seq) > ($2, $3) AND (ms, seq) <= ($4, $5) "
            "AND ($6::text IS NULL OR session = $6) AND ($7::text IS NULL OR task = $7) ORDER BY ms, seq LIMIT $8",
            tenant_id,
            *after,
            *archived_to,
            session_id,
            task_id,
            limit,
        )
        full = len(rows) == limit
        end = (rows[-1]["ms"], rows[-1]["seq"]) if full else archived_to
        bad = await conn.fetch(
            "SELECT * FROM unreadable WHERE tenant = $1 AND (ms, seq) > ($2, $3) AND (ms, seq) <= ($4, $5) "
            "ORDER BY ms, seq LIMIT $6",
            tenant_id,
            *after,
            *end,
            limit,
        )
    entries = [SeenEntry((row["ms"], row["seq"]), {name: row[name] for name in FIELDS}) for row in rows]
    for row in bad:
        fields = orjson.loads(row["fields"])
        known = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=False))
        if belongs(known, session_id, task_id):
            entries.append(SeenEntry((row["ms"], row["seq"]), known, row["error"]))
    if len(bad) == limit:
        # More unreadable entries than fit: stop at the last one seen.
        end, full = (bad[-1]["ms"], bad[-1]["seq"]), True
        entries = [entry for entry in entries if entry.position <= end]
    entries.sort(key=lambda entry: entry.position)
    return ArchivePage(entries, end if full else archived_to, full)


async def archived_to(pool: Pool, tenant_id: str) -> Position:
    """How far the archive of a tenant reaches."""
    async with tenant_connection(pool, tenant_id) as conn:
        row = await conn.fetchrow(
            "SELECT ms, seq FROM positions WHERE tenant = $1 AND projection = 'archive'", tenant_id
        )
    return START if row is None else (row["ms"], row["seq"])


async def archived_end(pool: Pool, tenant_id: str, task_id: str) -> SeenEntry | None:
    """The archived entry that ended a task, or None."""
    async with tenant_connection(pool, tenant_id) as conn:
        row = await conn.fetchrow(
            "SELECT * FROM events WHERE tenant = $1 AND task = $2 AND type = ANY($3) ORDER BY ms, seq LIMIT 1",
            tenant_id,
            task_id,
            sorted(TERMINAL),
        )
    return None if row is None else SeenEntry((row["ms"], row["seq"]), {name: row[name] for name in FIELDS})


def belongs(fields: dict[str, str], session_id: str | None, task_id: str | None) -> bool:
    """Whether an entry is of this session and this task; None stands for any."""
    return (session_id is None or fields.get("session") == session_id) and (
        task_id is None or fields.get("task") == task_id
    )
