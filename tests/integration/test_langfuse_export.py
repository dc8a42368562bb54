"""The exporter on a real PostgreSQL, against a fake Langfuse that fails in every way we know (contract row E1)."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from projections.cost_tracker import CostTracker
from projections.costs import ledger_totals
from projections.db import Pool, tenant_connection
from projections.langfuse import LangfuseServer, export_status
from projections.langfuse.outbox import EXPORTER_LOCK, Outbox
from projections.langfuse.spans import Span, SpanMaker
from projections.langfuse_costs import LangfuseCosts
from projections.runner import Runner
from schemas.bodies import TaskCompleted, TaskSubmitted
from schemas.event import AgentEvent
from schemas.trace_ids import call_span_id, task_span_id, trace_id
from streams.bus import TenantEventBus
from streams.connection import Streams
from tests.exporting import SPANS_PER_TASK, all_exported, archive, assert_once, exporter, write_failed_task, write_task
from tests.fake_langfuse import PUBLIC_KEY, SECRET_KEY, FakeLangfuse, StoredSpan
from tests.logbook import START, Logbook
from tests.processes import until
from tests.projecting import event, project

_END_EXPORTERS_CONNECTION = """
SELECT count(pg_terminate_backend(l.pid)) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
WHERE l.locktype = 'advisory' AND l.objid = $1 AND l.granted AND d.datname = current_database()
"""


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeLangfuse]:
    """A running fake."""
    with FakeLangfuse(tmp_path / "spans.jsonl") as fake:
        yield fake


def two_books(tasks: int) -> tuple[Logbook, Logbook]:
    """The logs of two tenants, with the same task ids in both."""
    books = Logbook("acme"), Logbook("globex")
    for book in books:
        for n in range(tasks):
            write_task(book, f"t{n}", session=f"s-{n}")
    return books


def of_tenant(spans: list[StoredSpan], tenant: str) -> list[StoredSpan]:
    return [span for span in spans if span.user_id == tenant]


async def test_everything_is_exported_once_with_its_tenant_session_agent_usage_and_cost(
    pool: Pool, streams: Streams, fake: FakeLangfuse
) -> None:
    books = two_books(3)
    await archive(pool, streams, *books)
    async with exporter(pool, fake):
        await all_exported(pool)

    spans = fake.spans()
    assert_once(spans, 2 * 3 * SPANS_PER_TASK)
    for span in spans:
        tenant, agent = span.user_id, span.metadata["agent_id"]
        assert span.metadata["tenant_id"] == tenant
        assert span.session_id == span.metadata["session_id"] == f"s-{span.metadata['task_id'][1:]}"
        assert span.tags[:2] == [f"agent:{agent}", f"tenant:{tenant}"]
        assert (span.trace_name, span.scope) == ("report", "langfuse-sdk")
        assert span.trace_id == trace_id(str(tenant), span.metadata["task_id"])
    generations = [span for span in spans if span.type == "GENERATION"]
    assert {span.name for span in generations} == {"reader", "supervisor", "writer"}
    assert all("total" in span.cost and "total" in span.usage and span.model for span in generations)
    assert not any(span.cost or span.usage for span in spans if span.type != "GENERATION")
    totals = await ledger_totals(pool)
    assert sum(span.total_cost for span in spans) == totals.cost_usd > 0
    assert sum(span.metadata.get("cost_status") == "unpriced" for span in spans) == totals.unpriced == 6
    status = await export_status(pool)
    assert (status.done, status.refused) == (True, 0)


async def test_langfuse_adds_up_what_the_ledger_adds_up(pool: Pool, streams: Streams, fake: FakeLangfuse) -> None:
    await archive(pool, streams, *two_books(3))
    async with exporter(pool, fake):
        await all_exported(pool)
    tracker = CostTracker(pool, LangfuseCosts(fake.url, PUBLIC_KEY, SECRET_KEY))
    days = (datetime.now(UTC) - START).days + 2
    questions: list[dict[str, Any]] = [{}, {"tenant_id": "acme"}, {"agent_id": "reader"}]
    for question in questions:
        found = await tracker.compare(**question, period_days=days)
        assert found.lines
        assert found.ledger_usd == found.langfuse_usd > 0
        assert all(line.ledger == line.langfuse for line in found.lines)


async def test_spans_nest_and_have_the_times_of_their_events(pool: Pool, streams: Streams, fake: FakeLangfuse) -> None:
    book = Logbook("acme")
    write_task(book, "t0")
    write_failed_task(book, "t1")
    await archive(pool, streams, book)
    async with exporter(pool, fake):
        await all_exported(pool)

    spans = fake.spans()
    by_id = {span.id: span for span in spans}
    root = by_id[task_span_id("acme", "t0")]
    assert (root.parent_id, root.name, root.start, root.level) == (None, "report", START, "DEFAULT")
    assert root.end == next(e.at for e in book.events if isinstance(e.body, TaskCompleted))
    parents = {
        (span.type, span.name, span.level): by_id[span.parent_id].name
        for span in spans
        if span.parent_id and span.trace_id == root.trace_id
    }
    assert parents == {
        ("AGENT", "reader", "DEFAULT"): "report",
        ("AGENT", "writer", "DEFAULT"): "report",
        ("SPAN", "supervisor.check", "DEFAULT"): "report",
        ("GUARDRAIL", "handoff.accepted", "DEFAULT"): "reader",
        ("GENERATION", "reader", "ERROR"): "reader",
        ("GENERATION", "reader", "DEFAULT"): "reader",
        ("GENERATION", "supervisor", "DEFAULT"): "supervisor.check",
        ("GENERATION", "writer", "WARNING"): "writer",
    }
    run = by_id[call_span_id("acme", "t0.read")]
    assert run.end - run.start == timedelta(seconds=1.5)
    rejected = next(span for span in spans if span.name == "handoff.rejected")
    assert rejected.parent_id == task_span_id("acme", "t1")
    assert (rejected.level, rejected.metadata["reasons"]) == ("WARNING", ["agent 'nobody' is not registered"])
    failed = by_id[task_span_id("acme", "t1")]
    assert (failed.level, failed.status_message) == ("ERROR", "reader failed: no notes")


async def test_tenants_do_not_mix(pool: Pool, streams: Streams, fake: FakeLangfuse) -> None:
    await archive(pool, streams, *two_books(2))
    async with exporter(pool, fake):
        await all_exported(pool)
    mine, theirs = of_tenant(fake.spans(), "acme"), of_tenant(fake.spans(), "globex")
    assert len(mine) == len(theirs) == 2 * SPANS_PER_TASK
    assert not {span.trace_id for span in mine} & {span.trace_id for span in theirs}
    assert not any("globex" in span.model_dump_json() for span in mine)
    assert any("secret of acme" in (span.input or "") for span in mine)
    async with tenant_connection(pool, "acme") as conn:
        rows = await conn.fetch("SELECT tenant FROM langfuse_positions")
    assert [row["tenant"] for row in rows] == ["acme"]


async def test_contents_are_read_in_full_or_left_out(pool: Pool, streams: Streams, fake: FakeLangfuse) -> None:
    text = "a long text " * 1000
    for tenant in ("acme", "globex"):
        bus = TenantEventBus(streams, tenant)
        await bus.publish(event(TaskSubmitted(task_type="note", text=text), tenant))
        done = TaskCompleted(result={"text": f"{tenant} {text}"}, routed_by="rules", agent_results={})
        await bus.publish(event(done, tenant, agent="supervisor"))
    await project(streams, pool)
    async with exporter(pool, fake):
        await all_exported(pool)
    (root,) = of_tenant(fake.spans(), "acme")
    assert (root.input, root.output) == (text, '{"text":"acme ' + text + '"}')

    await pool.execute("DELETE FROM langfuse_positions")
    async with exporter(pool, fake, content=False):
        await all_exported(pool)
    last = of_tenant(fake.spans(), "acme")[-1]
    assert (last.id, last.input, last.output) == (root.id, None, None)


async def test_a_killed_server_gets_every_span_exactly_once(pool: Pool, streams: Streams, fake: FakeLangfuse) -> None:
    tasks = 60
    await archive(pool, streams, *two_books(tasks))
    fake.set_faults(delay_s=0.05)
    async with exporter(pool, fake):
        for _ in range(3):
            seen = fake.stats()["spans"]
            await until(_more_than(fake, seen + 20), "the export goes on")
            fake.kill()
            assert not (await export_status(pool)).done
            fake.start()
            fake.set_faults(delay_s=0.05)
        fake.set_faults()
        await all_exported(pool)
    assert_once(fake.spans(), 2 * tasks * SPANS_PER_TASK)
    assert sum(span.total_cost for span in fake.spans()) == (await ledger_totals(pool)).cost_usd


def _more_than(fake: FakeLangfuse, count: int) -> Any:
    async def condition() -> bool:
        return (await asyncio.to_thread(fake.stats))["spans"] > count

    return condition


@pytest.mark.parametrize("drop", ["before", "after"])
async def test_a_broken_connection_neither_loses_nor_doubles(
    pool: Pool, streams: Streams, fake: FakeLangfuse, drop: str
) -> None:
    await archive(pool, streams, *two_books(3))
    # What arrived is not visible at once: the exporter must not take it for missing.
    fake.set_faults(drop=drop, times=3, visible_after_s=0.3)
    async with exporter(pool, fake):
        await all_exported(pool)
    assert_once(fake.spans(), 2 * 3 * SPANS_PER_TASK)
    assert fake.stats()["reads"] > 0


async def test_without_the_look_up_a_broken_connection_would_double_spans(
    pool: Pool, streams: Streams, fake: FakeLangfuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault that the test above must find."""

    async def blind(*_: Any) -> set[str]:
        return set()

    monkeypatch.setattr(LangfuseServer, "look_up", blind)
    await archive(pool, streams, *two_books(3))
    fake.set_faults(drop="after", times=3)
    async with exporter(pool, fake):
        await all_exported(pool)
    with pytest.raises(AssertionError):
        assert_once(fake.spans(), 2 * 3 * SPANS_PER_TASK)


