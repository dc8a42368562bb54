"""Where replay reads from: a tenant's archive and stream as one log, or a file that `headwater export` wrote.

Both give entries in log order, a page at a time, so that a tenant of a million events needs no memory for them.
"""

import gzip
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol, cast

import orjson

from headwater.history import History
from projections import queries
from projections.archive import blob_hashes
from projections.db import Pool
from projections.projection import START, Position, format_position, parse_position
from schemas.content import Json, blob_of, resolve
from schemas.errors import InvalidInputError, NotFoundError
from schemas.event import FIELDS
from streams.connection import Streams

PAGE = 1000
FORMAT = 1
Fields = dict[str, str]
"""An entry's fields by name, as they are stored."""


class Recording(Protocol):
    """A log that can be read again."""

    async def tenants(self) -> list[str]:
        """The tenants that it holds, in order."""
        ...

    def entries(
        self, tenant_id: str, *, task_id: str | None = None, session_id: str | None = None, after: Position = START
    ) -> AsyncIterator[tuple[str, Fields]]:
        """(position, fields) of a tenant's entries in log order."""
        ...

    async def blob(self, tenant_id: str, sha256: str) -> bytes:
        """A large content. Raises `NotFoundError`."""
        ...


async def resolved(recording: Recording, tenant_id: str, value: Json) -> Json:
    """A content, read in full."""
    sha = blob_of(value)
    return resolve(value, {} if sha is None else {sha: await recording.blob(tenant_id, sha)})


class LiveRecording:
    """The running system's log: the archive, and after it what the stream has and the archive not yet."""

    def __init__(self, streams: Streams, pool: Pool) -> None:
        self._streams = streams
        self._pool = pool
        self._history = History(streams.log, pool)

    async def tenants(self) -> list[str]:
        """Tenants that the archive knows."""
        return await queries.tenants(self._pool)

    async def entries(
        self, tenant_id: str, *, task_id: str | None = None, session_id: str | None = None, after: Position = START
    ) -> AsyncIterator[tuple[str, Fields]]:
        """From the archive, then from the stream."""
        more = True
        while more:
            page = await self._history.page(tenant_id, after=after, limit=PAGE, session_id=session_id, task_id=task_id)
            for entry in page.entries:
                yield format_position(entry.position), entry.fields
            after, more = page.last, page.more

    async def blob(self, tenant_id: str, sha256: str) -> bytes:
        """From the archive, else from Redis."""
        data = await queries.blob(self._pool, tenant_id, sha256)
        return data if data is not None else (await self._streams.log.blobs(tenant_id, [sha256]))[sha256]


class FileRecording:
    """A file of `headwater export`: one JSON object a line, gzipped if its name ends with `.gz`.

    A line is {"tenant", "position", and the entry's fields} or {"tenant", "blob", "data"}; a blob stands before the
    first entry that refers to it. The blobs are read at the first look at one, and only then.
    """

    def __init__(self, path: Path) -> None:
        """Raises `InvalidInputError` if the file cannot be read or is no export."""
        self._path = path
        self._blobs: dict[tuple[str, str], bytes] | None = None
        first = next(self._lines(), None)
        if first is None or first.get("headwater") != FORMAT:
            raise InvalidInputError(f"{path} is not a file of 'headwater export' (format {FORMAT})")

    async def tenants(self) -> list[str]:
        """Tenants that have an entry in the file."""
        return sorted({line["tenant"] for line in self._lines() if "position" in line})

    async def entries(
        self, tenant_id: str, *, task_id: str | None = None, session_id: str | None = None, after: Position = START
    ) -> AsyncIterator[tuple[str, Fields]]:
        """In the file's order, which is the log's."""
        for line in self._lines():
            if line.get("tenant") != tenant_id or "position" not in line:
                continue
            if task_id not in (None, line["task"]) or session_id not in (None, line["session"]):
                continue
            if parse_position(line["position"]) > after:
                yield line["position"], {name: line[name] for name in FIELDS}

    async def blob(self, tenant_id: str, sha256: str) -> bytes:
        """From the file."""
        if self._blobs is None:
            self._blobs = {
                (line["tenant"], line["blob"]): line["data"].encode() for line in self._lines() if "blob" in line
            }
        try:
            return self._blobs[tenant_id, sha256]
        except KeyError:
            raise NotFoundError(f"{self._path}: blob {sha256} of tenant {tenant_id!r} is missing") from None

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            opener = gzip.open if self._path.suffix == ".gz" else open
            with cast("IO[bytes]", opener(self._path, "rb")) as file:
                for number, line in enumerate(file, 1):
                    value = orjson.loads(line)
                    if not isinstance(value, dict):
                        raise InvalidInputError(f"{self._path}, line {number}: is not a JSON object")
                    yield value
        except OSError as error:
            raise InvalidInputError(f"{self._path} cannot be read: {error}") from error
        except orjson.JSONDecodeError as error:
            raise InvalidInputError(f"{self._path}: a line is not JSON: {error}") from error


async def export(
    recording: Recording, tenants: Iterable[str], *, task_id: str | None = None, session_id: str | None = None
) -> AsyncIterator[bytes]:
    """The lines of an export file, each with its newline."""
    yield orjson.dumps({"headwater": FORMAT}) + b"\n"
    for tenant_id in tenants:
        written: set[str] = set()
        async for position, fields in recording.entries(tenant_id, task_id=task_id, session_id=session_id):
            for sha in sorted(blob_hashes(fields.get("body", "")) - written):
                written.add(sha)
                data = (await recording.blob(tenant_id, sha)).decode()
                yield orjson.dumps({"tenant": tenant_id, "blob": sha, "data": data}) + b"\n"
            yield orjson.dumps({"tenant": tenant_id, "position": position, **fields}) + b"\n"
