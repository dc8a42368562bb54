"""What of a tenant's log may be trimmed, as far as the archive can say (I10)."""

from projections.db import Pool, database_errors, tenant_connection
from projections.projection import START, Position

_READ = "SELECT ms, seq FROM positions WHERE tenant = $1 ORDER BY ms, seq LIMIT 1"
_OPEN = """
SELECT min(e.ms) FROM tasks t JOIN events e ON e.tenant = t.tenant AND e.task = t.task
WHERE t.tenant = $1 AND t.ended_at IS NULL
"""
_REFERRED = """
SELECT DISTINCT found[1] FROM events, regexp_matches(body::text, '"\\$blob":\\s*"([0-9a-f]{64})"', 'g') AS found
WHERE tenant = $1 AND (ms, seq) >= ($2, $3)
"""


async def archived_tenants(pool: Pool) -> list[str]:
    """Every tenant with archived events: an administrator's list."""
    with database_errors():
        rows = await pool.fetch("SELECT tenant FROM positions WHERE projection = 'archive' ORDER BY tenant")
    return [row["tenant"] for row in rows]


async def trimmable(pool: Pool, tenant_id: str, *, before_ms: int) -> Position:
    """The position before which every entry is archived, projected, older than `before_ms`, and of no open task.

    All events of an open task stay: its calls may be given to another worker, who reads what was recorded.
    """
    async with tenant_connection(pool, tenant_id) as conn:
        row = await conn.fetchrow(_READ, tenant_id)
        first_ms = await conn.fetchval(_OPEN, tenant_id)
    read = START if row is None else (row["ms"], row["seq"])
    return min(read, (before_ms, 0), read if first_ms is None else (first_ms, 0))


async def removable_blobs(pool: Pool, tenant_id: str, hashes: list[str], *, bound: Position) -> list[str]:
    """Those of `hashes` that are archived, and that no archived entry from `bound` on refers to."""
    async with tenant_connection(pool, tenant_id) as conn:
        kept = {row[0] for row in await conn.fetch(_REFERRED, tenant_id, *bound)}
        rows = await conn.fetch("SELECT sha256 FROM blobs WHERE tenant = $1 AND sha256 = ANY($2)", tenant_id, hashes)
    return [row["sha256"] for row in rows if row["sha256"] not in kept]
