"""Applies leased batches to every projection: one transaction for the rows and the positions.

Redis' checkpoint says what to send; the positions in PostgreSQL say what has been applied. A projector that dies
between the two is sent the same entries again, and skips them here. A database that is behind the checkpoint, because
it was restored or replaced, has the entries in between sent again (`projections.rewinding`).
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import asyncpg
import structlog

from projections.archive import Archive, blob_hashes, keep_blobs
from projections.db import Connection, Pool, database_errors
from projections.history import archived_to
from projections.ledger import Ledger
from projections.memory import Memories
from projections.metrics import Metrics
from projections.projection import (
    START,
    Position,
    Projection,
    ReadsUnreadable,
    Recorded,
    Relevant,
    Unreadable,
    columns,
    format_position,
    parse_position,
)
from projections.rewinding import BehindError, check_not_behind, report
from projections.sessions import Sessions
from schemas.errors import NotFoundError, UnreadableEventError
from schemas.event import decode, entry_fields
from streams.functions import Commit, TenantBatch
from streams.log import Log
from streams.subscriber import LeasedRound

logger = structlog.get_logger(__name__)

PROJECTIONS: tuple[Projection, ...] = (Archive(), Ledger(), Sessions(), Memories(), Metrics())
APPLY_LOCK = 0x7072_6F6A  # "proj": shared by applying, taken alone by a rebuild

LARGE_ROUND = 1_000
"""Entries from which a round is applied in two parts."""

_MOVE = """
INSERT INTO positions AS p (projection, tenant, ms, seq, events)
SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[])
ON CONFLICT (projection, tenant) DO UPDATE
SET ms = excluded.ms, seq = excluded.seq, events = p.events + excluded.events
"""
_LOCK_POSITIONS = """
SELECT projection, tenant, ms, seq FROM positions WHERE tenant = ANY($1) ORDER BY tenant, projection FOR UPDATE
"""

_REFUSED = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ValueError, OverflowError)
"""Errors that a value in an entry can cause."""


class Runner:
    """`handle` is a FastStream handler over leased rounds."""

    def __init__(self, pool: Pool, log: Log, projections: Sequence[Projection] = PROJECTIONS) -> None:
        self._pool = pool
        self._log = log
        self._projections = projections
        self.names = [projection.name for projection in projections]
        self.doubt = asyncio.Event()
        """Set at first, and when PostgreSQL lacked something: all tenants have to be looked at."""
        self.doubt.set()
        self._newest: tuple[str, Position] | None = None
        """What was applied last, of whatever tenant."""

    async def handle(self, leased: LeasedRound) -> list[Commit]:
        """Apply a round; its commits only move Redis' checkpoint, back for a tenant of whom PostgreSQL lacks more.

        A large round goes in two transactions side by side: one is prepared here while PostgreSQL works on the other.
        No row is shared between them, because no tenant is.
        """
        parts = in_parts(leased.batches)
        applied = await asyncio.gather(*(self._apply_or_rewind(part) for part in parts), return_exceptions=True)
        back: dict[str, str] = {}
        for result in applied:
            if isinstance(result, BaseException):
                raise result
            back |= result
        return [Commit(back_to=back.get(batch.tenant_id)) for batch in leased.batches]

    async def _apply_or_rewind(self, batches: Sequence[TenantBatch]) -> dict[str, str]:
        """Apply what follows on what is applied. Returns for the other tenants where to read again from."""
        try:
            await self.apply(batches)
            return {}
        except BehindError as error:
            behind = error.applied
        self.doubt.set()
        for batch in batches:
            if batch.tenant_id in behind:
                applied = behind[batch.tenant_id]
                await report(self._pool, self._log, self.names, batch.tenant_id, applied, read=batch.start)
        rest = [batch for batch in batches if batch.tenant_id not in behind]
        back = {tenant: format_position(position) for tenant, position in behind.items()}
        return back | (await self._apply_or_rewind(rest) if rest else {})

    async def check_database(self) -> None:
        """Set `doubt` if PostgreSQL has lost what was applied last. An older database has, whatever else it lacks."""
        if self._newest is not None:
            tenant_id, position = self._newest
            if await archived_to(self._pool, tenant_id) < position:
                self._newest = None
                self.doubt.set()

    async def apply(self, batches: Sequence[TenantBatch]) -> None:
        """Apply batches of different tenants, whatever of them was not applied yet.

        An entry that PostgreSQL refuses is found by halving, kept as unreadable, and the others go on.

        Raises:
            UnavailableError: PostgreSQL or Redis is away; nothing was applied.
            BehindError: PostgreSQL lacks what stands before a batch; nothing was applied.
        """
        try:
            await self._apply(batches, *_read(batches))
        except _REFUSED as error:
            if len(batches) == 1 and len(batches[0].entries) <= 1:
                refused = [
                    Unreadable(batch.tenant_id, parse_position(position), flat, str(error), "not_storable")
                    for batch in batches
                    for position, flat in batch.entries
                ]
                logger.error("entry_refused", tenant=batches[0].tenant_id, position=batches[0].end, error=str(error))
                await self._apply(batches, [], refused)
                return
            for part in _halves(batches):
                await self.apply(part)

    async def _apply(
        self, batches: Sequence[TenantBatch], entries: Sequence[Recorded], unreadable: Sequence[Unreadable]
    ) -> None:
        blobs = await self._blobs(entries)
        ends = {batch.tenant_id: parse_position(batch.end) for batch in batches}
        starts = {batch.tenant_id: parse_position(batch.start) for batch in batches}
        tenants = sorted(ends)
        everything = Relevant(entries)
        all_counts = Counter(entry.event.tenant_id for entry in entries)
        with database_errors():
            async with self._pool.acquire() as conn, conn.transaction():
                await conn.execute("SELECT pg_advisory_xact_lock_shared($1)", APPLY_LOCK)
                positions = await _lock_positions(conn, tenants, self.names)
                applied_by = [{t: positions.get((name, t), START) for t in tenants} for name in self.names]
                check_not_behind(starts, applied_by)
                moves: list[tuple[object, ...]] = []
                # First, for projections that read what an event refers to.
                await keep_blobs(conn, blobs)
                for projection, applied in zip(self._projections, applied_by, strict=True):
                    new, counts = everything, all_counts
                    if applied != starts:
                        new = Relevant([e for e in entries if e.position > applied[e.event.tenant_id]])
                        counts = Counter(e.event.tenant_id for e in new.entries)
                    if relevant := new.to(projection):
                        await projection.apply(conn, relevant)
                    bad = [one for one in unreadable if one.position > applied[one.tenant_id]]
                    if bad and isinstance(projection, ReadsUnreadable):
                        await projection.apply_unreadable(conn, bad)
                    moves += [(projection.name, t, *ends[t], counts[t]) for t in tenants if ends[t] > applied[t]]
                await conn.execute(_MOVE, *columns(moves, 5))
        self._newest = (tenants[-1], ends[tenants[-1]])

    async def _blobs(self, entries: Sequence[Recorded]) -> dict[tuple[str, str], bytes]:
        wanted: dict[str, set[str]] = {}
        for entry in entries:
            if '"$blob"' in entry.fields["body"] and (hashes := blob_hashes(entry.fields["body"])):
                wanted.setdefault(entry.event.tenant_id, set()).update(hashes)
        found = {}
        for tenant_id, hashes in wanted.items():
            for sha in sorted(hashes):
                try:
                    found[tenant_id, sha] = (await self._log.blobs(tenant_id, [sha]))[sha]
                except NotFoundError as error:
                    logger.error("blob_missing", tenant=tenant_id, error=str(error))
        return found


async def _lock_positions(
    conn: Connection, tenants: list[str], projections: list[str]
) -> dict[tuple[str, str], Position]:
    """The tenants' positions, locked in one order, so that two projectors wait for each other and never deadlock."""
    rows = await conn.fetch(_LOCK_POSITIONS, tenants)
    if len(rows) < len(tenants) * len(projections):
        there = {(row["projection"], row["tenant"]) for row in rows}
        missing = [(p, t, *START, 0) for t in tenants for p in projections if (p, t) not in there]
        await conn.execute(
            "INSERT INTO positions SELECT * FROM "
            "unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[]) ON CONFLICT DO NOTHING",
            *columns(missing, 5),
        )
        rows = await conn.fetch(_LOCK_POSITIONS, tenants)
    return {(row["projection"], row["tenant"]): (row["ms"], row["seq"]) for row in rows}


