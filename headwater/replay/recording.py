"""Where replay reads from: the running system's log (`headwater.history`), or a file that `headwater export` wrote.

Both give entries in log order, a few at a time, so that a tenant of a million events needs no memory for them.
"""

import gzip
import re
import shutil
import tempfile
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol, cast

import orjson

from projections.archive import blob_hashes
from projections.history import Spent, Wanted
from projections.projection import START, Position, parse_position
from schemas.content import Json, blob_of, resolve
from schemas.errors import InvalidInputError, NotFoundError

FORMAT = 1
_HEAD = re.compile(rb'\{"tenant":"([^"\\]*)","position":"[^"\\]*","id":"[^"\\]*","type":"([^"\\]*)",')
"""How an entry's line begins, as `export` writes it."""
Fields = dict[str, str]
"""An entry's fields by name, as they are stored."""


class Recording(Protocol):
    """A log that can be read again."""

    async def tenants(self) -> list[str]:
        """The tenants that it holds, in order."""
        ...

    def entries(
        self,
        tenant_id: str,
        *,
        task_id: str | None = None,
        session_id: str | None = None,
        types: Collection[str] | None = None,
        after: Position = START,
    ) -> AsyncIterator[tuple[str, Fields]]:
        """(position, fields) of a tenant's entries in log order."""
        ...

    async def blob(self, tenant_id: str, sha256: str) -> bytes:
        """A large content. Raises `NotFoundError`."""
        ...

    async def spent_to(self, tenant_id: str, upto: Position) -> tuple[dict[str, Spent], Position]:
        """What is known of the ledger at `upto` without reading the log: (agent → what it had spent, the position that
        this is known to)."""
        ...


async def resolved(recording: Recording, tenant_id: str, value: Json) -> Json:
    """A content, read in full."""
    sha = blob_of(value)
    return resolve(value, {} if sha is None else {sha: await recording.blob(tenant_id, sha)})


class FileRecording:
    """A file of `headwater export`: one JSON object a line, gzipped if its name ends with `.gz`.

    A line is {"tenant", "position", and the entry's fields} or {"tenant", "blob", "data"}; a blob stands before the
    first entry that refers to it. Where the blobs stand is found out at the first look at one, and only then; a gzipped
    file is unpacked for that, to a temporary one.
    """

    def __init__(self, path: Path) -> None:
        """Raises `InvalidInputError` if the file cannot be read or is no export."""
        self._path = path
        self._blobs: _Blobs | None = None
        first = next(self._lines(), None)
        if first is None or first.get("headwater") != FORMAT:
            raise InvalidInputError(f"{path} is not a file of 'headwater export' (format {FORMAT})")

    async def tenants(self) -> list[str]:
        """Tenants that have an entry in the file."""
        found: set[str] = set()
        for line in self._lines(lambda tenant, _: tenant not in found):
            if "position" in line:
                found.add(line["tenant"])
        return sorted(found)

    async def entries(
        self,
        tenant_id: str,
        *,
        task_id: str | None = None,
        session_id: str | None = None,
        types: Collection[str] | None = None,
        after: Position = START,
    ) -> AsyncIterator[tuple[str, Fields]]:
        """In the file's order, which is the log's."""
        wanted = Wanted(session_id, task_id, types)
        for line in self._lines(lambda tenant, kind: tenant == tenant_id and (types is None or kind in types)):
            position, tenant = line.pop("position", None), line.pop("tenant", None)
            if position is None or tenant != tenant_id or not wanted.has(line):
                continue
            if after == START or parse_position(position) > after:
                yield position, line

    async def blob(self, tenant_id: str, sha256: str) -> bytes:
        """From the file."""
        if self._blobs is None:
            self._blobs = _Blobs(self._path)
        data = self._blobs.find(tenant_id, sha256)
        if data is None:
            raise NotFoundError(f"{self._path}: blob {sha256} of tenant {tenant_id!r} is missing")
        return data

    async def spent_to(self, tenant_id: str, upto: Position) -> tuple[dict[str, Spent], Position]:
        """A file has no ledger: all of it is in the log."""
        return {}, START

    def _lines(self, wanted: Callable[[str, str], bool] = lambda tenant, kind: True) -> Iterator[dict[str, Any]]:
        """The lines. An entry's tenant and type are seen before the rest of it is read, which is not done for those
        that are not `wanted`; from a file that somebody else has written, these may be among them."""
        try:
            opener = gzip.open if self._path.suffix == ".gz" else open
            with cast("IO[bytes]", opener(self._path, "rb")) as file:
                for number, line in enumerate(file, 1):
                    head = _HEAD.match(line)
                    if head is not None and not wanted(
                        head[1].decode(errors="replace"), head[2].decode(errors="replace")
                    ):
                        continue
                    value = orjson.loads(line)
                    if not isinstance(value, dict):
                        raise InvalidInputError(f"{self._path}, line {number}: is not a JSON object")
                    yield value
        except OSError as error:
            raise InvalidInputError(f"{self._path} cannot be read: {error}") from error
        except orjson.JSONDecodeError as error:
            raise InvalidInputError(f"{self._path}: a line is not JSON: {error}") from error


class _Blobs:
    """Where the large contents of a file stand: their places are remembered, and not what they say."""

    def __init__(self, path: Path) -> None:
        if path.suffix == ".gz":
            self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed when this goes
            with gzip.open(path, "rb") as packed:
                shutil.copyfileobj(packed, self._file)
            self._file.seek(0)
        else:
            self._file = path.open("rb")
        weakref.finalize(self, self._file.close)
        self._places: dict[str, dict[str, int]] = {}
        place = 0
        for line in self._file:
            if b'"blob"' in line and "blob" in (value := orjson.loads(line)):
                self._places.setdefault(value["tenant"], {})[value["blob"]] = place
            place += len(line)

    def find(self, tenant_id: str, sha256: str) -> bytes | None:
        """A content's JSON, or None if the file does not have it."""
        place = self._places.get(tenant_id, {}).get(sha256)
        if place is None:
            return None
        self._file.seek(place)
        return bytes(orjson.loads(self._file.readline())["data"].encode())


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
