"""The forks of a task, and theirs, and what they cost: never in its own totals, so asked for here."""

from typing import Any

from projections.db import Pool, tenant_connection
from projections.queries import iso
from schemas.money import exact_sum, plain

MAX_FORKS = 10_000
_FAMILY = """
WITH RECURSIVE family AS (
    SELECT task, fork_of, status, submitted_at, ended_at FROM tasks WHERE tenant = $1 AND task = $2
    UNION
    SELECT t.task, t.fork_of, t.status, t.submitted_at, t.ended_at
    FROM tasks t JOIN family f ON t.tenant = $1 AND t.fork_of = f.task
)
SELECT f.*, (SELECT coalesce(sum(l.cost_usd), 0) FROM ledger l WHERE l.tenant = $1 AND l.task = f.task) AS cost
FROM family f ORDER BY f.task <> $2, f.submitted_at, f.task LIMIT $3
"""


async def fork_costs(pool: Pool, tenant_id: str, task_id: str) -> dict[str, Any] | None:
    """All forks of a task, theirs too, in the order of their submission; None if there is no such task.

    `cost_usd` is the task's own, `forks_usd` that of all its forks (of the first ten thousand), `total_usd` both.
    """
    async with tenant_connection(pool, tenant_id) as conn:
        rows = await conn.fetch(_FAMILY, tenant_id, task_id, 1 + MAX_FORKS)
    if not rows:
        return None
    own, *forks = rows
    return {
        "tenant": tenant_id,
        "task": task_id,
        "forks": [
            {
                "task": row["task"],
                "fork_of": row["fork_of"],
                "status": row["status"],
                "submitted_at": iso(row["submitted_at"]),
                "ended_at": iso(row["ended_at"]),
                "cost_usd": plain(row["cost"]),
            }
            for row in forks
        ],
        "cost_usd": plain(own["cost"]),
        "forks_usd": plain(exact_sum(row["cost"] for row in forks)),
        "total_usd": plain(exact_sum(row["cost"] for row in rows)),
    }
