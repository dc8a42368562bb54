"""The cost ledger: one row per LLM attempt, whatever became of it (contract row E3)."""

from collections.abc import Sequence
from decimal import Decimal

import orjson

from projections.archive import clean
from projections.db import Connection
from projections.projection import Recorded
from schemas.bodies import LlmAttempted
from schemas.money import TokenCounts

_COLUMNS = (
    *("tenant", "event_id", "ms", "seq", "at", "agent", "session", "task", "call", "ordinal", "attempt", "delivery"),
    *("tier", "model", "answered_model", "status", "input_uncached", "cache_read", "cache_write", "output_text"),
    *("output_reasoning", "rates", "price_table", "cost_usd", "cost_status", "reported_cost_usd", "duration_us"),
    *("response_id", "http_status", "error_class"),
)
_NO_TOKENS = TokenCounts(input_uncached=0)


class Ledger:
    """Table `ledger`. `cost_usd` is computed from tokens and rates; what the provider reported stands beside it."""

    name = "ledger"
    tables: tuple[str, ...] = ("ledger",)
    event_types: frozenset[str] | None = frozenset({LlmAttempted.type})

    async def apply(self, conn: Connection, batch: Sequence[Recorded]) -> None:
        """One row per attempt."""
        await conn.copy_records_to_table("ledger", records=[_row(entry) for entry in batch], columns=_COLUMNS)


def _row(entry: Recorded) -> tuple[object, ...]:
    event, body = entry.event, entry.event.body
    assert isinstance(body, LlmAttempted)
    tokens = body.tokens or _NO_TOKENS
    return (
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
    )
