"""Budgets of tasks, as the log tells them: what may be spent, what was, and how often a budget held something back.

The workers hold a budget by a number in Redis (`streams/budgets.py`); this is the same number from the facts, exact.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from projections.db import Connection
from projections.projection import Recorded, columns
from schemas.bodies import TERMINAL, BudgetExceeded, EventBody, LlmAttempted, TaskForked
from schemas.money import exact_sum

BudgetSample = tuple[str, tuple[str, ...], Decimal | int]
"""(metric, values of its labels, value). The tenant's label is left empty: it is the row's tenant."""

# Of the tenants, not of the tasks: open budgets are few, and a batch has thousands of tasks.
_OPEN = "SELECT tenant, task, limit_usd, spent_usd, exceeded FROM metric_budgets WHERE tenant = ANY($1)"
_KEEP = """
INSERT INTO metric_budgets (tenant, task, limit_usd, spent_usd, exceeded)
SELECT * FROM unnest($1::text[], $2::text[], $3::numeric[], $4::numeric[], $5::boolean[])
ON CONFLICT (tenant, task) DO UPDATE SET spent_usd = excluded.spent_usd, exceeded = excluded.exceeded
"""
_END = """
DELETE FROM metric_budgets b USING unnest($1::text[], $2::text[]) AS ended (tenant, task)
WHERE b.tenant = ended.tenant AND b.task = ended.task
"""
_READS = TERMINAL | {TaskForked.type, LlmAttempted.type, BudgetExceeded.type}
_Task = tuple[str, str]
_ZERO = Decimal(0)
_TENANT = ("",)


@dataclass(slots=True)
class OpenBudget:
    """The budget of a task that has not ended."""

    limit_usd: Decimal
    spent_usd: Decimal = _ZERO
    exceeded: bool = False

    def heard(self, body: EventBody) -> Iterator[BudgetSample]:
        """What one more fact of the task adds to the metrics."""
        if isinstance(body, LlmAttempted) and body.cost_usd is not None:
            cost_usd = Decimal(body.cost_usd)
            self.spent_usd = exact_sum((self.spent_usd, cost_usd))
            yield "task_budget_spent_usd", _TENANT, cost_usd
        elif isinstance(body, BudgetExceeded):
            self.exceeded = True
        elif body.terminal:
            status = body.type.removeprefix("task.")
            overrun_usd = max(_ZERO, exact_sum((self.spent_usd, self.limit_usd.copy_negate())))
            yield "budgeted_tasks_total", (*_TENANT, status, str(self.exceeded).lower()), 1
            yield "budgeted_tasks_open", _TENANT, -1
            yield "task_budget_limit_usd", _TENANT, self.limit_usd.copy_negate()
            yield "task_budget_spent_usd", _TENANT, self.spent_usd.copy_negate()
            yield "task_budget_overrun_usd_total", _TENANT, overrun_usd


async def budget_samples(conn: Connection, batch: Sequence[Recorded]) -> list[tuple[str, BudgetSample]]:
    """(tenant, sample) for what the tasks with a budget did in this batch. Those still open are kept for the next."""
    concerned = [entry.event for entry in batch if entry.event.body.type in _READS]
    if not concerned:
        return []
    open_before = {
        (row["tenant"], row["task"]): OpenBudget(row["limit_usd"], row["spent_usd"], row["exceeded"])
        for row in await conn.fetch(_OPEN, sorted({event.tenant_id for event in concerned}))
    }
    budgets, touched, found = dict(open_before), set[_Task](), list[tuple[str, BudgetSample]]()
    for event in concerned:
        task = (event.tenant_id, event.task_id)
        if isinstance(event.body, TaskForked) and event.body.budget_usd is not None and task not in budgets:
            limit_usd = Decimal(event.body.budget_usd)
            budgets[task] = OpenBudget(limit_usd)
            touched.add(task)
            found += [(task[0], ("budgeted_tasks_open", _TENANT, 1))]
            found += [(task[0], ("task_budget_limit_usd", _TENANT, limit_usd))]
        elif task in budgets:
            touched.add(task)
            found += [(task[0], sample) for sample in budgets[task].heard(event.body)]
            if event.body.terminal:
                del budgets[task]
    if kept := [
        (*t, b.limit_usd, b.spent_usd, b.exceeded) for t in sorted(touched) if (b := budgets.get(t)) is not None
    ]:
        await conn.execute(_KEEP, *columns(kept, 5))
    if ended := sorted(open_before.keys() - budgets.keys()):
        await conn.execute(_END, *columns(ended, 2))
    return found