@pytest.mark.parametrize(
    "faults",
    [
        {"status": 500},
        {"status": 503},
        {"status": 429, "retry_after_s": 0.1},
        {"status": 502},
        {"status": 401},
        {"status": 500, "reads_status": 500},
    ],
    ids=str,
)
async def test_an_outage_loses_nothing(
    pool: Pool, streams: Streams, fake: FakeLangfuse, faults: dict[str, Any]
) -> None:
    await archive(pool, streams, *two_books(2))
    fake.set_faults(**faults)
    async with exporter(pool, fake, settle_s=0.1):

        async def tried() -> bool:
            return (await asyncio.to_thread(fake.stats))["requests"] >= 2

        async def asked() -> bool:
            return (await asyncio.to_thread(fake.stats))["reads"] >= 2

        await until(asked if "reads_status" in faults else tried, "the exporter tried again")
        assert fake.spans() == []
        assert (await export_status(pool)).in_flight == 2 * 2 * SPANS_PER_TASK
        fake.set_faults()
        await all_exported(pool)
    assert_once(fake.spans(), 2 * 2 * SPANS_PER_TASK)
    assert (await export_status(pool)).refused == 0


async def test_a_server_that_cannot_be_asked_loses_nothing(pool: Pool, streams: Streams, fake: FakeLangfuse) -> None:
    """An older server has no look-up: a span may be there twice then, but under one id."""
    await archive(pool, streams, *two_books(3))
    fake.set_faults(drop="before", times=2, reads_status=404)
    async with exporter(pool, fake, settle_s=0.1):
        await all_exported(pool)
    assert_once(fake.spans(), 2 * 3 * SPANS_PER_TASK)


