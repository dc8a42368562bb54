"""Recorded logs as files: one JSON object a line, an entry of a tenant's log or a blob that it refers to."""

import gzip
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from schemas.event import AgentEvent, decode
from streams.connection import Streams
from streams.log import Entry

LOGS = Path(__file__).parent / "logs"


@dataclass(slots=True)
class Recording:
    """The logs of some tenants, verbatim."""

    entries: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """(tenant, position, fields), each tenant's in log order."""
    blobs: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Tenant → SHA-256 → JSON bytes."""

    def events(self) -> list[AgentEvent]:
        """Every entry, upcast to today's version."""
        return [decode(tenant, position, fields) for tenant, position, fields in self.entries]

    def all_blobs(self) -> dict[str, bytes]:
        """The blobs of all tenants, by hash."""
        return {sha: data for blobs in self.blobs.values() for sha, data in blobs.items()}

    def tenants(self) -> list[str]:
        """In the order of the file."""
        return list(dict.fromkeys(tenant for tenant, _, _ in self.entries))

    def write(self, path: Path) -> None:
        """To a file, compressed when its name ends with .gz."""
        lines = [{"tenant": t, "position": p, "fields": f} for t, p, f in self.entries]
        lines += [{"tenant": t, "blob": s, "data": d.decode()} for t, b in self.blobs.items() for s, d in b.items()]
        data = b"".join(orjson.dumps(line) + b"\n" for line in lines)
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)

    @classmethod
    def read(cls, path: Path) -> "Recording":
        """From a file."""
        data = path.read_bytes()
        recording = cls()
        for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines():
            row: dict[str, Any] = orjson.loads(line)
            if "blob" in row:
                recording.blobs.setdefault(row["tenant"], {})[row["blob"]] = row["data"].encode()
            else:
                recording.entries.append((row["tenant"], row["position"], row["fields"]))
        return recording

    async def restore(self, streams: Streams) -> None:
        """Into an empty Redis, at the recorded positions."""
        for tenant, position, fields in self.entries:
            await streams.redis.xadd(streams.keys.log(tenant), fields, id=position)  # type: ignore[arg-type]  # str is one of its types
        for tenant, blobs in self.blobs.items():
            for sha, data in blobs.items():
                await streams.redis.set(streams.keys.blob(tenant, sha), data)


def fields_of(entry: Entry) -> dict[str, str]:
    """An entry's fields, in their order."""
    flat = entry[1]
    return dict(zip(flat[::2], flat[1::2], strict=True))
