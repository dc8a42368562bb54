"""What is on its way to Langfuse, in PostgreSQL. Migration 0004 says which table an event is in, and when."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import asyncpg

from projections.archive import blob_hashes, blob_sizes, clean, read_event
from projections.db import Connection, Pool, database_errors
from projections.langfuse.spans import EXPORTED, RELATED, shown_of, span_id_of
from projections.projection import Position, columns
from schemas.bodies import TaskForked, TaskSubmitted
from schemas.errors import HeadwaterError
from schemas.event import AgentEvent
from schemas.trace_ids import trace_id

EXPORTER_LOCK = 0x6C66_7578  # "lfux": one exporter at a time
TENANTS_AT_ONCE = 50
EVENTS_AT_ONCE = 500

# Beginning after the tenant that was served last, so that nobody waits behind somebody's long log.
_BEHIND = """
SELECT p.tenant, coalesce(l.ms, 0) AS ms, coalesce(l.seq, 0) AS seq, p.ms AS end_ms, p.seq AS end_seq
FROM positions p LEFT JOIN langfuse_positions l USING (tenant)
WHERE p.projection = 'archive' AND (p.ms, p.seq) > (coalesce(l.ms, 0), coalesce(l.seq, 0))
ORDER BY p.tenant <= $1, p.tenant LIMIT $2
"""
_NEW = """
SELECT e.* FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
    AS b (tenant, ms, seq, end_ms, end_seq)
CROSS JOIN LATERAL (
    SELECT * FROM events
    WHERE tenant = b.tenant AND (ms, seq) > (b.ms, b.seq) AND (ms, seq) <= (b.end_ms, b.end_seq) AND type = ANY($6)
    ORDER BY ms, seq LIMIT $7
) e ORDER BY e.tenant, e.ms, e.seq
"""
_MOVE = """
INSERT INTO langfuse_positions (tenant, ms, seq) SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[])
ON CONFLICT (tenant) DO UPDATE SET ms = excluded.ms, seq = excluded.seq
"""
_GIVE_OUT = """
INSERT INTO langfuse_in_flight (tenant, ms, seq, trace_id, span_id, sent_at)
SELECT t.*, clock_timestamp() FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[]) t
"""
_WAITING = """
SELECT e.*, extract(epoch FROM clock_timestamp() - f.sent_at)::float8 AS sent_s_ago
FROM langfuse_in_flight f JOIN events e USING (tenant, ms, seq) ORDER BY tenant, ms, seq
"""
_BLOBS = """
SELECT tenant, sha256, data FROM blobs WHERE (tenant, sha256) IN (SELECT * FROM unnest($1::text[], $2::text[]))
"""
_STATUS = """
SELECT
    (SELECT count(*) FROM positions p LEFT JOIN langfuse_positions l USING (tenant) JOIN events e USING (tenant)
     WHERE p.projection = 'archive' AND (p.ms, p.seq) > (coalesce(l.ms, 0), coalesce(l.seq, 0))
     AND (e.ms, e.seq) > (coalesce(l.ms, 0), coalesce(l.seq, 0)) AND e.type = ANY($1)) AS not_given_out,
    (SELECT count(*) FROM langfuse_in_flight) AS in_flight,
    (SELECT count(*) FROM langfuse_refused) AS refused
"""
_THESE = "(tenant, ms, seq) IN (SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[]))"
_RELATED = """
SELECT * FROM events WHERE (tenant, task) IN (SELECT * FROM unnest($1::text[], $2::text[])) AND type = ANY($3)
"""


@dataclass(frozen=True, slots=True)
class OnItsWay:
    """An event that was given out. `sent_s_ago` is None when it is known that the server does not have it."""

    event: AgentEvent
    position: Position
    blobs: dict[str, int]
    """The large contents that its body refers to: SHA-256 → bytes."""
    body_bytes: int
    trace_id: str
    span_id: str
    sent_s_ago: float | None

    @property
    def size_bytes(self) -> int:
        """About what its span weighs."""
        return self.body_bytes + sum(self.blobs.values())

    @property
    def key(self) -> tuple[str, int, int]:
        """Its row."""
        return (self.event.tenant_id, *self.position)


@dataclass(slots=True)
class Surroundings:
    """What a tenant's spans take from elsewhere in its archive."""

    related: dict[str, AgentEvent] = field(default_factory=dict)
    """Task id → `task.submitted`, event id → `handoff.proposed`."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 → JSON."""


