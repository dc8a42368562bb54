"""How far the export to Langfuse is behind, on a real PostgreSQL and a fake Langfuse that goes away (rows E1, E4)."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from headwater.embedded import Endpoints
from headwater.settings import Settings
from projections.db import Pool
from projections.langfuse import backlog, export_backlog
from projections.langfuse.backlog import ExportBacklog
from projections.langfuse.outbox import Outbox
from streams.connection import Streams
from tests.exporting import SPANS_PER_TASK, all_exported, archive, exporter, write_task
from tests.fake_langfuse import PUBLIC_KEY, SECRET_KEY, FakeLangfuse
from tests.logbook import START, Logbook
from tests.serving import key_of, served


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeLangfuse]:
    """A running fake."""
    with FakeLangfuse(tmp_path / "spans.jsonl") as fake:
        yield fake


def age_s(book: Logbook, number: int) -> float:
    """How long ago that event of the book was."""
    return time.time() - book.events[number].at.timestamp()


async def test_what_waits_what_is_on_its_way_and_what_was_refused(
    pool: Pool, streams: Streams, fake: FakeLangfuse
) -> None:
    assert await export_backlog(pool) == ExportBacklog(waiting=0, in_flight=0, refused=0, oldest_s=0)
    books = [Logbook("acme"), Logbook("globex")]
    for book in books:
        write_task(book, "t0")
    await archive(pool, streams, *books)
    behind = await export_backlog(pool)
    assert (behind.waiting, behind.in_flight, behind.refused) == (2 * SPANS_PER_TASK, 0, 0)
    first = next(n for n, event in enumerate(books[0].events) if event.type == "llm.attempted")
    assert behind.oldest_s == pytest.approx(age_s(books[0], first), abs=5), "the first that is exported at all"
    # Given out and not known to have arrived: as old as before.
    async with pool.acquire() as conn:
        outbox = Outbox(conn)
        assert await outbox.lock()
        taken = await outbox.take()
        assert taken is not None
        out = await export_backlog(pool)
        assert (out.waiting, out.in_flight) == (0, 2 * SPANS_PER_TASK)
        assert out.oldest_s == pytest.approx(age_s(books[0], first), abs=5)
        await outbox.refused(taken[0], "no")
        await outbox.delivered(taken[1:-1])
        last = await export_backlog(pool)
        assert (last.waiting, last.in_flight, last.refused) == (0, 1, 1)
        assert last.oldest_s < out.oldest_s
    await conn_free(pool)
    async with exporter(pool, fake):
        await all_exported(pool)
    assert await export_backlog(pool) == ExportBacklog(waiting=0, in_flight=0, refused=1, oldest_s=0)
    # One tenant goes on, the other does not: what is old and exported does not count.
    write_task(books[1], "t1")
    await archive(pool, streams, books[1], start=len(books[1]) // 2)
    again = await export_backlog(pool)
    assert again.waiting == SPANS_PER_TASK
    assert again.oldest_s < behind.oldest_s


async def conn_free(pool: Pool) -> None:
    """Give the exporter's lock back, which the connection took along into the pool."""
    await pool.expire_connections()


async def test_reading_the_backlog_is_bounded(pool: Pool, streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    books = [Logbook(f"tenant-{n}") for n in range(6)]
    for book in books:
        write_task(book, "t0")
    await archive(pool, streams, *books)
    monkeypatch.setattr(backlog, "SAMPLE", 2)
    assert (await export_backlog(pool)).waiting == 2 * SPANS_PER_TASK
    monkeypatch.setattr(backlog, "MAX_COUNTED", 5)
    assert (await export_backlog(pool)).waiting == 5


async def test_a_scrape_shows_it_to_the_operator_and_to_no_tenant(
    settings: Settings, endpoints: Endpoints, streams: Streams, pool: Pool, database_url: str, fake: FakeLangfuse
) -> None:
    books = [Logbook("acme"), Logbook("globex")]
    for book in books:
        write_task(book, "t0")
    await archive(pool, streams, *books)
    keys: dict[str, Any] = {"langfuse_public_key": PUBLIC_KEY, "langfuse_secret_key": SECRET_KEY}
    exporting = settings.model_copy(update=keys | {"langfuse_host": fake.url})
    async with served(exporting, Endpoints(endpoints.redis_url, database_url)) as url, httpx.AsyncClient() as client:

        async def shown(**headers: str) -> dict[tuple[str, str], float]:
            text = (await client.get(f"{url}/metrics", headers=headers, timeout=30)).text
            samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
            return {
                (sample.name, sample.labels.get("state", "")): sample.value
                for sample in samples
                if sample.name.startswith("langfuse_")
            }

        found = await shown()
        assert found["langfuse_export_pending_events", "waiting"] == 2 * SPANS_PER_TASK
        assert found["langfuse_export_pending_events", "in_flight"] == 0
        assert found["langfuse_export_refused_total", ""] == 0
        assert found["langfuse_export_lag_seconds", ""] > time.time() - START.timestamp() - 120
        assert await shown(**await key_of(pool, "acme")) == {}
        async with exporter(pool, fake):
            await all_exported(pool)
        found = await shown()
        assert found["langfuse_export_pending_events", "waiting"] == found["langfuse_export_lag_seconds", ""] == 0
