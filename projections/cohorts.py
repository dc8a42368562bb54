"""Tasks of a tenant by what they have in common, and how a set of tasks stands: what runs over cohorts ask."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from projections.db import Pool, tenant_connection

_MEMBERS = """
SELECT task FROM tasks
WHERE tenant = $1 AND fork_of IS NULL AND ended_at IS NOT NULL AND ($2::text IS NULL OR type = $2)
    AND ($3::timestamptz IS NULL OR submitted_at >= $3) AND ($4::text IS NULL OR status = $4)
    AND ($5::text IS NULL OR session = $5)
ORDER BY task
"""
_STANDING = """
SELECT t.task, t.status, t.submitted_at, t.ended_at,
    (SELECT coalesce(sum(l.cost_usd), 0) FROM ledger l WHERE l.tenant = t.tenant AND l.task = t.task) AS cost
FROM tasks t WHERE t.tenant = $1 AND t.task = ANY($2)
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a task stands. `duration_us` is None until it has ended."""

    task_id: str
    status: str
    cost_usd: Decimal
    duration_us: int | None


async def members(
    pool: Pool,
    tenant_id: str,
    *,
    task_type: str | None = None,
    since: datetime | None = None,
    status: str | None = None,
    session_id: str | None = None,
) -> list[str]:
    """The ids of a tenant's tasks that have ended and are no forks, with these properties."""
    async with tenant_connection(pool, tenant_id) as conn:
        rows = await conn.fetch(_MEMBERS, tenant_id, task_type, since, status, session_id)
    return [row["task"] for row in rows]


async def standing(pool: Pool, tenant_id: str, tasks: Sequence[str]) -> dict[str, Standing]:
    """Task id → how it stands, for those of `tasks` that the projections know."""
    async with tenant_connection(pool, tenant_id) as conn:
        rows = await conn.fetch(_STANDING, tenant_id, tasks)
    return {
        row["task"]: Standing(
            row["task"], row["status"], row["cost"], _microseconds(row["submitted_at"], row["ended_at"])
        )
        for row in rows
    }


def _microseconds(start: datetime, end: datetime | None) -> int | None:
    return None if end is None else max(0, round((end - start).total_seconds() * 1_000_000))
