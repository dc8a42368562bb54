"""Metrics of budgets and of unreadable entries on a real PostgreSQL: exact, once, and each tenant's own."""

from collections.abc import Sequence
from decimal import Decimal

import asyncpg
import httpx
import pytest

from headwater.embedded import Endpoints
from headwater.settings import Settings
from projections.archive import Archive
from projections.db import Connection, Pool, migrate, tenant_connection
from projections.exposition import snapshot, tenant_snapshot
from projections.metric_names import METRICS
from projections.projection import Recorded
from projections.rebuild import rebuild_outdated
from projections.runner import Runner
from schemas.bodies import TaskFailed
from streams.connection import Streams
from tests.logbook import RATE, Logbook, apply_in_cuts, digest_of, forget
from tests.metric_logs import (
    UNREADABLE,
    Series,
    exposed,
    fork,
    log_of_the_rest,
    read,
    value,
    write_budgets,
    write_unreadable,
)
from tests.serving import key_of, served


@pytest.fixture
def runner(pool: Pool, streams: Streams) -> Runner:
    return Runner(pool, streams.log)


async def test_budgets_as_the_log_tells_them(pool: Pool, runner: Runner) -> None:
    books = [Logbook("acme"), Logbook("other")]
    for book in books:
        write_budgets(book)
    fork(books[1], "b-more", "7")
    await apply_in_cuts(runner, books, [])
    series = exposed(await snapshot(pool, tenant_labels=100))

    def acme(name: str, **labels: str) -> float:
        return value(series, name, tenant_id="acme", **labels)

    assert acme("budgeted_tasks_open") == 1
    assert acme("task_budget_limit_usd") == float(RATE * 150)
    assert acme("task_budget_spent_usd") == float(RATE * 100), "of the open one alone, and its known costs"
    ended = {
        (status, exceeded): acme("budgeted_tasks_total", status=status, exceeded=exceeded)
        for status in ("completed", "failed", "cancelled")
        for exceeded in ("true", "false")
    }
    nothing = {(status, exceeded): 0 for status, exceeded in ended}
    assert ended == nothing | {("completed", "false"): 1, ("failed", "true"): 2, ("cancelled", "false"): 1}
    assert acme("task_budget_overrun_usd_total") == float(RATE * 150), "three requests of 100 on a budget of 150"
    assert {r: acme("budget_exceeded_total", reason=r) for r in ("spent", "unpriced")} == {"spent": 2, "unpriced": 1}
    assert value(series, "budgeted_tasks_open", tenant_id="other") == 2
    assert value(series, "task_budget_limit_usd", tenant_id="other") == float(RATE * 150 + 7)
    kept = await pool.fetch("SELECT tenant, task FROM metric_budgets ORDER BY 1, 2")
    assert [tuple(row) for row in kept] == [("acme", "b-open"), ("other", "b-more"), ("other", "b-open")]


async def test_a_budget_is_exact_to_the_last_digit_it_can_have(pool: Pool, runner: Runner) -> None:
    book = Logbook("acme")
    limit, cost = "99999999999999999999." + "9" * 40, "0." + "0" * 39 + "1"
    fork(book, "t", limit)
    fork(book, "u", "0.5")
    for _ in range(3):
        book.attempt(task="t", call="c", cost_usd=cost)
    book.attempt(task="u", call="c", cost_usd="0.5" + "0" * 38 + "1")
    for task in ("t", "u"):
        book.add(TaskFailed(reason="no"), task=task)
    await apply_in_cuts(runner, [book], [4])
    names = ("task_budget_limit_usd", "task_budget_spent_usd", "task_budget_overrun_usd_total")
    left = {sample.sample: sample.value for sample in await snapshot(pool, tenant_labels=9) if sample.sample in names}
    assert left == {names[0]: 0, names[1]: 0, names[2]: Decimal(cost)}


async def test_unreadable_entries_are_counted_by_reason_once(pool: Pool, runner: Runner) -> None:
    books = [Logbook("acme"), Logbook("other")]
    for book in books:
        book.add(TaskFailed(reason="no"), task="t")
        write_unreadable(book)
    write_unreadable(books[1])
    expected = {reason: len(entries) for reason, entries in UNREADABLE.items()} | {"missing_field": 1}
    for cuts in ([], [1, 3, 4]):
        await forget(pool)
        for _ in range(2):
            await apply_in_cuts(runner, books, cuts)
        series = exposed(await snapshot(pool, tenant_labels=100))
        for tenant, times in (("acme", 1), ("other", 2)):
            found = {
                dict(labels)["reason"]: v / times
                for (name, labels), v in series.items()
                if name == "log_entries_unreadable_total" and dict(labels)["tenant_id"] == tenant
            }
            assert found == expected, tenant
        rows = await pool.fetch("SELECT reason, count(*) AS n FROM unreadable WHERE tenant = 'acme' GROUP BY reason")
        assert dict(map(tuple, rows)) == expected
    own = exposed(await tenant_snapshot(pool, "acme"))
    assert value(own, "log_entries_unreadable_total") == sum(expected.values()), "nothing of the other's"


