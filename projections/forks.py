"""The forks of a task, and theirs, and what they cost: never in its own totals, so asked for here."""

from typing import Any

from projections.db import Pool, tenant_connection
from projections.queries import iso
from schemas.money import plain

MAX_FORKS = 10_000
_FORKS = """
WITH RECURSIVE forks AS (
    SELECT task, fork_of, status, submitted_at, ended_at FROM tasks WHERE tenant = $1 AND fork_of = $2
    UNION
    SELECT t.task, t.fork_of, t.status, t.submitted_at, t.ended_at
    FROM tasks t JOIN forks f ON t.tenant = $1 AND t.fork_of = f.task
)
SELECT f.*, (SELECT coalesce(sum(l.cost_usd), 0) FROM ledger l WHERE l.tenant = $1 AND l.task = f.task) AS cost
FROM forks f ORDER BY f.submitted_at, f.task LIMIT $3
"""
_COST = "SELECT coalesce(sum(cost_usd), 0) FROM ledger WHERE tenant = $1 AND task = $2"


async def forks_of(pool: Pool, tenant_id: str, task_id: str) -> dict[str, Any] | None:
    """All forks of a task, theirs too, in the order of their submission; None if there is no such task.

    `cost_usd` is the task's own, `forks_usd` that of all its forks (of the first ten thousand), `total_usd` both.
    """
    async with tenant_connection(pool, tenant_id) as conn:
        if await conn.fetchval("SELECT 1 FROM tasks WHERE tenant = $1 AND task = $2", tenant_id, task_id) is None:
            return None
        own = await conn.fetchval(_COST, tenant_id, task_id)
        rows = await conn.fetch(_FORKS, tenant_id, task_id, MAX_FORKS)
    forks = [
        {
            "task": row["task"],
            "fork_of": row["fork_of"],
            "status": row["status"],
            "submitted_at": iso(row["submitted_at"]),
            "ended_at": iso(row["ended_at"]),
            "cost_usd": plain(row["cost"]),
        }
        for row in rows
    ]
    of_forks = sum((row["cost"] for row in rows), start=own * 0)
    return {
        "tenant": tenant_id,
        "task": task_id,
        "forks": forks,
        "cost_usd": plain(own),
        "forks_usd": plain(of_forks),
        "total_usd": plain(own + of_forks),
    }
