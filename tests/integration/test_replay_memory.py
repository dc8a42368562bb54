"""Replay of a large tenant holds a page of its log, and reads no more of it than it needs (row F6)."""

import tracemalloc
from collections.abc import Collection
from pathlib import Path

import pytest

from bench.recorded import PER_TASK, RULES, TENANT, task_id_of
from bench.replay import fill
from handlers.prices import PriceTable
from headwater.history import History, LogArchive, Page
from headwater.replay.moments import ledger_at, moment, place, task_events
from headwater.replay.recording import export
from headwater.replay.reprice import reprice
from headwater.replay.story import story_of
from headwater.replay.verify import verify
from projections.db import Pool
from projections.history import Spent
from projections.projection import START, Position, parse_position
from streams.connection import Streams

PRICES = Path(__file__).parents[2] / "examples/research_team/prices.json"
TASKS = 1_000
"""14,000 events."""
STREAMED = 100
SMALL = "globex"
"""A second tenant, whose few tasks have the ids of the first one's."""
ATTEMPTS = 3
"""LLM attempts of each task."""
MAX_BYTES = 12 * 2**20


class Counting(History):
    """Counts the entries that are read."""

    read = 0

    async def page(
        self,
        tenant_id: str,
        *,
        after: Position,
        limit: int,
        session_id: str | None = None,
        task_id: str | None = None,
        types: Collection[str] | None = None,
        live: bool = False,
    ) -> Page:
        page = await super().page(
            tenant_id, after=after, limit=limit, session_id=session_id, task_id=task_id, types=types, live=live
        )
        self.read += len(page.entries)
        return page


@pytest.fixture
async def history(streams: Streams, pool: Pool) -> Counting:
    """The log of two tenants, most of it in the archive."""
    streams.log.archive = LogArchive(pool)
    await fill(streams, pool, 10, 5, tenant=SMALL)
    return Counting(streams.log, pool)


@pytest.fixture
async def large(history: Counting, streams: Streams, pool: Pool) -> None:
    """The first tenant's tasks."""
    await fill(streams, pool, TASKS, STREAMED)


@pytest.mark.usefixtures("large")
async def test_whole_tenants_are_read_a_page_at_a_time(history: Counting) -> None:
    prices = PriceTable.load(PRICES)
    tracemalloc.start()
    try:
        report = await verify(history, [TENANT], RULES)
        assert (report.tasks, report.diverged, report.skipped) == (TASKS, 0, 0)
        assert await _peak() < MAX_BYTES
        assert sum(line.attempts for line in (await reprice(history, [TENANT], prices)).lines) == TASKS * ATTEMPTS
        assert await _peak() < MAX_BYTES
        lines = 0
        async for line in export(history, [TENANT]):
            lines += b'"position"' in line
        assert lines == TASKS * PER_TASK
        assert await _peak() < MAX_BYTES
        # This is what it would be otherwise.
        assert len([entry async for entry in history.entries(TENANT)]) == TASKS * PER_TASK
        assert await _peak() > 1.5 * MAX_BYTES
    finally:
        tracemalloc.stop()


async def _peak() -> int:
    """Bytes at the most since the last look."""
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    return peak


@pytest.mark.usefixtures("large")
async def test_a_task_is_looked_at_without_its_tenants_log(history: Counting) -> None:
    for number in (TASKS // 2, TASKS - 1):
        history.read = 0
        events = await task_events(history, TENANT, task_id_of(number))
        assert history.read == PER_TASK
        story = story_of(events)
        assert story is not None
        assert (story.status, story.attempts) == ("completed", ATTEMPTS)
        [accepted] = [event for event in events if event.type == "handoff.accepted"]
        found = await moment(history, TENANT, events, place(accepted))
        # Two of the three attempts were before the handoff was accepted.
        assert found["ledger"]["attempts"] == number * ATTEMPTS + 2
        assert found["status"] == "running"
        in_session, on_the_stream = 2 * PER_TASK, STREAMED * ATTEMPTS
        assert history.read < PER_TASK + in_session + on_the_stream


async def test_the_ledger_of_the_rows_and_of_the_log_are_one(history: Counting) -> None:
    """At any position: where the rows end, before that and after it, and whether they are there or not."""
    positions = [position async for position, _ in history.entries(SMALL)]
    without = WithoutRows(history)
    assert len(positions) == 10 * PER_TASK
    for at in map(parse_position, positions[:: PER_TASK // 2]):
        from_rows = (await ledger_at(history, SMALL, at)).as_dict()
        assert from_rows == (await ledger_at(without, SMALL, at)).as_dict()
    assert from_rows["attempts"] > 10
    assert set(from_rows["by_agent"]) == {"researcher", "supervisor", "writer"}


class WithoutRows(History):
    """The same log for who knows nothing of a ledger."""

    def __init__(self, history: History) -> None:
        super().__init__(history._log, history._pool)

    async def spent_to(self, tenant_id: str, upto: Position) -> tuple[dict[str, Spent], Position]:
        return {}, START