def _read(batches: Sequence[TenantBatch]) -> tuple[list[Recorded], list[Unreadable]]:
    """Decode each entry once. What is no event is named and kept apart; the others go on."""
    entries: list[Recorded] = []
    unreadable: list[Unreadable] = []
    for batch in batches:
        for text, flat in batch.entries:
            position = parse_position(text)
            try:
                fields = entry_fields(flat)
                entries.append(Recorded(decode(batch.tenant_id, text, fields), position, fields))
            except UnreadableEventError as error:
                logger.error("unreadable_entry", tenant=batch.tenant_id, position=text, error=str(error))
                unreadable.append(Unreadable(batch.tenant_id, position, flat, str(error), error.reason))
    return entries, unreadable


def in_parts(batches: Sequence[TenantBatch]) -> list[list[TenantBatch]]:
    """The batches in two parts of about the same number of entries, or in one if that is soon done."""
    if sum(len(batch.entries) for batch in batches) < LARGE_ROUND:
        return [list(batches)]
    parts: list[list[TenantBatch]] = [[], []]
    sizes = [0, 0]
    for batch in sorted(batches, key=lambda batch: -len(batch.entries)):
        smaller = sizes.index(min(sizes))
        parts[smaller].append(batch)
        sizes[smaller] += len(batch.entries)
    return [part for part in parts if part]


def _halves(batches: Sequence[TenantBatch]) -> list[list[TenantBatch]]:
    if len(batches) > 1:
        middle = len(batches) // 2
        return [list(batches[:middle]), list(batches[middle:])]
    batch = batches[0]
    middle = len(batch.entries) // 2
    first, second = batch.entries[:middle], batch.entries[middle:]
    return [[replace(batch, entries=first, end=first[-1][0])], [replace(batch, entries=second)]]