async def test_a_lost_connection_to_postgresql_loses_and_doubles_nothing(
    pool: Pool, streams: Streams, fake: FakeLangfuse
) -> None:
    await archive(pool, streams, *two_books(20))
    fake.set_faults(delay_s=0.05)
    async with exporter(pool, fake):
        for _ in range(3):
            seen = fake.stats()["spans"]
            await until(_more_than(fake, seen + 10), "the export goes on")
            holders = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND granted"
            assert (
                await pool.fetchval(f"SELECT count(pg_terminate_backend(pid)) FROM ({holders}) l", EXPORTER_LOCK) == 1
            )
        fake.set_faults()
        await all_exported(pool)
    assert_once(fake.spans(), 2 * 20 * SPANS_PER_TASK)


async def test_an_exporter_that_trips_gets_up_again(
    pool: Pool, streams: Streams, fake: FakeLangfuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await archive(pool, streams, *two_books(1))
    take, trips = Outbox.take, iter([RuntimeError("odd"), KeyError("odd")])

    async def trip(outbox: Outbox) -> Any:
        if (error := next(trips, None)) is not None:
            raise error
        return await take(outbox)

    monkeypatch.setattr(Outbox, "take", trip)
    async with exporter(pool, fake):
        await all_exported(pool)
    assert next(trips, None) is None
    assert_once(fake.spans(), 2 * SPANS_PER_TASK)


async def test_an_event_that_makes_no_span_is_set_aside(
    pool: Pool, streams: Streams, fake: FakeLangfuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await archive(pool, streams, *two_books(2))
    make = SpanMaker.make

    def odd(maker: SpanMaker, event: AgentEvent) -> Span:
        if event.type == TaskCompleted.type:
            raise TypeError("an odd event")
        return make(maker, event)

    monkeypatch.setattr(SpanMaker, "make", odd)
    async with exporter(pool, fake):
        await all_exported(pool)
    assert_once(fake.spans(), 2 * 2 * (SPANS_PER_TASK - 1))
    errors = await pool.fetch("SELECT error FROM langfuse_refused")
    assert [row["error"] for row in errors] == ["TypeError: an odd event"] * 4


async def test_a_span_that_is_refused_for_good_does_not_hold_up_the_others(
    pool: Pool, streams: Streams, fake: FakeLangfuse
) -> None:
    await archive(pool, streams, *two_books(4))
    fake.set_faults(poison="handoff.accepted")
    async with exporter(pool, fake):
        await all_exported(pool)
    assert_once(fake.spans(), 2 * 4 * (SPANS_PER_TASK - 1))
    assert (await export_status(pool)).refused == 8
    refused = await pool.fetch("SELECT * FROM langfuse_refused JOIN events USING (tenant, ms, seq)")
    assert {row["type"] for row in refused} == {"handoff.accepted"}
    assert all("HTTP 400" in row["error"] for row in refused)


async def test_a_span_whose_contents_are_refused_is_sent_without_them(
    pool: Pool, streams: Streams, fake: FakeLangfuse
) -> None:
    books = two_books(1)
    await archive(pool, streams, *books)
    fake.set_faults(poison="secret of acme")
    async with exporter(pool, fake):
        await all_exported(pool)
    assert_once(fake.spans(), 2 * SPANS_PER_TASK)
    (slim,) = [span for span in fake.spans() if "content_left_out" in span.metadata]
    assert (slim.user_id, slim.input, slim.total_cost) == ("acme", None, Decimal("0.0000123456789"))
    assert (await export_status(pool)).refused == 0


async def test_requests_are_cut_until_the_server_takes_them(pool: Pool, streams: Streams, fake: FakeLangfuse) -> None:
    await archive(pool, streams, *two_books(3))
    fake.set_faults(max_bytes=6_000)
    async with exporter(pool, fake, max_spans=200):
        await all_exported(pool)
    assert_once(fake.spans(), 2 * 3 * SPANS_PER_TASK)
    assert (await export_status(pool)).refused == 0


async def test_two_exporters_on_one_database_send_nothing_twice(
    pool: Pool, streams: Streams, fake: FakeLangfuse
) -> None:
    await archive(pool, streams, *two_books(20))
    async with exporter(pool, fake, max_spans=3), exporter(pool, fake, max_spans=3):
        await all_exported(pool)
    assert_once(fake.spans(), 2 * 20 * SPANS_PER_TASK)


async def test_a_quiet_tenant_does_not_wait_behind_a_long_log(pool: Pool, streams: Streams, fake: FakeLangfuse) -> None:
    loud, quiet = Logbook("acme"), Logbook("globex")
    for n in range(150):
        write_task(loud, f"t{n}")
    write_task(quiet, "t0")
    await Runner(pool, streams.log).apply([loud.batch(), quiet.batch()])
    async with exporter(pool, fake, max_spans=100):
        await all_exported(pool)
    spans = fake.spans()
    assert_once(spans, 151 * SPANS_PER_TASK)
    last = max(n for n, span in enumerate(spans) if span.user_id == "globex")
    assert last < 1000


async def test_new_events_are_exported_as_they_are_archived(pool: Pool, streams: Streams, fake: FakeLangfuse) -> None:
    books = two_books(1)
    await archive(pool, streams, *books)
    async with exporter(pool, fake):
        await all_exported(pool)
        before = len(books[0].events)
        for book in books:
            write_task(book, "later")
        await archive(pool, streams, *books, start=before)
        await all_exported(pool)
    assert_once(fake.spans(), 2 * 2 * SPANS_PER_TASK)
