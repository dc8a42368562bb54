"""The archived part of a tenant's log, by position: what `headwater.history` joins with the stream."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

import orjson

from projections.db import Connection, Pool, tenant_connection
from projections.projection import START, Position, columns
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


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries of a log to read: those of a session, of a task, of some types. None stands for any."""

    session_id: str | None = None
    task_id: str | None = None
    types: Collection[str] | None = None

    def has(self, fields: Mapping[str, str]) -> bool:
        """Is the entry with these fields one of them?"""
        return (
            self.session_id in (None, fields.get("session"))
            and self.task_id in (None, fields.get("task"))
            and (self.types is None or fields.get("type") in self.types)
        )

    def condition(self, *, first: int) -> tuple[str, list[str | list[str]]]:
        """(SQL, parameters from number `first` on). It says what was asked for and nothing else, so that a plan for
        one task never walks through its tenant's whole log."""
        sql, values = "", list[str | list[str]]()
        types = None if self.types is None else sorted(self.types)
        for term, value in (
            ("session = ${}", self.session_id),
            ("task = ${}", self.task_id),
            ("type = ANY(${})", types),
        ):
            if value is not None:
                sql += " AND " + term.format(first + len(values))
                values.append(value)
        return sql, values


async def archived(pool: Pool, tenant_id: str, wanted: Wanted, *, after: Position, limit: int) -> ArchivePage:
    """Up to `limit` archived entries after a position, unreadable ones among them."""
    where, values = wanted.condition(first=7)
    async with tenant_connection(pool, tenant_id) as conn:
        # The position first: what is archived while the next query runs is not read past.
        reached = await _reached(conn, tenant_id, "archive")
        rows = await conn.fetch(
            "SELECT * FROM events WHERE tenant = $1 AND (ms, seq) > ($2, $3) AND (ms, seq) <= ($4, $5) "
            f"{where} ORDER BY ms, seq LIMIT $6",
            *(tenant_id, *after, *reached, limit, *values),
        )
        full = len(rows) == limit
        end = (rows[-1]["ms"], rows[-1]["seq"]) if full else reached
        bad = await conn.fetch(
            "SELECT * FROM unreadable WHERE tenant = $1 AND (ms, seq) > ($2, $3) AND (ms, seq) <= ($4, $5) "
            "ORDER BY ms, seq LIMIT $6",
            *(tenant_id, *after, *end, limit),
        )
    entries = [SeenEntry((row["ms"], row["seq"]), {name: row[name] for name in FIELDS}) for row in rows]
    for row in bad:
        fields = orjson.loads(row["fields"])
        known = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=False))
        if wanted.has(known):
            entries.append(SeenEntry((row["ms"], row["seq"]), known, row["error"]))
    if len(bad) == limit:
        # More unreadable entries than fit: stop at the last one seen.
        end, full = (bad[-1]["ms"], bad[-1]["seq"]), True
        entries = [entry for entry in entries if entry.position <= end]
    entries.sort(key=lambda entry: entry.position)
    return ArchivePage(entries, end if full else reached, full)


async def _reached(conn: Connection, tenant_id: str, projection: str) -> Position:
    row = await conn.fetchrow(
        "SELECT ms, seq FROM positions WHERE tenant = $1 AND projection = $2", tenant_id, projection
    )
    return START if row is None else (row["ms"], row["seq"])


class Spent(NamedTuple):
    """LLM attempts, and what they cost together in US dollars as far as it is known."""

    attempts: int
    usd: Decimal


async def spent_to(pool: Pool, tenant_id: str, upto: Position) -> tuple[dict[str, Spent], Position]:
    """(agent → what it had spent at `upto`, how far the ledger has read): from its rows, exact up to the nearer one."""
    async with tenant_connection(pool, tenant_id) as conn:
        # The position first: what is applied while the next query runs is not counted.
        reached = await _reached(conn, tenant_id, "ledger")
        rows = await conn.fetch(
            "SELECT agent, count(*) AS attempts, coalesce(sum(cost_usd), 0) AS usd FROM ledger "
            "WHERE tenant = $1 AND (ms, seq) <= ($2, $3) GROUP BY agent",
            *(tenant_id, *min(upto, reached)),
        )
    return {row["agent"]: Spent(row["attempts"], row["usd"]) for row in rows}, reached


async def archived_to(pool: Pool, tenant_id: str) -> Position:
    """How far the archive of a tenant reaches."""
    async with tenant_connection(pool, tenant_id) as conn:
        return await _reached(conn, tenant_id, "archive")


async def archived_at(pool: Pool, tenant_id: str, positions: Sequence[Position]) -> list[SeenEntry]:
    """The archived entries at exactly these positions, in log order."""
    async with tenant_connection(pool, tenant_id) as conn:
        rows = await conn.fetch(
            "SELECT e.* FROM events e JOIN unnest($2::bigint[], $3::bigint[]) AS wanted (ms, seq) USING (ms, seq) "
            "WHERE e.tenant = $1 ORDER BY ms, seq",
            tenant_id,
            *columns(positions, 2),
        )
    return [SeenEntry((row["ms"], row["seq"]), {name: row[name] for name in FIELDS}) for row in rows]


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
