"""The archive: the whole log, verbatim, and the blobs it refers to. It outlives the trimming of a stream (I10)."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any

import asyncpg
import orjson

from projections.db import Connection
from projections.projection import Recorded, Unreadable
from schemas.content import blob_of
from schemas.event import FIELDS, AgentEvent, decode_body

_COLUMNS = ("tenant", "ms", "seq", *FIELDS)
_values = itemgetter(*FIELDS)


class Archive:
    """Table `events`; `unreadable` has the entries that make no event, `blobs` the large contents."""

    name = "archive"
    tables: tuple[str, ...] = ("events", "unreadable", "blobs")
    event_types: frozenset[str] | None = None

    async def apply(self, conn: Connection, batch: Sequence[Recorded]) -> None:
        """Copy the entries as they are stored."""
        rows = [(entry.event.tenant_id, *entry.position, *_values(entry.fields)) for entry in batch]
        await conn.copy_records_to_table("events", records=rows, columns=_COLUMNS)

    async def apply_unreadable(self, conn: Connection, batch: Sequence[Unreadable]) -> None:
        """Keep entries that are no events, as they are stored, and why."""
        await conn.executemany(
            "INSERT INTO unreadable (tenant, ms, seq, fields, error, reason) VALUES ($1, $2, $3, $4, $5, $6) "
            "ON CONFLICT DO NOTHING",
            [(one.tenant_id, *one.position, _printable(one.fields), clean(one.error), one.reason) for one in batch],
        )


def read_event(row: asyncpg.Record) -> AgentEvent:
    """The event in a row of `events`, upcast to today's version."""
    return AgentEvent(
        id=row["id"],
        tenant_id=row["tenant"],
        session_id=row["session"],
        task_id=row["task"],
        priority=row["priority"],
        source_agent_id=row["source"],
        call_chain=tuple(row["chain"].split(">")),
        parent_event_id=row["parent"] or None,
        at=datetime.fromisoformat(row["at"]),
        body=decode_body(row["type"], row["v"], row["body"]),
        position=f"{row['ms']}-{row['seq']}",
    )


async def keep_blobs(conn: Connection, blobs: Mapping[tuple[str, str], bytes]) -> None:
    """Keep large contents by (tenant, SHA-256)."""
    await conn.executemany(
        "INSERT INTO blobs (tenant, sha256, data) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        [(tenant, sha, data) for (tenant, sha), data in blobs.items()],
    )


def blob_hashes(body: str) -> set[str]:
    """The hashes of all blobs that a stored body refers to."""
    return set(blob_sizes(body))


def blob_sizes(body: str) -> dict[str, int]:
    """The blobs that a stored body refers to: SHA-256 → bytes, as the reference states them."""
    return dict(_walk(orjson.loads(body))) if '"$blob"' in body else {}


def _walk(value: Any) -> Iterator[tuple[str, int]]:
    sha = blob_of(value)
    if sha is not None:
        yield sha, value["bytes"] if isinstance(value["bytes"], int) else 0
    elif isinstance(value, dict):
        for item in value.values():
            yield from _walk(item)


def _printable(fields: object) -> str:
    # Bytes that are not UTF-8 arrive as lone surrogates, which neither JSON nor PostgreSQL can hold.
    return orjson.dumps(_escape(fields)).decode()


def _escape(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="surrogateescape").decode(errors="backslashreplace")
    if isinstance(value, Mapping):
        return {_escape(k): _escape(v) for k, v in value.items()}
    return [_escape(item) for item in value]


def clean(text: str | None) -> str | None:
    """Text that PostgreSQL can hold: it has no NUL character, and no lone surrogates."""
    return None if text is None else str(_escape(text)).replace("\x00", "\\x00")
