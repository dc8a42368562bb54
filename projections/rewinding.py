"""A database that is older than Redis' checkpoint: what it lacks is read again, and what is gone is named.

PostgreSQL is behind when it was restored from a backup, or when an empty or a lagging one took its place. Its own
positions say what it has; Redis' checkpoint only says what was sent. What the stream still has is sent again. What
was trimmed meanwhile is in no read model any more, and stands in the table `missing`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from projections.db import Pool, database_errors
from projections.history import archived_to
from projections.projection import START, Position, format_position, parse_position
from streams.backlog import read_places
from streams.connection import Streams
from streams.log import Log

logger = structlog.get_logger(__name__)

READER = "projector"

_POSITIONS = "SELECT projection, tenant, ms, seq FROM positions WHERE tenant = ANY($1)"
_NOTE = """
INSERT INTO missing (tenant, after_ms, after_seq, before_ms, before_seq) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT DO NOTHING RETURNING true
"""
_OUTDATED = """
INSERT INTO outdated_projections SELECT name FROM unnest($1::text[]) AS name WHERE name <> 'archive' AND NOT EXISTS
    (SELECT FROM positions WHERE projection = name AND tenant = $2 AND (ms, seq) >= ($3, $4))
ON CONFLICT DO NOTHING RETURNING projection
"""


class BehindError(Exception):
    """PostgreSQL has not applied what stands before a batch. `applied` has how far it is, by tenant."""

    def __init__(self, applied: Mapping[str, Position]) -> None:
        super().__init__(f"behind the checkpoint of {len(applied)} tenants")
        self.applied = applied


@dataclass(frozen=True, slots=True)
class Missing:
    """A part of a tenant's log that is lost to the read models: between two positions, both not included."""

    tenant: str
    after: str
    before: str
    noticed_at: datetime


def check_not_behind(starts: Mapping[str, Position], applied: Sequence[Mapping[str, Position]]) -> None:
    """Raises `BehindError` if a projection has not applied all that stands before a tenant's batch."""
    if all(positions == starts for positions in applied):
        return
    lowest = {tenant: min(positions[tenant] for positions in applied) for tenant in starts}
    if behind := {tenant: lowest[tenant] for tenant, start in starts.items() if lowest[tenant] < start}:
        raise BehindError(behind)


async def rewind_all(streams: Streams, pool: Pool, projections: Sequence[str]) -> list[str]:
    """Have the projector read again, for every tenant, what one of `projections` lacks. Returns those tenants.

    It also finds tenants whose logs nobody appends to any more. Tenants that are being read are left to who reads
    them. Goes through all keys of Redis, in steps.

    Raises:
        UnavailableError: Redis or PostgreSQL is away.
    """
    rewound = []
    async for places in read_places(streams, READER):
        # The checkpoints were read first: what was applied since can only be more.
        lowest = await _lowest(pool, [tenant for tenant, _ in places], projections)
        for tenant, read in places:
            if lowest[tenant] < parse_position(read):
                await report(pool, streams.log, projections, tenant, lowest[tenant], read=read)
                back_to = format_position(lowest[tenant])
                if await streams.functions.rewind(tenant, READER, start=read, back_to=back_to):
                    rewound.append(tenant)
    return rewound


async def _lowest(pool: Pool, tenants: Sequence[str], projections: Sequence[str]) -> dict[str, Position]:
    with database_errors():
        rows = await pool.fetch(_POSITIONS, tenants)
    found = {(row["projection"], row["tenant"]): (row["ms"], row["seq"]) for row in rows}
    return {tenant: min(found.get((name, tenant), START) for name in projections) for tenant in tenants}


async def report(
    pool: Pool, log: Log, projections: Sequence[str], tenant_id: str, applied: Position, *, read: str
) -> None:
    """Say that a tenant's log is read again from `applied` on, and which part of it is not there to be read."""
    logger.warning("database_behind", tenant=tenant_id, applied=format_position(applied), read=read)
    trimmed = parse_position(await log.trimmed_to(tenant_id))
    if trimmed <= applied:
        return
    archived = await archived_to(pool, tenant_id)
    with database_errors():
        if archived < trimmed:
            oldest = await log.oldest(tenant_id)
            before = (trimmed[0], trimmed[1] + 1) if oldest is None else parse_position(oldest)
            if before > archived and await pool.fetchval(_NOTE, tenant_id, *archived, *before):
                logger.error(
                    "events_missing",
                    tenant=tenant_id,
                    after=format_position(archived),
                    before=format_position(before),
                    hint="they were trimmed from Redis, and PostgreSQL was replaced by an older one; "
                    "'headwater missing' lists them, and a backup of PostgreSQL from after them has them",
                )
        # What is only in the archive is not sent again.
        for row in await pool.fetch(_OUTDATED, projections, tenant_id, *min(archived, trimmed)):
            logger.error("projection_outdated", projection=row["projection"], hint="run 'headwater rebuild'")


async def missing_ranges(pool: Pool, *, tenant_id: str | None = None) -> list[Missing]:
    """What is known to be missing of one tenant's log or of all: an administrator's list."""
    with database_errors():
        rows = await pool.fetch(
            "SELECT * FROM missing WHERE $1::text IS NULL OR tenant = $1 ORDER BY tenant, after_ms, after_seq",
            tenant_id,
        )
    return [
        Missing(
            row["tenant"],
            format_position((row["after_ms"], row["after_seq"])),
            format_position((row["before_ms"], row["before_seq"])),
            row["noticed_at"],
        )
        for row in rows
    ]
