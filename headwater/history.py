"""A tenant's log as one: what is archived, then what still stands only in the stream."""

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from projections.db import Pool
from projections.history import (
    SeenEntry,
    Spent,
    Wanted,
    archived,
    archived_at,
    archived_end,
    archived_to,
    spent_to,
)
from projections.projection import START, Position, format_position, parse_position
from projections.queries import blobs, tenants
from schemas.errors import InvalidInputError, UnreadableEventError
from schemas.event import AgentEvent, decode, entry_fields
from streams.log import Log, read_event

SCAN_ENTRIES = 2000
"""How many entries of the stream one page looks at; a page with a filter may therefore hold few, and not be the end."""
PAGE = 1000
EVERYTHING = Wanted()
MAX_NUMBER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Page:
    """Entries in log order. Go on after `last`; with `more`, there is more already."""

    entries: list[SeenEntry]
    last: Position
    more: bool


class History:
    """A tenant's log, read from the archive and from the stream as one: the same before and after trimming."""

    def __init__(self, log: Log, pool: Pool) -> None:
        self._log = log
        self._pool = pool

    async def page(
        self,
        tenant_id: str,
        *,
        after: Position,
        limit: int,
        session_id: str | None = None,
        task_id: str | None = None,
        types: Collection[str] | None = None,
        live: bool = False,
    ) -> Page:
        """Up to `limit` entries after a position. `live`, for who read to the end: look into the stream first."""
        wanted = Wanted(session_id, task_id, types)
        if live:
            page = await self._from_stream(tenant_id, after, limit, wanted)
            # Read after the page: if this entry is no newer than `after`, nothing between the two was trimmed.
            oldest = await self._log.oldest(tenant_id)
            if oldest is not None and parse_position(oldest) <= after:
                return page
        while True:
            old = await archived(self._pool, tenant_id, wanted, after=after, limit=limit)
            if old.full:
                return Page(old.entries, old.archived_to, more=True)
            start = max(after, old.archived_to)
            if len(old.entries) >= limit:
                return Page(old.entries, start, more=True)
            new = await self._from_stream(tenant_id, start, limit - len(old.entries), wanted)
            oldest = await self._log.oldest(tenant_id)
            trimmed = oldest is None or parse_position(oldest) > start
            if not trimmed or await archived_to(self._pool, tenant_id) <= start:
                return Page(old.entries + new.entries, new.last, new.more)
            # What stood between the two when the archive was read may have been archived and trimmed since.

    async def entries(
        self,
        tenant_id: str,
        *,
        task_id: str | None = None,
        session_id: str | None = None,
        types: Collection[str] | None = None,
        after: Position = START,
    ) -> AsyncIterator[tuple[str, dict[str, str]]]:
        """(position, fields) of all entries after a position, a page at a time: a tenant's whole log fits."""
        more = True
        while more:
            page = await self.page(
                tenant_id, after=after, limit=PAGE, session_id=session_id, task_id=task_id, types=types
            )
            for entry in page.entries:
                yield format_position(entry.position), entry.fields
            after, more = page.last, page.more

    async def end(self, tenant_id: str) -> Position:
        """The position of the newest entry."""
        return parse_position(await self._log.end(tenant_id))

    async def tenants(self) -> list[str]:
        """Tenants that the archive knows."""
        return await tenants(self._pool)

    async def blob(self, tenant_id: str, sha256: str) -> bytes:
        """A large content. Raises `NotFoundError`."""
        return (await self._log.blobs(tenant_id, [sha256]))[sha256]

    async def spent_to(self, tenant_id: str, upto: Position) -> tuple[dict[str, Spent], Position]:
        """(agent → what it had spent at `upto`, the position that this is known to), from the ledger's rows."""
        return await spent_to(self._pool, tenant_id, upto)

    async def _from_stream(self, tenant_id: str, after: Position, limit: int, wanted: Wanted) -> Page:
        scan = limit if wanted == EVERYTHING else SCAN_ENTRIES
        found: list[SeenEntry] = []
        raw = await self._log.read(tenant_id, after=format_position(after), limit=scan)
        for entry in raw:
            fields = entry_fields(entry[1])
            after = parse_position(entry[0])
            if not wanted.has(fields):
                continue
            try:
                read_event(tenant_id, entry)
                found.append(SeenEntry(after, fields))
            except UnreadableEventError as error:
                found.append(SeenEntry(after, fields, str(error)))
            if len(found) == limit:
                return Page(found, after, more=True)
        return Page(found, after, more=len(raw) == scan)


class LogArchive:
    """What the log looks up when it is not in the stream any more."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def events(self, tenant_id: str, positions: Sequence[str]) -> dict[str, AgentEvent]:
        """Position → event, of those that are archived."""
        found = await archived_at(self._pool, tenant_id, [parse_position(position) for position in positions])
        there = {format_position(entry.position): entry.fields for entry in found}
        return {position: decode(tenant_id, position, fields) for position, fields in there.items()}

    async def end_of(self, tenant_id: str, task_id: str) -> AgentEvent | None:
        """The event that ended a task, if it is archived."""
        found = await archived_end(self._pool, tenant_id, task_id)
        return None if found is None else decode(tenant_id, format_position(found.position), found.fields)

    async def blobs(self, tenant_id: str, hashes: Sequence[str]) -> dict[str, bytes]:
        """SHA-256 → JSON bytes, of those that are archived."""
        return await blobs(self._pool, tenant_id, hashes)


def check_position(text: str, name: str) -> Position:
    """A position such as `1732450000000-0` as a pair. Raises `InvalidInputError` naming `name`."""
    ms, dash, seq = text.partition("-")
    parts = (ms, seq if dash else "0")
    if not all(part.isascii() and part.isdigit() and len(part) < 20 and int(part) <= MAX_NUMBER for part in parts):
        raise InvalidInputError(f"{name} {text[:80]!r} is not a position such as 1732450000000-0")
    return int(parts[0]), int(parts[1])


def event_json(tenant_id: str, entry: SeenEntry) -> dict[str, Any]:
    """A readable entry as the API and the command line print it."""
    fields = entry.fields
    return {
        "position": format_position(entry.position),
        "tenant": tenant_id,
        **fields,
        "v": int(fields["v"]),
        "body": orjson.loads(fields["body"]),
    }
