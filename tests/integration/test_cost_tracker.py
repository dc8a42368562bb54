"""`CostTracker` over a real ledger and a Langfuse that is asked over HTTP: two tenants, two sources, and none."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import httpx
import orjson
import pytest
from langfuse import Langfuse, propagate_attributes
from opentelemetry.sdk.trace import TracerProvider

from headwater import CostTracker
from headwater.embedded import Endpoints
from projections.cost_tracker import costs_json
from projections.db import Pool
from projections.langfuse_costs import MAX_ROWS, LangfuseCosts
from projections.runner import Runner
from schemas.errors import InvalidInputError, UnavailableError
from streams.connection import Streams
from tests.conftest import SHARDS
from tests.fake_langfuse import SECRET_KEY, FakeLangfuse
from tests.logbook import RATE, Logbook, apply_in_cuts

PUBLIC_KEY = "pk-lf-costs"  # the SDK keeps one client a process for a key, and other tests have the usual one


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeLangfuse]:
    path = tmp_path_factory.mktemp("langfuse") / "spans.jsonl"
    with FakeLangfuse(path, public_key=PUBLIC_KEY) as fake:
        with httpx.Client(trust_env=False) as http:
            sdk = Langfuse(
                public_key=PUBLIC_KEY,
                secret_key=SECRET_KEY,
                base_url=fake.url,
                tracer_provider=TracerProvider(),
                httpx_client=http,
                timeout=5,
            )
            for tenant, agent, spent in ATTEMPTS:
                with (
                    propagate_attributes(user_id=tenant, tags=[f"agent:{agent}", f"tenant:{tenant}"]),
                    sdk.start_as_current_observation(name=agent, as_type="generation", model="m") as generation,
                ):
                    cost = float(RATE * spent)
                    generation.update(usage_details={"input": spent, "total": spent}, cost_details={"total": cost})
            sdk.flush()
            sdk.shutdown()
        yield fake


ATTEMPTS = [("acme", "writer", 1000), ("acme", "writer", 300), ("acme", "checker", 7), ("other", "writer", 50)]


@pytest.fixture
async def ledger(pool: Pool, streams: Streams) -> Pool:
    """The same attempts in the ledger, today, and one of long ago."""
    now = datetime.now(UTC)
    books = {tenant: Logbook(tenant) for tenant in ("acme", "other")}
    for tenant, agent, spent in ATTEMPTS:
        books[tenant].attempt(task="t-1", call="c-1", agent=agent, spent=spent, ended_at=now)
    books["acme"].attempt(task="t-0", call="c-0", spent=10**9, ended_at=now - timedelta(days=40))
    await apply_in_cuts(Runner(pool, streams.log), list(books.values()), [])
    return pool


@pytest.fixture
def langfuse(fake: FakeLangfuse) -> LangfuseCosts:
    return LangfuseCosts(fake.url, PUBLIC_KEY, SECRET_KEY)


@pytest.mark.parametrize("source", ["ledger", "langfuse"])
async def test_a_tenants_costs_by_agent(ledger: Pool, langfuse: LangfuseCosts, source: str) -> None:
    found = await CostTracker(ledger, langfuse).get_tenant_costs("acme", source=source)  # type: ignore[arg-type]
    assert found == {
        "tenant_id": "acme",
        "period_days": 30,
        "agents": {
            "writer": {"total_cost": RATE * 1300, "total_tokens": 1300, "invocation_count": 2},
            "checker": {"total_cost": RATE * 7, "total_tokens": 7, "invocation_count": 1},
        },
        "total_cost": RATE * 1307,
        "source": source,
    }
    assert orjson.loads(orjson.dumps(costs_json(found)))["agents"]["checker"]["total_cost"] == "0.0000175"


@pytest.mark.parametrize("source", ["ledger", "langfuse"])
async def test_an_agents_costs_by_tenant(ledger: Pool, langfuse: LangfuseCosts, source: str) -> None:
    found = await CostTracker(ledger, langfuse).get_agent_costs("writer", 7, source=source)  # type: ignore[arg-type]
    assert found == {
        "agent_id": "writer",
        "period_days": 7,
        "tenants": {
            "acme": {"total_cost": RATE * 1300, "total_tokens": 1300},
            "other": {"total_cost": RATE * 50, "total_tokens": 50},
        },
        "total_cost": RATE * 1350,
        "source": source,
    }


async def test_the_ledger_is_the_source_unless_another_is_asked_for(ledger: Pool, langfuse: LangfuseCosts) -> None:
    assert (await CostTracker(ledger, langfuse).get_tenant_costs("acme"))["source"] == "ledger"
    assert (await CostTracker(langfuse=langfuse).get_tenant_costs("acme"))["source"] == "langfuse"
    assert (await CostTracker(ledger).get_tenant_costs("acme", 60))["total_cost"] == RATE * (10**9 + 1307)


async def test_with_no_source_everything_is_zero_and_says_so(ledger: Pool) -> None:
    nowhere = LangfuseCosts("http://127.0.0.1:1", PUBLIC_KEY, SECRET_KEY)
    for tracker in (CostTracker(), CostTracker(langfuse=nowhere)):
        found = await tracker.get_tenant_costs("acme")
        assert (found["agents"], found["total_cost"], found["source"]) == ({}, Decimal(0), "unavailable")
        agent = await tracker.get_agent_costs("writer")
        assert (agent["tenants"], agent["total_cost"], agent["source"]) == ({}, Decimal(0), "unavailable")
    asked = await CostTracker(ledger).get_tenant_costs("acme", source="langfuse")
    assert (asked["total_cost"], asked["source"]) == (Decimal(0), "unavailable"), "not the ledger under another name"


async def test_a_database_that_is_away_is_unavailable_and_not_free(ledger: Pool) -> None:
    await ledger.close()
    assert (await CostTracker(ledger).get_tenant_costs("acme"))["source"] == "unavailable"


async def test_ids_and_periods_are_checked(ledger: Pool) -> None:
    tracker = CostTracker(ledger)
    with pytest.raises(InvalidInputError, match="tenant id"):
        await tracker.get_tenant_costs("a:b")
    with pytest.raises(InvalidInputError, match="agent id"):
        await tracker.get_agent_costs("a b")
    with pytest.raises(InvalidInputError, match="days is 0"):
        await tracker.get_tenant_costs("acme", 0)
    with pytest.raises(ValueError, match="choose 'ledger' or 'langfuse'"):
        await tracker.get_tenant_costs("acme", source="guess")  # type: ignore[arg-type]


async def test_the_two_accounts_side_by_side(ledger: Pool, langfuse: LangfuseCosts) -> None:
    tracker = CostTracker(ledger, langfuse)
    for tenant, agent in (("acme", None), (None, "writer"), (None, None)):
        found = await tracker.compare(tenant_id=tenant, agent_id=agent)
        assert found.deviation == 0, (tenant, agent)
        assert found.ledger_usd == found.langfuse_usd > 0
    both = await tracker.compare(tenant_id="other", agent_id="writer")
    assert [(line.key, line.ledger.cost_usd) for line in both.lines] == [("other", RATE * 50)]
    # Langfuse has nothing of what was spent 40 days ago.
    apart = await tracker.compare(tenant_id="acme", period_days=60)
    assert apart.langfuse_usd - apart.ledger_usd == -RATE * 10**9
    assert apart.deviation == Decimal(10**9) / Decimal(10**9 + 1307)


async def test_differences_of_opposite_signs_do_not_cancel(
    pool: Pool, streams: Streams, langfuse: LangfuseCosts
) -> None:
    book = Logbook("acme")
    for agent, spent in (("writer", 1200), ("checker", 107)):
        book.attempt(task="t", call="c", agent=agent, spent=spent, ended_at=datetime.now(UTC))
    await apply_in_cuts(Runner(pool, streams.log), [book], [])
    found = await CostTracker(pool, langfuse).compare(tenant_id="acme")
    assert found.ledger_usd == found.langfuse_usd
    assert found.deviation == Decimal(200) / Decimal(1307)


async def test_a_comparison_with_nothing_is_refused(ledger: Pool, langfuse: LangfuseCosts, fake: FakeLangfuse) -> None:
    with pytest.raises(UnavailableError, match="LANGFUSE_HOST"):
        await CostTracker(ledger).compare()
    with pytest.raises(UnavailableError, match="no ledger"):
        await CostTracker(langfuse=langfuse).compare()
    wrong = LangfuseCosts(fake.url, PUBLIC_KEY, "wrong")
    with pytest.raises(UnavailableError, match="refused the keys"):
        await CostTracker(ledger, wrong).compare()
    try:
        fake.set_faults(reads_status=404)
        with pytest.raises(UnavailableError, match="no metrics of version 2"):
            await CostTracker(ledger, langfuse).compare()
    finally:
        fake.set_faults()


async def test_numbers_that_are_cut_off_are_no_numbers(
    langfuse: LangfuseCosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.langfuse_costs.MAX_ROWS", 2)
    assert MAX_ROWS == 1000
    with pytest.raises(UnavailableError, match="there are more"):
        await langfuse.by_agent(None, 30)


async def test_the_command_prints_both_and_fails_over_the_tolerance(
    ledger: Pool, fake: FakeLangfuse, endpoints: Endpoints, database_url: str
) -> None:
    async def headwater(*arguments: str) -> tuple[int, str, str]:
        env = os.environ | {
            "REDIS_URL": endpoints.redis_url,
            "DATABASE_URL": database_url,
            "HEADWATER_SHARDS": str(SHARDS),
            "LANGFUSE_HOST": fake.url,
            "LANGFUSE_PUBLIC_KEY": PUBLIC_KEY,
            "LANGFUSE_SECRET_KEY": SECRET_KEY,
            "COLUMNS": "200",
        }
        command = [sys.executable, "-m", "headwater", "costs", *arguments]
        done = await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    code, shown, error = await headwater("--agent", "writer", "--compare", "langfuse")
    assert (code, error) == (0, "")
    assert "0.003375" in shown
    code, shown, error = await headwater("--agent", "writer", "--compare", "langfuse", "--days", "60", "--json")
    found = orjson.loads(shown)
    assert (code, found["within_tolerance"], found["difference_usd"]) == (1, False, "-2500")
    assert "the ledger and Langfuse differ by" in error
    code, _, _ = await headwater("--agent", "writer", "--compare", "langfuse", "--days", "60", "--tolerance", "1")
    assert code == 0
    for wrong in (["--compare", "guess"], ["--compare", "langfuse", "--by", "day"]):
        assert (await headwater(*wrong))[0] == 2
