"""Memories: what agents stored, with the vectors they are found by (contract row D2).

The vectors stand in a column without a fixed length, so that embedders can differ; each length gets an HNSW index of
its own when it first appears. Where pgvector cannot be had the table has no such column, and memories are kept without
being found: `headwater rebuild memories` brings them in once the extension is there.
"""

from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from struct import unpack

import orjson

from projections.contents import read_contents
from projections.db import Connection
from projections.projection import Recorded
from schemas.bodies import MemoryStored

COLUMNS = (
    *("tenant", "event_id", "ms", "seq", "at", "agent", "session", "task", "text", "metadata", "embedder"),
    "dimensions",
)
MAX_VECTOR_INDEX = 2000
MAX_HALFVEC_INDEX = 4000
"""pgvector indexes up to so many dimensions at full and at half precision. More are compared one by one."""
_INDEX_LOCK = 0x6D65_6D6F  # "memo"


@dataclass(frozen=True, slots=True)
class Pgvector:
    """Where the extension's types and operators live."""

    schema: str

    @property
    def distance(self) -> str:
        """The operator of cosine distance."""
        return f"OPERATOR({self.schema}.<=>)"

    def indexed_type(self, dimensions: int) -> str | None:
        """The type under which vectors of this length are indexed, or None if they are too long for an index."""
        if dimensions > MAX_HALFVEC_INDEX:
            return None
        return f"{self.schema}.{'vector' if dimensions <= MAX_VECTOR_INDEX else 'halfvec'}({dimensions})"


class Memories:
    """Table `memories`. Each row names its event, its embedder and its number of dimensions."""

    name = "memories"
    tables: tuple[str, ...] = ("memories",)
    event_types: frozenset[str] | None = frozenset({MemoryStored.type})

    async def apply(self, conn: Connection, batch: Sequence[Recorded]) -> None:
        """One row per memory."""
        rows = [_row(entry) for entry in batch]
        columns, values = list(COLUMNS), [f"${n}" for n in range(1, len(COLUMNS) + 1)]
        pgvector = await find_pgvector(conn)
        if pgvector is not None:
            for dimensions in sorted({entry.event.body.dimensions for entry in batch}):  # type: ignore[attr-defined]
                await ensure_index(conn, pgvector, dimensions)
            columns.append("embedding")
            values.append(f"${len(values) + 1}::text::{pgvector.schema}.vector")
            vectors = [await _vector(conn, entry) for entry in batch]
            rows = [(*row, vector) for row, vector in zip(rows, vectors, strict=True)]
        await conn.executemany(
            f"INSERT INTO memories ({', '.join(columns)}) VALUES ({', '.join(values)})",
            rows,
        )


async def find_pgvector(conn: Connection) -> Pgvector | None:
    """The extension as the table uses it, or None where there is none."""
    schema = await conn.fetchval(
        "SELECT quote_ident(n.nspname) FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
        "JOIN pg_namespace n ON n.oid = t.typnamespace "
        "WHERE a.attrelid = 'memories'::regclass AND a.attname = 'embedding' AND NOT a.attisdropped"
    )
    return None if schema is None else Pgvector(schema)


async def ensure_index(conn: Connection, pgvector: Pgvector, dimensions: int) -> None:
    """Create the index for vectors of this length, unless it is there or they are too long for one."""
    kind = pgvector.indexed_type(dimensions)
    name = f"memories_hnsw_{dimensions}"
    if kind is None or await conn.fetchval("SELECT to_regclass($1) IS NOT NULL", name):
        return
    await conn.execute("SELECT pg_advisory_xact_lock($1)", _INDEX_LOCK)
    operators = f"{kind.partition('(')[0]}_cosine_ops"
    await conn.execute(
        f"CREATE INDEX IF NOT EXISTS {name} ON memories USING hnsw ((embedding::{kind}) {operators}) "
        f"WHERE dimensions = {dimensions}"
    )


def _row(entry: Recorded) -> tuple[object, ...]:
    event, body = entry.event, entry.event.body
    assert isinstance(body, MemoryStored)
    return (
        event.tenant_id,
        event.id,
        *entry.position,
        event.at,
        body.agent_id,
        event.session_id,
        event.task_id,
        orjson.dumps(body.text).decode(),
        orjson.dumps(body.metadata).decode(),
        body.embedder,
        body.dimensions,
    )


async def _vector(conn: Connection, entry: Recorded) -> str:
    """The embedding in pgvector's text form. Raises `ValueError` for what is not as long as it says."""
    body = entry.event.body
    assert isinstance(body, MemoryStored)
    (text,) = await read_contents(conn, entry.event.tenant_id, [body.embedding])
    data = b64decode(text, validate=True)
    if len(data) != 4 * body.dimensions:
        raise ValueError(f"event {entry.event.id}: {len(data)} bytes are not {body.dimensions} numbers of 32 bits")
    return vector_text(unpack(f"<{body.dimensions}f", data))


def vector_text(vector: Sequence[float]) -> str:
    """A vector in pgvector's text form. Nine digits bring a 32-bit number back as it was."""
    return f"[{','.join(f'{x:.9g}' for x in vector)}]"
