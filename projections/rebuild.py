"""Rebuilding projections from the archive, and the digests that show that nothing changed (I4)."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import asyncpg
import structlog

from projections.archive import read_event
from projections.db import Connection, Pool, database_errors
from projections.projection import Projection, ReadsUnreadable, Recorded, Relevant, Unreadable
from projections.runner import APPLY_LOCK, PROJECTIONS
from schemas.bodies import BODIES
from schemas.errors import InvalidInputError

logger = structlog.get_logger(__name__)

BATCH = 5_000
Progress = Callable[[str, int, int], None]
"""(projection, events done, events in all)"""

_READ = """
SELECT tenant, ms, seq, id, type, v, session, task, priority, source, chain, parent, at, body FROM events
WHERE type = ANY($1) ORDER BY tenant, ms, seq
"""
_READ_UNREADABLE = "SELECT tenant, ms, seq, error, reason FROM unreadable ORDER BY tenant, ms, seq"


def rebuildable() -> list[str]:
    """The names that `rebuild` takes."""
    return [projection.name for projection in PROJECTIONS if projection.name != "archive"]


async def rebuild(pool: Pool, names: Sequence[str], progress: Progress = lambda name, done, total: None) -> None:
    """Drop the projections' rows and apply the archive again, in one transaction; readers see the old rows until then.

    Raises:
        InvalidInputError: a name is not that of a projection that can be rebuilt.
        UnavailableError: PostgreSQL is away; everything is as it was.
    """
    if unknown := [name for name in names if name not in rebuildable()]:
        raise InvalidInputError(f"{unknown[0]!r} cannot be rebuilt: choose from {', '.join(rebuildable())} or all")
    chosen = [projection for projection in PROJECTIONS if projection.name in names]
    with database_errors():
        async with pool.acquire() as conn, conn.transaction():
            # The projector waits; the log keeps what comes in meanwhile.
            await conn.execute("SELECT pg_advisory_xact_lock($1)", APPLY_LOCK)
            await _rebuild(pool, conn, chosen, progress)


async def rebuild_outdated(pool: Pool) -> list[str]:
    """Rebuild the projections whose rows an older version wrote, as a migration noted. Returns their names."""
    with database_errors():
        names = [row["projection"] for row in await pool.fetch("SELECT projection FROM outdated_projections")]
    if names:
        logger.info("rebuilding_outdated", projections=names)
        await rebuild(pool, names)
        with database_errors():
            await pool.execute("DELETE FROM outdated_projections WHERE projection = ANY($1)", names)
    return names


async def _rebuild(pool: Pool, conn: Connection, chosen: Sequence[Projection], progress: Progress) -> None:
    """Read the archive once for all chosen projections, the next batch while one is applied."""
    totals = {row["type"]: row["n"] for row in await conn.fetch("SELECT type, count(*) AS n FROM events GROUP BY type")}
    wanted = sorted(set().union(*(projection.event_types or BODIES for projection in chosen)))
    done = dict.fromkeys((projection.name for projection in chosen), 0)

    def report(projection: Projection, more: int) -> None:
        done[projection.name] += more
        in_all = sum(totals.get(name, 0) for name in projection.event_types or BODIES)
        progress(projection.name, done[projection.name], in_all)

    for projection in chosen:
        report(projection, 0)
        for table in projection.tables:
            await conn.execute(f"DELETE FROM {table}")
    # A second connection reads: what it sees does not change, for nothing is archived while the lock is held.
    async with pool.acquire() as reader, reader.transaction(readonly=True):
        cursor = await reader.cursor(_READ, wanted)
        rows = await cursor.fetch(BATCH)
        while rows:
            following = asyncio.create_task(cursor.fetch(BATCH))
            try:
                batch = Relevant([_recorded(row) for row in rows])
                for projection in chosen:
                    relevant = batch.to(projection)
                    await projection.apply(conn, relevant)
                    report(projection, len(relevant))
            finally:
                rows = await following
        await _apply_unreadable(conn, reader, chosen)
    for projection in chosen:
        await conn.execute("DELETE FROM positions WHERE projection = $1", projection.name)
        await conn.execute(
            "INSERT INTO positions SELECT $1, tenant, ms, seq, events FROM positions WHERE projection = 'archive'",
            projection.name,
        )


async def _apply_unreadable(conn: Connection, reader: Connection, chosen: Sequence[Projection]) -> None:
    concerned = [projection for projection in chosen if isinstance(projection, ReadsUnreadable)]
    cursor = await reader.cursor(_READ_UNREADABLE)
    while concerned and (rows := await cursor.fetch(BATCH)):
        batch = [Unreadable(row["tenant"], (row["ms"], row["seq"]), (), row["error"], row["reason"]) for row in rows]
        for projection in concerned:
            await projection.apply_unreadable(conn, batch)


def _recorded(row: asyncpg.Record) -> Recorded:
    return Recorded(read_event(row), (row["ms"], row["seq"]), {})


@dataclass(frozen=True, slots=True)
class ProjectionDigest:
    """What a projection holds: equal digests at equal positions mean equal rows."""

    projection: str
    digest: str
    rows: int
    events: int
    tenants: int
    position: str
    """Digest over the positions of all tenants."""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


async def digests(pool: Pool) -> list[ProjectionDigest]:
    """The digest of every projection, all from one snapshot."""
    with database_errors():
        async with pool.acquire() as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            return [await _digest(conn, projection) for projection in PROJECTIONS]


async def _digest(conn: Connection, projection: Projection) -> ProjectionDigest:
    parts, rows = [], 0
    for table in projection.tables:
        # Two seeded 64-bit hashes, summed: independent of the order in which rows lie on disk.
        row = await conn.fetchrow(
            "SELECT count(*) AS n, coalesce(sum(hashtextextended(t::text, 1)), 0)::text AS a, "
            f"coalesce(sum(hashtextextended(t::text, 2)), 0)::text AS b FROM {table} t"
        )
        assert row is not None
        parts.append(f"{table}:{row['n']}:{row['a']}:{row['b']}")
        rows += row["n"]
    places = await conn.fetch(
        "SELECT tenant, ms, seq, events FROM positions WHERE projection = $1 ORDER BY tenant", projection.name
    )
    where = "\n".join(f"{place['tenant']} {place['ms']}-{place['seq']}" for place in places)
    return ProjectionDigest(
        projection=projection.name,
        digest=_short_hash("\n".join(parts)),
        rows=rows,
        events=sum(place["events"] for place in places),
        tenants=len(places),
        position=_short_hash(where),
    )


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
