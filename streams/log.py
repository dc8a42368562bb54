"""Reading one tenant's log: entries by position, events, and the blobs they refer to."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Protocol

from schemas.content import Json, blob_of, resolve
from schemas.errors import NotFoundError, UnreadableEventError
from schemas.event import AgentEvent, decode, entry_fields
from streams.keys import Keys
from streams.pipe import RedisClient
from streams.wire import redis_errors

Entry = tuple[str, list[str]]
"""(position, flat list of field names and values)"""

FOLLOW_BLOCK_MS = 1000


def _text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


def entries_of(reply: Any) -> list[Entry]:
    """The entries of a stream as Redis replies them, whatever the protocol."""
    entries: list[Entry] = []
    for position, fields in reply:
        flat = [item for pair in fields.items() for item in pair] if isinstance(fields, dict) else fields
        entries.append((position.decode(), [_text(item) for item in flat]))
    return entries


def read_event(tenant_id: str, entry: Entry) -> AgentEvent:
    """The event in an entry. Raises `UnreadableEventError` naming the entry and what is wrong with it."""
    return decode(tenant_id, entry[0], entry_fields(entry[1]))


class Archive(Protocol):
    """Where entries and contents are that have been trimmed from the streams."""

    async def events(self, tenant_id: str, positions: Sequence[str]) -> dict[str, AgentEvent]:
        """Position → event, of those that are archived."""
        ...

    async def end_of(self, tenant_id: str, task_id: str) -> AgentEvent | None:
        """The event that ended a task, if it is archived."""
        ...

    async def blobs(self, tenant_id: str, hashes: Sequence[str]) -> dict[str, bytes]:
        """SHA-256 → JSON bytes, of those that are archived."""
        ...


class Log:
    """Reads the logs; the tenant is named in every call and decides the key.

    With an `archive`, single events and contents are found there that are no longer in Redis.
    """

    def __init__(self, redis: RedisClient, keys: Keys) -> None:
        self.redis = redis
        self.keys = keys
        self.archive: Archive | None = None
        """Set by the composition root of a process that has a database."""

    async def read(self, tenant_id: str, *, after: str = "0-0", limit: int = 1000) -> list[Entry]:
        """Up to `limit` entries after the position `after`, oldest first."""
        with redis_errors():
            return entries_of(await self.redis.xrange(self.keys.log(tenant_id), f"({after}", "+", count=limit))

    async def end(self, tenant_id: str) -> str:
        """The position of the newest entry, "0-0" for an empty log."""
        with redis_errors():
            newest = entries_of(await self.redis.xrevrange(self.keys.log(tenant_id), count=1))
        return newest[0][0] if newest else "0-0"

    async def oldest(self, tenant_id: str) -> str | None:
        """The position of the oldest entry that still stands in the stream, None for an empty one."""
        with redis_errors():
            oldest = entries_of(await self.redis.xrange(self.keys.log(tenant_id), count=1))
        return oldest[0][0] if oldest else None

    async def trimmed_to(self, tenant_id: str) -> str:
        """The position of the newest entry that was trimmed, or is about to be; "0-0" if none was."""
        with redis_errors():
            trimmed = await self.redis.hget(self.keys.readers(tenant_id), "trimmed")
        return trimmed.decode() if isinstance(trimmed, bytes) else "0-0"

    async def fetch(self, tenant_id: str, positions: Iterable[str]) -> list[AgentEvent]:
        """The events at exactly these positions. `NotFoundError`: one is neither in the stream nor archived."""
        wanted = list(positions)
        pipeline = self.redis.pipeline(transaction=False)
        for position in wanted:
            pipeline.xrange(self.keys.log(tenant_id), position, position)
        with redis_errors():
            replies = await pipeline.execute() if wanted else []
        found = {
            position: read_event(tenant_id, entries_of(reply)[0])
            for position, reply in zip(wanted, replies, strict=True)
            if reply
        }
        missing = [position for position in wanted if position not in found]
        if missing and self.archive is not None:
            found |= await self.archive.events(tenant_id, missing)
        for position in missing:
            if position not in found:
                raise NotFoundError(f"entry {position} of tenant {tenant_id!r} is not in the log any more")
        return [found[position] for position in wanted]

    async def blobs(self, tenant_id: str, hashes: Iterable[str]) -> dict[str, bytes]:
        """SHA-256 → JSON bytes. Raises `NotFoundError` naming the first blob that is missing."""
        wanted = list(dict.fromkeys(hashes))
        pipeline = self.redis.pipeline(transaction=False)
        for sha in wanted:
            pipeline.get(self.keys.blob(tenant_id, sha))
        with redis_errors():
            replies = await pipeline.execute() if wanted else []
        found = {sha: data for sha, data in zip(wanted, replies, strict=True) if data is not None}
        missing = [sha for sha in wanted if sha not in found]
        if missing and self.archive is not None:
            found |= await self.archive.blobs(tenant_id, missing)
        for sha in missing:
            if sha not in found:
                raise NotFoundError(f"blob {sha} of tenant {tenant_id!r} is missing")
        return found

    async def resolve(self, tenant_id: str, value: Json) -> Json:
        """`value`, or what it refers to."""
        sha = blob_of(value)
        return resolve(value, {} if sha is None else await self.blobs(tenant_id, [sha]))

    async def follow(self, tenant_id: str, *, after: str = "0-0", limit: int = 500) -> AsyncIterator[Entry]:
        """All entries after `after`, then each new one as it comes, for ever. Holds one connection."""
        while True:
            with redis_errors():
                reply = await self.redis.xread({self.keys.log(tenant_id): after}, count=limit, block=FOLLOW_BLOCK_MS)
            found = reply.values() if isinstance(reply, dict) else [entries for _, entries in reply or []]
            for entries in found:
                # RESP3 wraps the entries of a stream in one more list.
                for entry in entries_of(entries[0] if entries and isinstance(entries[0], list) else entries):
                    after = entry[0]
                    yield entry
            await asyncio.sleep(0)


def readable(tenant_id: str, entries: Iterable[Entry]) -> tuple[list[AgentEvent], list[tuple[Entry, str]]]:
    """Split entries into events and (entry, why it cannot be read)."""
    events, unreadable = [], []
    for entry in entries:
        try:
            events.append(read_event(tenant_id, entry))
        except UnreadableEventError as error:
            unreadable.append((entry, str(error)))
    return events, unreadable