async def test_an_entry_that_postgresql_refuses_is_counted_among_good_ones(
    pool: Pool, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = Logbook("acme")
    for n in range(5):
        book.add(TaskFailed(reason="no"), task=f"t-{n}")
    copy = Archive.apply

    async def refusing(self: Archive, conn: Connection, batch: Sequence[Recorded]) -> None:
        if any(entry.event.task_id == "t-3" for entry in batch):
            raise asyncpg.DataError("a value that PostgreSQL cannot hold")
        await copy(self, conn, batch)

    monkeypatch.setattr(Archive, "apply", refusing)
    for _ in range(2):
        await apply_in_cuts(runner, [book], [])
    series = exposed(await snapshot(pool, tenant_labels=100))
    assert value(series, "log_entries_unreadable_total", tenant_id="acme", reason="not_storable") == 1
    assert value(series, "log_entries_unreadable_total") == 1
    assert value(series, "supervisor_tasks_total", status="failed") == 4


async def test_a_tenant_with_nothing_but_unreadable_entries_has_its_label(pool: Pool, runner: Runner) -> None:
    for tenant in ("acme", "other", "third"):
        book = Logbook(tenant)
        book.add_raw({"data": "somebody else's"})
        await apply_in_cuts(runner, [book], [])
    series = exposed(await snapshot(pool, tenant_labels=2))
    unreadable = {key: v for key, v in series.items() if key[0] == "log_entries_unreadable_total"}
    assert {dict(labels)["tenant_id"]: v for (_, labels), v in unreadable.items()} == {
        "acme": 1,
        "other": 1,
        "_other": 1,
    }


async def test_a_database_of_the_version_before_is_counted_from_its_beginning(pool: Pool, runner: Runner) -> None:
    books = [log_of_the_rest("acme"), log_of_the_rest("other")]
    await apply_in_cuts(runner, books, [])
    live = await digest_of(pool, "metrics")
    names = "'budget%', 'task_budget%', 'log_entries%'"
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute(f"DELETE FROM metrics WHERE metric LIKE ANY (ARRAY[{names}])")
        await conn.execute("DROP TABLE metric_budgets")
        await conn.execute("ALTER TABLE unreadable DROP COLUMN reason")
        await conn.execute("DELETE FROM schema_migrations WHERE name LIKE '0008%'")
    await pool.expire_connections()
    assert await migrate(pool) == ["0008_budgets_and_unreadable.sql"]
    assert await rebuild_outdated(pool) == ["metrics"]
    series = exposed(await snapshot(pool, tenant_labels=100))
    assert value(series, "budgeted_tasks_total", tenant_id="acme") == 4
    # What was not written down then cannot be told apart now.
    reasons = {reason: len(entries) for reason, entries in UNREADABLE.items()} | {"missing_field": 1}
    other = sum(reasons.pop(reason) for reason in ("malformed_envelope", "malformed_body"))
    other += reasons.pop("no_task")
    found = {r: value(series, "log_entries_unreadable_total", tenant_id="acme", reason=r) for r in (*reasons, "other")}
    assert found == reasons | {"other": other}
    assert await digest_of(pool, "metrics") != live, "by reason"
    assert value(series, "log_entries_unreadable_total", tenant_id="other") == sum(found.values())


async def test_budgets_of_another_tenant_are_behind_row_level_security(pool: Pool, runner: Runner) -> None:
    await apply_in_cuts(runner, [log_of_the_rest("acme"), log_of_the_rest("other")], [])
    async with tenant_connection(pool, "acme") as conn:
        rows = await conn.fetch("SELECT tenant, task FROM metric_budgets")
        assert [tuple(row) for row in rows] == [("acme", "b-open")]
        assert await conn.fetchval("SELECT count(*) FROM unreadable WHERE tenant <> 'acme'") == 0


async def test_a_tenants_key_is_shown_its_own_over_http(
    settings: Settings, endpoints: Endpoints, streams: Streams, pool: Pool, runner: Runner, database_url: str
) -> None:
    books = [log_of_the_rest("acme"), log_of_the_rest("other")]
    fork(books[1], "b-more", "7")
    await apply_in_cuts(runner, books, [])
    here = Endpoints(endpoints.redis_url, database_url)
    async with served(settings, here) as url, httpx.AsyncClient(timeout=30) as client:

        async def shown(headers: dict[str, str]) -> Series:
            return read((await client.get(f"{url}/metrics", headers=headers)).text)

        alone = {tenant: await shown(await key_of(pool, tenant, "read")) for tenant in ("acme", "other")}
        everybody = await shown({})
    ours = [name for name in METRICS if "budget" in name or "unreadable" in name]
    for tenant, series in alone.items():
        assert {dict(labels)["tenant_id"] for (name, labels) in series if name in ours} == {tenant}
        for name in ours:
            assert value(series, name) == value(everybody, name, tenant_id=tenant), name
            assert value(series, name) != 0 or "overrun" in name
    assert value(alone["other"], "budgeted_tasks_open") == 2
