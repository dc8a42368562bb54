"""Roll-ups of the ledger: sums by day, and by task, that answer over millions of attempts in milliseconds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cache

from projections.db import Connection
from projections.projection import columns

MEASURES = (
    *("attempts", "failed", "unpriced", "unknown", "cost_usd"),
    *("input_uncached", "cache_read", "cache_write", "output_text", "output_reasoning"),
)
"""What is summed. `failed` counts attempts that were not answered; `unpriced` and `unknown` are not in `cost_usd`."""
Measures = tuple[Decimal | int, ...]

_TYPES = {"day": "date", "cost_usd": "numeric"} | {name: "bigint" for name in MEASURES if name != "cost_usd"}
_KEYS = {
    "ledger_daily": ("tenant", "day", "agent", "model", "outcome"),
    "ledger_tasks": ("tenant", "session", "task", "day", "agent"),
}


@dataclass(frozen=True, slots=True)
class Change:
    """One attempt's share in the roll-ups, negative where it is taken away."""

    daily: tuple[str, date, str, str, str]
    """(tenant, day, agent, model, outcome)"""
    task: tuple[str, str, str, date, str]
    """(tenant, session, task, day, agent)"""
    measures: Measures


async def roll_up(conn: Connection, changes: Iterable[Change]) -> None:
    """Add changes to both roll-ups. A group that nothing is left of is gone, as if it had never been."""
    daily: dict[tuple[object, ...], list[Decimal | int]] = {}
    tasks: dict[tuple[object, ...], list[Decimal | int]] = {}
    for change in changes:
        for sums, key in ((daily, change.daily), (tasks, change.task)):
            found = sums.setdefault(key, [0] * len(MEASURES))
            for index, value in enumerate(change.measures):
                found[index] += value
    for table, sums in (("ledger_daily", daily), ("ledger_tasks", tasks)):
        rows = [(*key, *values) for key, values in sorted(sums.items()) if any(values)]
        if not rows:
            continue
        await conn.execute(_add(table), *columns(rows, len(_KEYS[table]) + len(MEASURES)))
        if taken := [key for key, values in sorted(sums.items()) if values[0] < 0]:
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
