"""What was spent, on what, and what for. Answered from the ledger's roll-ups, and from its rows for a single decision.

A tenant's questions go through `tenant_connection`; those across tenants are an administrator's. "The last N days"
are whole days in UTC, today included, by the time at which an attempt ended.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, get_args

from projections.db import Pool, database_errors, tenant_connection
from projections.rollups import DIMENSIONS, MEASURES
from schemas.errors import InvalidInputError, NotFoundError
from schemas.money import exact_sum, plain

CostKey = Literal["agent", "model", "session", "task", "day", "tenant", "outcome"]
COST_KEYS: tuple[str, ...] = get_args(CostKey)

_SUMS = ", ".join(
    f"coalesce(sum({name}), 0) AS {name}" if name == "cost_usd" else f"coalesce(sum({name}), 0)::bigint AS {name}"
    for name in MEASURES
)
_LEDGER_SUMS = """
count(*) AS attempts, count(*) FILTER (WHERE l.status <> 'ok') AS failed,
count(*) FILTER (WHERE l.cost_status = 'unpriced') AS unpriced,
count(*) FILTER (WHERE l.cost_status = 'unknown') AS unknown,
coalesce(sum(l.cost_usd), 0) AS cost_usd, coalesce(sum(l.input_uncached), 0)::bigint AS input_uncached,
coalesce(sum(l.cache_read), 0)::bigint AS cache_read, coalesce(sum(l.cache_write), 0)::bigint AS cache_write,
coalesce(sum(l.output_text), 0)::bigint AS output_text,
coalesce(sum(l.output_reasoning), 0)::bigint AS output_reasoning
"""
# Causation stays within a task, so the tree is walked over the events of one task.
_UNDER = f"""
WITH RECURSIVE root AS (SELECT id, task FROM events WHERE tenant = $1 AND id = $2 LIMIT 1),
family AS MATERIALIZED (
    SELECT e.id, e.parent FROM events e JOIN root ON e.tenant = $1 AND e.task = root.task AND e.id <> root.id
),
under AS (
    SELECT id FROM root
    UNION
    SELECT f.id FROM family f JOIN under u ON f.parent = u.id
)
SELECT l.agent AS key, {_LEDGER_SUMS}
FROM ledger l JOIN under ON l.event_id = under.id
WHERE l.tenant = $1 AND l.task = (SELECT task FROM root) GROUP BY 1 ORDER BY cost_usd DESC, 1
"""


@dataclass(frozen=True, slots=True)
class CostRow:
    """Costs of one group, such as one agent. `unpriced` and `unknown` attempts are not in `cost_usd`."""

    key: str
    attempts: int
    failed: int
    unpriced: int
    unknown: int
    cost_usd: Decimal
    input_uncached: int
    cache_read: int
    cache_write: int
    output_text: int
    output_reasoning: int

    @property
    def tokens(self) -> int:
        """Tokens of all classes."""
        return self.input_uncached + self.cache_read + self.cache_write + self.output_text + self.output_reasoning

    def as_dict(self, key: str) -> dict[str, Any]:
        """For JSON; `key` names what the row is of. Money is a string of plain decimal digits, so no digit is lost."""
        return {
            key: self.key,
            "cost_usd": plain(self.cost_usd),
            "tokens": self.tokens,
            "tokens_by_type": {
                "input_uncached": self.input_uncached,
                "cache_read": self.cache_read,
                "cache_write": self.cache_write,
                "output_text": self.output_text,
                "output_reasoning": self.output_reasoning,
            },
            "attempts": self.attempts,
            "failed": self.failed,
            "unpriced": self.unpriced,
            "unknown": self.unknown,
        }


def total_of(key: str, rows: list[CostRow]) -> CostRow:
    """The sum of all rows."""
    sums: dict[str, Any] = {name: sum(getattr(row, name) for row in rows) for name in MEASURES if name != "cost_usd"}
    return CostRow(key=key, cost_usd=exact_sum(row.cost_usd for row in rows), **sums)


def first_day(days: int, today: date | None = None) -> date:
    """The first of the last `days` days in UTC, today included. Raises `InvalidInputError` unless 1 to 36,500."""
    if not 1 <= days <= 36_500:
        raise InvalidInputError(f"days is {days}: choose 1 to 36500")
    return (today or datetime.now(UTC).date()) - timedelta(days=days - 1)


async def costs(
    pool: Pool,
    *,
    by: CostKey,
    tenant_id: str | None = None,
    agent_id: str | None = None,
    days: int = 30,
    limit: int | None = None,
    today: date | None = None,
) -> list[CostRow]:
    """Costs of the last `days` days in groups, the dearest first; `limit` gives that many rows at most.

    With `tenant_id`, what that tenant may see; without it, an administrator's view over all tenants, in which sessions
    and tasks are named `tenant/id`: the same id in two tenants is not one session.

    Raises:
        InvalidInputError: `by` or `days` is not allowed.
        UnavailableError: PostgreSQL cannot be reached.
    """
    if by not in COST_KEYS:
        raise InvalidInputError(f"costs cannot be grouped by {by!r}: choose from {', '.join(COST_KEYS)}")
    query, arguments = _question(by, tenant_id, agent_id, first_day(days, today), limit)
    if tenant_id is not None:
        async with tenant_connection(pool, tenant_id) as conn:
            rows = await conn.fetch(query, *arguments)
    else:
        with database_errors():
            rows = await pool.fetch(query, *arguments)
    return [CostRow(**row) for row in rows]


def _question(
    by: str, tenant_id: str | None, agent_id: str | None, first: date, limit: int | None
) -> tuple[str, list[object]]:
    """The query over the smallest roll-up that has the answer, and its arguments."""
    wheres: dict[str, object] = {} if tenant_id is None else {"tenant": tenant_id}
    key = {"day": "to_char(day, 'YYYY-MM-DD')"}.get(by, by)
    if by in ("session", "task"):
        table = "ledger_tasks"
        key = by if tenant_id is not None else f"tenant || '/' || {by}"
        wheres |= {} if agent_id is None else {"agent": agent_id}
    elif agent_id is not None and by in ("model", "outcome"):
        table = "ledger_daily"
        wheres |= {"agent": agent_id}
    else:
        table = "ledger_dimensions"
        # Each dimension adds up to the whole; there are fewer models than agents and outcomes.
        dimension = by if by in DIMENSIONS else "model"
        wheres |= {"dimension": dimension} if agent_id is None else {"dimension": "agent", "value": agent_id}
        key = "value" if by in DIMENSIONS else key
    conditions = " AND ".join(f"{column} = ${n}" for n, column in enumerate(wheres, 3))
    query = (
        f"SELECT {key} AS key, {_SUMS} FROM {table} WHERE day >= $1{' AND ' * bool(wheres)}{conditions} "
        "GROUP BY 1 ORDER BY cost_usd DESC, key LIMIT $2"
    )
    return query, [first, limit, *wheres.values()]


@dataclass(frozen=True, slots=True)
class DecisionCosts:
    """An event and what it led to: the costs of everything under it in the causation tree, by agent."""

    tenant_id: str
    event_id: str
    type: str
    task_id: str
    at: str
    agents: list[CostRow]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        total = total_of("total", self.agents).as_dict("key")
        del total["key"]
        return {
            "tenant": self.tenant_id,
            "event": self.event_id,
            "type": self.type,
            "task": self.task_id,
            "at": self.at,
            **total,
            "agents": [row.as_dict("agent") for row in self.agents],
        }


async def decision_costs(pool: Pool, tenant_id: str, event_id: str) -> DecisionCosts:
    """What one decision cost with everything under it: the attempts that it, or what followed from it, caused.

    Any event may be asked about; an `llm.attempted` has its own cost, a `task.submitted` that of its whole task.

    Raises:
        NotFoundError: the tenant's archive has no such event (yet).
    """
    async with tenant_connection(pool, tenant_id) as conn:
        event = await conn.fetchrow(
            "SELECT type, task, at FROM events WHERE tenant = $1 AND id = $2 LIMIT 1", tenant_id, event_id
        )
        if event is None:
            raise NotFoundError(f"tenant {tenant_id!r} has no event {event_id!r}: `headwater events` lists them")
        rows = await conn.fetch(_UNDER, tenant_id, event_id)
    return DecisionCosts(
        tenant_id, event_id, event["type"], event["task"], event["at"], [CostRow(**row) for row in rows]
    )


@dataclass(frozen=True, slots=True)
class LedgerTotals:
    """The whole ledger in one line, across tenants."""

    attempts: int
    priced: int
    cost_usd: Decimal
    unpriced: int
    unknown: int


async def ledger_totals(pool: Pool) -> LedgerTotals:
    """An administrator's total over all tenants and all time, from the ledger's rows."""
    with database_errors():
        row = await pool.fetchrow(
            "SELECT count(*) AS attempts, count(*) FILTER (WHERE cost_status = 'priced') AS priced, "
            "coalesce(sum(cost_usd), 0) AS cost_usd, count(*) FILTER (WHERE cost_status = 'unpriced') AS unpriced, "
            "count(*) FILTER (WHERE cost_status = 'unknown') AS unknown FROM ledger"
        )
    assert row is not None
    return LedgerTotals(**row)
