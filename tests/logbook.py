"""A tenant's log written by hand: events as they stand in a stream, cut into the batches that a projector would get."""

import itertools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from projections.db import Pool
from projections.rebuild import digests
from projections.runner import PROJECTIONS, Runner
from schemas.bodies import EventBody, LlmAttempted
from schemas.event import FIELDS, AgentEvent, encode
from schemas.ids import derived_id
from schemas.money import TokenCounts, plain
from streams.functions import TenantBatch

START = datetime(2026, 5, 1, 12, tzinfo=UTC)
RATE = Decimal("0.0000025")


class Logbook:
    """The log of one tenant. Event n is at `START` plus n seconds, and at position `<its milliseconds>-0`."""

    def __init__(self, tenant_id: str) -> None:
        self.tenant_id = tenant_id
        self.events: list[AgentEvent] = []
        self._entries: list[tuple[str, list[str]]] = []

    def __len__(self) -> int:
        """How many entries there are, events and others."""
        return len(self._entries)

    def add(
        self,
        body: EventBody,
        *,
        task: str,
        session: str = "s-1",
        source: str = "supervisor",
        parent: AgentEvent | None = None,
        event_id: str | None = None,
    ) -> AgentEvent:
        """Append an event; it is returned with its position."""
        at, position = self._next()
        event = AgentEvent(
            id=event_id or derived_id(self.tenant_id, len(self)),
            tenant_id=self.tenant_id,
            session_id=session,
            task_id=task,
            source_agent_id=source,
            call_chain=("user", "supervisor", source) if source != "supervisor" else ("user", "supervisor"),
            at=at,
            parent_event_id=parent.id if parent else None,
            body=body,
            position=position,
        )
        values = [v.decode() if isinstance(v, bytes) else v for v in encode(event, {})]
        self._entries.append((position, [item for pair in zip(FIELDS, values, strict=True) for item in pair]))
        self.events.append(event)
        return event

    def add_raw(self, fields: Mapping[str, str]) -> None:
        """Append an entry as somebody else may have written it."""
        self._entries.append((self._next()[1], [item for pair in fields.items() for item in pair]))

    def fields(self, number: int) -> dict[str, str]:
        """The fields of entry `number`."""
        flat = self._entries[number][1]
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def _next(self) -> tuple[datetime, str]:
        at = START + timedelta(seconds=len(self))
        return at, f"{int(at.timestamp() * 1000)}-0"

    def attempt(
        self,
        *,
        task: str,
        call: str,
        agent: str = "writer",
        session: str = "s-1",
        parent: AgentEvent | None = None,
        spent: int = 100,
        model: str = "openai/small",
        **changes: Any,
    ) -> AgentEvent:
        """Append an LLM attempt that of `spent` tokens, `RATE` each, or what `changes` say."""
        now = START + timedelta(seconds=len(self))
        fields: dict[str, Any] = {
            "call_id": call,
            "ordinal": len(self),
            "attempt": 1,
            "delivery": 1,
            "agent_id": agent,
            "tier": "fast",
            "requested_model": model,
            "params": {},
            "request_hash": "0" * 24,
            "request": {"messages": []},
            "status": "ok",
            "started_at": now,
            "ended_at": now,
            "duration_us": 1500,
            "tokens": TokenCounts(input_uncached=spent),
            "cost_usd": plain(RATE * spent),
            "cost_status": "priced",
        }
        body = LlmAttempted(**(fields | changes))
        return self.add(body, task=task, session=session, source=agent, parent=parent)

    def batch(self, start: int = 0, end: int | None = None) -> TenantBatch:
        """Events `start` up to and not including `end`, as leased."""
        entries = self._entries[start:end]
        before = self._entries[start - 1][0] if start else "0-0"
        return TenantBatch(0, self.tenant_id, 1, before, entries[-1][0], list(entries), {})


async def apply_in_cuts(runner: Runner, books: Sequence[Logbook], cuts: Sequence[int]) -> None:
    """Apply every log, cut at these events, all tenants' first parts first."""
    edges = [0, *cuts, max(len(book) for book in books)]
    for start, end in itertools.pairwise(edges):
        batches = [book.batch(start, end) for book in books if start < len(book)]
        if batches:
            await runner.apply(batches)


async def forget(pool: Pool) -> None:
    """Empty every read model, as if nothing had been applied."""
    tables = [table for projection in PROJECTIONS for table in projection.tables]
    await pool.execute(f"TRUNCATE positions, {', '.join(tables)}")


async def digest_of(pool: Pool, projection: str) -> str:
    """The digest of one read model's rows."""
    return next(found.digest for found in await digests(pool) if found.projection == projection)
