"""Roll-ups of the ledger: sums that answer over millions of attempts in milliseconds.

`ledger_daily` has them by tenant, day, agent, model and outcome; `ledger_tasks` by tenant, session, task, day and
agent; `ledger_dimensions` by tenant, day and one of agent, model and outcome, which is a tenth of the rows and answers
most questions. Every row is of one tenant, so that transactions over different tenants never wait for each other.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cache

from projections.db import Connection
from projections.projection import columns
from schemas.money import exact_sum

MEASURES = (
    *("attempts", "failed", "unpriced", "unknown", "cost_usd"),
    *("input_uncached", "cache_read", "cache_write", "output_text", "output_reasoning"),
)
"""What is summed. `failed` counts attempts that were not answered; `unpriced` and `unknown` are not in `cost_usd`."""
_COST = MEASURES.index("cost_usd")
Measures = tuple[Decimal | int, ...]
_Key = tuple[object, ...]

_TYPES = {"day": "date", "cost_usd": "numeric"} | {name: "bigint" for name in MEASURES if name != "cost_usd"}
_KEYS = {
    "ledger_daily": ("tenant", "day", "agent", "model", "outcome"),
    "ledger_tasks": ("tenant", "session", "task", "day", "agent"),
    "ledger_dimensions": ("tenant", "day", "dimension", "value"),
}
TABLES = tuple(_KEYS)
DIMENSIONS = ("agent", "model", "outcome")
"""What `ledger_dimensions` can be asked for."""


@dataclass(frozen=True, slots=True)
class Change:
    """One attempt's share in the roll-ups, negative where it is taken away."""

    tenant: str
    day: date
    agent: str
    model: str
    outcome: str
    session: str
    task: str
    measures: Measures

    def groups(self) -> Iterator[tuple[str, _Key]]:
        """(table, key) of every sum that it is part of."""
        yield "ledger_daily", (self.tenant, self.day, self.agent, self.model, self.outcome)
        yield "ledger_tasks", (self.tenant, self.session, self.task, self.day, self.agent)
        yield "ledger_dimensions", (self.tenant, self.day, "agent", self.agent)
        yield "ledger_dimensions", (self.tenant, self.day, "model", self.model)
        yield "ledger_dimensions", (self.tenant, self.day, "outcome", self.outcome)


async def roll_up(conn: Connection, changes: Iterable[Change]) -> None:
    """Add changes to all roll-ups. A group that nothing is left of is gone, as if it had never been."""
    sums: dict[str, dict[_Key, list[Decimal | int]]] = {table: {} for table in TABLES}
    for change in changes:
        for table, key in change.groups():
            found = sums[table].get(key)
            if found is None:
                sums[table][key] = list(change.measures)
                continue
            for index, value in enumerate(change.measures):
                found[index] = exact_sum((found[index], value)) if index == _COST else found[index] + value
    for table, found_in in sums.items():
        rows = [(*key, *values) for key, values in sorted(found_in.items()) if any(values)]
        if rows:
            await conn.execute(_add(table), *columns(rows, len(_KEYS[table]) + len(MEASURES)))
        if taken := [key for key, values in sorted(found_in.items()) if values[0] < 0]:
            await conn.execute(_drop_empty(table), *columns(taken, len(_KEYS[table])))


@cache
def _add(table: str) -> str:
    names = (*_KEYS[table], *MEASURES)
    # Sums are kept without trailing zeros: 0.1 + 0.02 - 0.02 is 0.1, whatever was there in between.
    sums = ", ".join(f"{name} = {_exact(name, f'r.{name} + excluded.{name}')}" for name in MEASURES)
    picked = ", ".join(_exact(name, name) for name in names)
    return (
        f"INSERT INTO {table} AS r ({', '.join(names)}) SELECT {picked} FROM unnest({_parameters(names)}) "
        f"AS new ({', '.join(names)}) ON CONFLICT ({', '.join(_KEYS[table])}) DO UPDATE SET {sums}"
    )


@cache
def _drop_empty(table: str) -> str:
    names = _KEYS[table]
    matches = " AND ".join(f"r.{name} = gone.{name}" for name in names)
    return (
        f"DELETE FROM {table} r USING unnest({_parameters(names)}) AS gone ({', '.join(names)}) "
        f"WHERE r.attempts = 0 AND {matches}"
    )


def _exact(name: str, expression: str) -> str:
    return f"trim_scale({expression})" if name == "cost_usd" else expression


def _parameters(names: Sequence[str]) -> str:
    return ", ".join(f"${n}::{_TYPES.get(name, 'text')}[]" for n, name in enumerate(names, 1))
