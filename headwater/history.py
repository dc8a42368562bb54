"""A tenant's log as one: what is archived, then what still stands only in the stream."""

from dataclasses import dataclass
from typing import Any

import orjson

from projections.db import Pool
from projections.history import SeenEntry, archived, archived_end, archived_to, belongs
from projections.projection import Position, format_position, parse_position
from projections.queries import blob
from schemas.errors import InvalidInputError, UnreadableEventError
from schemas.event import AgentEvent, decode, entry_fields
from streams.log import Log, read_event

SCAN_ENTRIES = 2000
"""How many entries of the stream one page looks at; a page with a filter may therefore hold few, and not be the end."""
MAX_NUMBER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Page:
    """Entries in log order. Go on after `last`; with `more`, there is more already."""

    entries: list[SeenEntry]
    last: Position
    more: bool


class History:
    """Reads pages of a tenant's log by position, also after the stream was trimmed."""

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
        live: bool = False,
    ) -> Page:
        """Up to `limit` entries after a position. `live`, for who read to the end: look into the stream first."""
        if live:
            page = await self._from_stream(tenant_id, after, limit, session_id, task_id)
            # Read after the page: if this entry is no newer than `after`, nothing between the two was trimmed.
            oldest = await self._log.oldest(tenant_id)
            if oldest is not None and parse_position(oldest) <= after:
                return page
        while True:
            old = await archived(
                self._pool, tenant_id, after=after, limit=limit, session_id=session_id, task_id=task_id
            )
            if old.full:
                return Page(old.entries, old.archived_to, more=True)
            start = max(after, old.archived_to)
            if len(old.entries) >= limit:
                return Page(old.entries, start, more=True)
            new = await self._from_stream(tenant_id, start, limit - len(old.entries), session_id, task_id)
            oldest = await self._log.oldest(tenant_id)
            trimmed = oldest is None or parse_position(oldest) > start
            if not trimmed or await archived_to(self._pool, tenant_id) <= start:
                return Page(old.entries + new.entries, new.last, new.more)
            # What stood between the two when the archive was read may have been archived and trimmed since.

    async def end(self, tenant_id: str) -> Position:
        """The position of the newest entry."""
        return parse_position(await self._log.end(tenant_id))

    async def _from_stream(
        self, tenant_id: str, after: Position, limit: int, session_id: str | None, task_id: str | None
    ) -> Page:
        filtered = session_id is not None or task_id is not None
        scan = SCAN_ENTRIES if filtered else limit
        found: list[SeenEntry] = []
        raw = await self._log.read(tenant_id, after=format_position(after), limit=scan)
        for entry in raw:
            fields = entry_fields(entry[1])
            after = parse_position(entry[0])
            if not belongs(fields, session_id, task_id):
                continue
            try:
                read_event(tenant_id, entry)
                found.append(SeenEntry(after, fields))
            except UnreadableEventError as error:
                found.append(SeenEntry(after, fields, str(error)))
            if len(found) == limit:
                return Page(found, after, more=True)
        return Page(found, after, more=len(raw) == scan)


class TaskArchive:
    """What `Outcomes` looks up when it is not in the stream any more."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def end_of(self, tenant_id: str, task_id: str) -> AgentEvent | None:
        """The event that ended a task, if it is archived."""
        found = await archived_end(self._pool, tenant_id, task_id)
        return None if found is None else decode(tenant_id, format_position(found.position), found.fields)

    async def blob(self, tenant_id: str, sha256: str) -> bytes | None:
        """A content, if it is archived."""
        return await blob(self._pool, tenant_id, sha256)


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
