"""How far the export to Langfuse is behind, read within bounds: a scrape asks every few seconds."""

from dataclasses import dataclass

from projections.db import Pool, database_errors
from projections.langfuse.spans import EXPORTED

SAMPLE = 200
"""Tenants that are looked into: those whose export stands the furthest back."""
MAX_COUNTED = 10_000
"""Where counting stops: the archive behind it may be days long."""

_BACKLOG = """
WITH behind AS MATERIALIZED (
    SELECT p.tenant, coalesce(l.ms, 0) AS ms, coalesce(l.seq, 0) AS seq, p.ms AS end_ms, p.seq AS end_seq
    FROM positions p LEFT JOIN langfuse_positions l USING (tenant)
    WHERE p.projection = 'archive' AND (p.ms, p.seq) > (coalesce(l.ms, 0), coalesce(l.seq, 0))
    ORDER BY 2, 3, 1 LIMIT $2
), oldest AS (
    SELECT min(e.ms) AS ms FROM behind b CROSS JOIN LATERAL (
        SELECT ms FROM events WHERE tenant = b.tenant AND (ms, seq) > (b.ms, b.seq)
        AND (ms, seq) <= (b.end_ms, b.end_seq) AND type = ANY($1) ORDER BY ms, seq LIMIT 1
    ) e
    UNION ALL SELECT min(ms) FROM langfuse_in_flight
), counted AS (
    SELECT e.ms FROM behind b CROSS JOIN LATERAL (
        SELECT ms FROM events WHERE tenant = b.tenant AND (ms, seq) > (b.ms, b.seq)
        AND (ms, seq) <= (b.end_ms, b.end_seq) AND type = ANY($1)
    ) e LIMIT $3
)
SELECT (SELECT count(*) FROM counted) AS waiting,
    (SELECT count(*) FROM langfuse_in_flight) AS in_flight,
    (SELECT count(*) FROM langfuse_refused) AS refused,
    greatest(0, coalesce(extract(epoch FROM clock_timestamp()) - min(ms) / 1000.0, 0))::float8 AS oldest_s
FROM oldest
"""


@dataclass(frozen=True, slots=True)
class ExportBacklog:
    """What Langfuse does not have yet, over all tenants: an operator's numbers."""

    waiting: int
    """Archived events that were not given out, at least: exact up to `SAMPLE` tenants and `MAX_COUNTED` events."""
    in_flight: int
    """Given out, and not known to have arrived."""
    refused: int
    """Refused for good, ever."""
    oldest_s: float
    """Age of the oldest that waits or is in flight, by PostgreSQL's clock; 0 where there is none."""


async def export_backlog(pool: Pool) -> ExportBacklog:
    """How far the export is behind. Raises `UnavailableError`."""
    with database_errors():
        row = await pool.fetchrow(_BACKLOG, sorted(EXPORTED), SAMPLE, MAX_COUNTED)
    assert row is not None
    return ExportBacklog(**row)