class Outbox:
    """The exporter's tables, over the connection that holds the exporter's lock: who lost the lock cannot write."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._last_tenant = ""

    async def lock(self) -> bool:
        """Become the one exporter of this database, if there is none."""
        return bool(await self._conn.fetchval("SELECT pg_try_advisory_lock($1)", EXPORTER_LOCK))

    async def waiting(self) -> list[OnItsWay]:
        """What was given out and is not known to have arrived."""
        rows = await self._conn.fetch(_WAITING)
        return [_on_its_way(read_event(row), row, row["sent_s_ago"]) for row in rows]

    async def take(self) -> list[OnItsWay] | None:
        """Give out the next events, marked as sent before they are, and move their tenants' positions past them.

        None when there is nothing that was not looked at; an empty list when nothing of it is to be exported.
        """
        async with self._conn.transaction():
            behind = await self._conn.fetch(_BEHIND, self._last_tenant, TENANTS_AT_ONCE)
            if not behind:
                return None
            share = EVENTS_AT_ONCE // len(behind)
            rows = await self._conn.fetch(_NEW, *columns([tuple(row) for row in behind], 5), sorted(EXPORTED), share)
            ends = {row["tenant"]: (row["end_ms"], row["end_seq"]) for row in behind}
            for tenant, count in Counter(row["tenant"] for row in rows).items():
                if count == share:
                    ends[tenant] = max((row["ms"], row["seq"]) for row in rows if row["tenant"] == tenant)
            await self._conn.execute(_MOVE, *columns([(tenant, *end) for tenant, end in ends.items()], 3))
            taken = [_on_its_way(event, row, 0.0) for row in rows if (event := await self._read(row)) is not None]
            await self._conn.execute(_GIVE_OUT, *columns([(*i.key, i.trace_id, i.span_id) for i in taken], 5))
        self._last_tenant = behind[-1]["tenant"]
        return taken

    async def _read(self, row: asyncpg.Record) -> AgentEvent | None:
        try:
            return read_event(row)
        except (ValueError, HeadwaterError) as error:
            await self._refuse((row["tenant"], row["ms"], row["seq"]), "", f"it cannot be read: {error}")
            return None

    async def surroundings(self, items: Sequence[OnItsWay], *, content: bool) -> dict[str, Surroundings]:
        """By tenant, what the items' spans take from elsewhere; with `content`, the blobs too."""
        found: dict[str, Surroundings] = defaultdict(Surroundings)
        wanted = {(item.event.tenant_id, sha) for item in items for sha in item.blobs}
        shown = {(item.event.tenant_id, name) for item in items for name in shown_of(item.event)}
        tasks = sorted({(item.event.tenant_id, item.event.task_id) for item in items})
        for row in await self._conn.fetch(_RELATED, *columns(tasks, 2), list(RELATED)):
            event = read_event(row)
            name = event.task_id if event.type in (TaskSubmitted.type, TaskForked.type) else event.id
            found[event.tenant_id].related[name] = event
            if (event.tenant_id, name) in shown:
                wanted |= {(event.tenant_id, sha) for sha in blob_hashes(row["body"])}
        if content and wanted:
            for row in await self._conn.fetch(_BLOBS, *columns(sorted(wanted), 2)):
                found[row["tenant"]].blobs[row["sha256"]] = row["data"]
        return found

    async def delivered(self, items: Sequence[OnItsWay]) -> None:
        """The server has them: done."""
        await self._conn.execute(f"DELETE FROM langfuse_in_flight WHERE {_THESE}", *_keys(items))

    async def sending(self, items: Sequence[OnItsWay]) -> None:
        """They are about to be sent (again)."""
        await self._conn.execute(
            f"UPDATE langfuse_in_flight SET sent_at = clock_timestamp() WHERE {_THESE}", *_keys(items)
        )

    async def not_arrived(self, items: Sequence[OnItsWay]) -> None:
        """It is certain that the server does not have them."""
        await self._conn.execute(f"UPDATE langfuse_in_flight SET sent_at = NULL WHERE {_THESE}", *_keys(items))

    async def refused(self, item: OnItsWay, error: str) -> None:
        """The server will never take it: keep the reason, and go on."""
        async with self._conn.transaction():
            await self._refuse(item.key, item.span_id, error)
            await self.delivered([item])

    async def _refuse(self, key: tuple[str, int, int], span_id: str, error: str) -> None:
        await self._conn.execute(
            "INSERT INTO langfuse_refused (tenant, ms, seq, span_id, error) VALUES ($1, $2, $3, $4, $5) "
            "ON CONFLICT DO NOTHING",
            *key,
            span_id,
            clean(error),
        )


@dataclass(frozen=True, slots=True)
class ExportStatus:
    """How far the export is, over all tenants: an administrator's numbers."""

    not_given_out: int
    """Archived events, of the types that are exported, that were not looked at yet."""
    in_flight: int
    refused: int

    @property
    def done(self) -> bool:
        """Is everything that is archived exported, or refused for good?"""
        return self.not_given_out == 0 and self.in_flight == 0


async def export_status(pool: Pool) -> ExportStatus:
    """Where the export stands. Raises `UnavailableError`."""
    with database_errors():
        row = await pool.fetchrow(_STATUS, sorted(EXPORTED))
    assert row is not None
    return ExportStatus(**row)


def _on_its_way(event: AgentEvent, row: asyncpg.Record, sent_s_ago: float | None) -> OnItsWay:
    return OnItsWay(
        event=event,
        position=(row["ms"], row["seq"]),
        blobs=blob_sizes(row["body"]),
        body_bytes=len(row["body"]),
        trace_id=trace_id(event.tenant_id, event.task_id),
        span_id=span_id_of(event),
        sent_s_ago=sent_s_ago,
    )


def _keys(items: Sequence[OnItsWay]) -> list[list[object]]:
    return columns([item.key for item in items], 3)
