"""The cost ledger: one row per LLM attempt, whatever became of it (contract row E3), and its roll-ups.

Rows, roll-ups and outcomes are written in one transaction, with exact numerics: a roll-up is at any moment the sum of
its ledger rows, and a rebuild gives the same digits.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC
from decimal import Decimal
from typing import Any

import orjson

from projections.archive import clean
from projections.db import Connection
from projections.outcomes import READS, Subject, find_verdicts, outcome_of, take_verdicts
from projections.projection import Recorded, columns
from projections.rollups import TABLES as ROLL_UPS
from projections.rollups import Change, roll_up
from schemas.bodies import LlmAttempted
from schemas.money import TokenCounts

_COLUMNS = (
    *("tenant", "event_id", "ms", "seq", "at", "agent", "session", "task", "call", "ordinal", "attempt", "delivery"),
    *("tier", "model", "answered_model", "status", "input_uncached", "cache_read", "cache_write", "output_text"),
    *("output_reasoning", "rates", "price_table", "cost_usd", "cost_status", "reported_cost_usd", "duration_us"),
    *("response_id", "http_status", "error_class", "outcome"),
)
_NO_TOKENS = TokenCounts(input_uncached=0)

_OF_TASKS = """
SELECT l.tenant, l.event_id, l.at, l.agent, l.session, l.task, l.call, l.model, l.status, l.cost_usd, l.cost_status,
    l.input_uncached, l.cache_read, l.cache_write, l.output_text, l.output_reasoning, l.outcome
FROM ledger l JOIN unnest($1::text[], $2::text[]) AS t (tenant, task) USING (tenant, task)
"""
_SET_OUTCOME = """
UPDATE ledger l SET outcome = new.outcome FROM unnest($1::text[], $2::text[], $3::text[]) AS new (tenant, id, outcome)
WHERE l.tenant = new.tenant AND l.event_id = new.id
"""


class Ledger:
    """Table `ledger` and its roll-ups.

    `cost_usd` is computed from tokens and rates; what the provider reported stands beside it. `verdicts` and
    `open_handoffs` are what the outcomes of later attempts depend on.
    """

    name = "ledger"
    tables: tuple[str, ...] = ("ledger", *ROLL_UPS, "verdicts", "open_handoffs")
    event_types: frozenset[str] | None = frozenset({LlmAttempted.type}) | READS

    async def apply(self, conn: Connection, batch: Sequence[Recorded]) -> None:
        """One row per attempt; earlier attempts get another outcome where the batch says what became of them."""
        said = await take_verdicts(conn, batch)
        if said.tasks:
            await _judge_again(conn, said.tasks)
        rows = [_row(entry) for entry in batch if isinstance(entry.event.body, LlmAttempted)]
        if not rows:
            return
        await _judge(conn, rows)
        await conn.copy_records_to_table("ledger", records=[list(row.values()) for row in rows], columns=_COLUMNS)
        await roll_up(conn, [_change(row, str(row["outcome"])) for row in rows])


async def _judge(conn: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Set each row's outcome by what is known of its call and its task."""
    known = await find_verdicts(conn, {subject for row in rows for subject in _subjects(row)})
    for row in rows:
        call, task = _subjects(row)
        row["outcome"] = outcome_of(row["status"], known.get(call), known.get(task))


async def _judge_again(conn: Connection, tasks: Iterable[tuple[str, str]]) -> None:
    """Move the attempts of these tasks that have another outcome now, in the ledger and in its roll-up."""
    before = [dict(row) for row in await conn.fetch(_OF_TASKS, *columns(sorted(tasks), 2))]
    after = [dict(row) for row in before]
    await _judge(conn, after)
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old["outcome"] != new["outcome"]]
    if moved:
        await conn.execute(
            _SET_OUTCOME, *columns([(new["tenant"], new["event_id"], new["outcome"]) for _, new in moved], 3)
        )
        taken = [_change(old, old["outcome"], -1) for old, _ in moved]
        await roll_up(conn, taken + [_change(new, new["outcome"]) for _, new in moved])


def _subjects(row: dict[str, Any]) -> tuple[Subject, Subject]:
    return (row["tenant"], "call", row["call"]), (row["tenant"], "task", row["task"])


def _change(row: dict[str, Any], outcome: str, sign: int = 1) -> Change:
    cost_usd = row["cost_usd"] or Decimal(0)
    return Change(
        tenant=row["tenant"],
        day=row["at"].astimezone(UTC).date(),
        agent=row["agent"],
        model=row["model"],
        outcome=outcome,
        session=row["session"],
        task=row["task"],
        measures=(
            sign,
            sign * (row["status"] != "ok"),
            sign * (row["cost_status"] == "unpriced"),
            sign * (row["cost_status"] == "unknown"),
            cost_usd if sign > 0 else cost_usd.copy_negate(),
            sign * row["input_uncached"],
            sign * row["cache_read"],
            sign * row["cache_write"],
            sign * row["output_text"],
            sign * row["output_reasoning"],
        ),
    )


def _row(entry: Recorded) -> dict[str, Any]:
    event, body = entry.event, entry.event.body
    assert isinstance(body, LlmAttempted)
    tokens = body.tokens or _NO_TOKENS
    values = (
        event.tenant_id,
        event.id,
        *entry.position,
        body.ended_at,
        body.agent_id,
        event.session_id,
        event.task_id,
        clean(body.call_id),
        body.ordinal,
        body.attempt,
        body.delivery,
        clean(body.tier),
        clean(body.requested_model),
        clean(body.answered_model),
        body.status,
        tokens.input_uncached,
        tokens.cache_read,
        tokens.cache_write,
        tokens.output_text,
        tokens.output_reasoning,
        None if body.rates is None else orjson.dumps(body.rates).decode(),
        clean(body.price_table),
        None if body.cost_usd is None else Decimal(body.cost_usd),
        body.cost_status,
        None if body.reported_cost_usd is None else Decimal(body.reported_cost_usd),
        body.duration_us,
        clean(body.provider_response_id),
        body.http_status,
        clean(body.error_class),
        None,
    )
    return dict(zip(_COLUMNS, values, strict=True))
