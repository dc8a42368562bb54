"""The export as it runs: in the projector's process, beside workers, with processes killed on both sides (row E1)."""

import asyncio
import contextlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from headwater.embedded import Endpoints
from headwater.simulator import SimulatorConfig, SimulatorProcess
from projections.costs import ledger_totals
from projections.db import Pool
from projections.langfuse import export_status
from projections.langfuse.spans import EXPORTED
from projections.projection import parse_position
from schemas.task import NewTask
from schemas.trace_ids import task_span_id
from streams.bus import TenantEventBus
from streams.connection import Streams
from streams.log import readable
from tests.conftest import SHARDS
from tests.exporting import assert_once
from tests.fake_langfuse import PUBLIC_KEY, SECRET_KEY, FakeLangfuse, StoredSpan
from tests.processes import HeadwaterProcess, until

TENANTS = ("acme", "globex")
PRICES = Path(__file__).parents[2] / "headwater" / "simulator" / "prices.json"
WORKER = ["worker", "--agents", "tests.langfuse_team:team"]
PLAIN_WORKER = ["worker", "--agents", "tests.chaos.team:team"]
"""A team that makes no spans of its own."""


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeLangfuse]:
    """A running fake."""
    with FakeLangfuse(tmp_path / "spans.jsonl") as fake:
        yield fake


@pytest.fixture
def simulator() -> Iterator[SimulatorProcess]:
    """A provider that keeps a bill."""
    with SimulatorProcess(SimulatorConfig()) as simulator:
        yield simulator


@pytest.fixture
def env(endpoints: Endpoints, streams: Streams, database_url: str, simulator: SimulatorProcess) -> dict[str, str]:
    """Environment of processes without Langfuse."""
    return {
        "REDIS_URL": endpoints.redis_url,
        "DATABASE_URL": database_url,
        "HEADWATER_SHARDS": str(SHARDS),
        "HEADWATER_FAST_MODELS": "openai/sim-fast",
        "HEADWATER_REASONING_MODELS": "openai/sim-reasoning",
        "HEADWATER_PRICES": str(PRICES),
        "HEADWATER_LLM_API_KEY": "simulator",
        "HEADWATER_LLM_BASE_URL": f"{simulator.url}/v1",
    }


def with_langfuse(env: dict[str, str], fake: FakeLangfuse) -> dict[str, str]:
    """`env` with keys, and an exporter that looks after a second."""
    return env | {
        "LANGFUSE_PUBLIC_KEY": PUBLIC_KEY,
        "LANGFUSE_SECRET_KEY": SECRET_KEY,
        "LANGFUSE_HOST": fake.url,
        "LANGFUSE_FLUSH_INTERVAL": "0.2",
        "HEADWATER_LANGFUSE_SETTLE_S": "1",
    }


async def submit(streams: Streams, count: int) -> None:
    for tenant in TENANTS:
        bus = TenantEventBus(streams, tenant)
        for n in range(count):
            await bus.submit(NewTask(tenant=tenant, session=f"s-{n}", text=f"read {n}", type="report"))


async def all_ended(streams: Streams, count: int) -> bool:
    for tenant in TENANTS:
        events, _ = readable(tenant, await streams.log.read(tenant, limit=100_000))
        if sum(event.type == "task.completed" for event in events) < count:
            return False
    return True


async def all_archived(streams: Streams, pool: Pool) -> bool:
    rows = await pool.fetch("SELECT tenant, ms, seq FROM positions WHERE projection = 'archive'")
    there = {row["tenant"]: (row["ms"], row["seq"]) for row in rows}
    return all([there.get(t) == parse_position(await streams.log.end(t)) for t in TENANTS])


async def run_tasks(streams: Streams, pool: Pool, count: int) -> None:
    """Submit tasks to both tenants and wait until they have ended and are archived."""
    await submit(streams, count)
    await until(lambda: all_ended(streams, count), "all tasks ended")
    await until(lambda: all_archived(streams, pool), "the projector read everything")


async def exported(pool: Pool) -> bool:
    return (await export_status(pool)).done


async def stored(fake: FakeLangfuse) -> int:
    return (await asyncio.to_thread(fake.stats))["spans"]


async def count_of_events(pool: Pool) -> int:
    return int(await pool.fetchval("SELECT count(*) FROM events WHERE type = ANY($1)", sorted(EXPORTED)))


def of_the_log(spans: list[StoredSpan]) -> list[StoredSpan]:
    return [span for span in spans if span.name != "look-up"]


async def test_a_teams_work_reaches_langfuse_and_an_agents_own_spans_stand_under_its_run(
    streams: Streams, pool: Pool, env: dict[str, str], fake: FakeLangfuse, simulator: SimulatorProcess, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        keys = with_langfuse(env, fake)
        stack.enter_context(HeadwaterProcess(["projector"], keys, tmp_path / "projector.log"))
        stack.enter_context(HeadwaterProcess(WORKER, keys, tmp_path / "worker.log"))
        await run_tasks(streams, pool, 3)
        await until(lambda: exported(pool), "everything was exported")

        async def own_spans_arrived() -> bool:
            return sum(span.name == "look-up" for span in await asyncio.to_thread(fake.spans)) == 2 * 3

        await until(own_spans_arrived, "the agents' own spans arrived")
    spans = fake.spans()
    by_id = {span.id: span for span in spans}
    assert_once(of_the_log(spans), await count_of_events(pool))
    for span in spans:
        if span.name == "look-up":
            assert span.parent_id is not None
            run = by_id[span.parent_id]
            assert (run.type, run.name, run.trace_id) == ("AGENT", "reader", span.trace_id)
            assert (span.user_id, span.session_id) == (run.user_id, run.session_id)
            assert sorted(span.tags) == ["agent:reader", f"tenant:{run.user_id}"]
    roots = [span for span in spans if span.parent_id is None]
    assert {root.id for root in roots} == {task_span_id(str(r.user_id), r.metadata["task_id"]) for r in roots}
    assert len(roots) == 2 * 3
    total = sum(span.total_cost for span in spans)
    assert total == (await ledger_totals(pool)).cost_usd == Decimal(simulator.bill()["total_usd"]) > 0


async def test_every_span_is_there_once_though_both_sides_are_killed(
    streams: Streams, pool: Pool, env: dict[str, str], fake: FakeLangfuse, tmp_path: Path
) -> None:
    keys = with_langfuse(env, fake)
    # Long enough to be killed between what the server stored and its answer.
    fake.set_faults(delay_s=2)
    with contextlib.ExitStack() as stack:
        projector = stack.enter_context(HeadwaterProcess(["projector"], keys, tmp_path / "projector-0.log"))
        stack.enter_context(HeadwaterProcess(WORKER, keys, tmp_path / "worker.log"))
        await submit(streams, 10)
        for n in range(1, 3):
            await until(lambda: _more_in_flight(pool, fake), "spans are stored and not answered for")
            projector.kill()
            projector = stack.enter_context(HeadwaterProcess(["projector"], keys, tmp_path / f"projector-{n}.log"))
            await submit(streams, 10)
        await until(lambda: _more_in_flight(pool, fake), "spans are stored and not answered for")
        fake.kill()
        await until(lambda: all_ended(streams, 30), "all tasks ended")
        fake.start()
        await until(lambda: all_archived(streams, pool), "the projector read everything")
        await until(lambda: exported(pool), "everything was exported")
    assert_once(of_the_log(fake.spans()), await count_of_events(pool))
    assert "langfuse_looked_up" in "".join((tmp_path / f"projector-{n}.log").read_text() for n in range(3))
    assert sum(span.total_cost for span in fake.spans()) == (await ledger_totals(pool)).cost_usd > 0


async def _more_in_flight(pool: Pool, fake: FakeLangfuse) -> bool:
    in_flight = {row["span_id"] for row in await pool.fetch("SELECT span_id FROM langfuse_in_flight")}
    return bool(in_flight & {span.id for span in await asyncio.to_thread(fake.spans)})


async def test_the_projector_keeps_up_while_langfuse_is_away(
    streams: Streams, pool: Pool, env: dict[str, str], fake: FakeLangfuse, tmp_path: Path
) -> None:
    keys = with_langfuse(env, fake)
    fake.kill()
    with contextlib.ExitStack() as stack:
        stack.enter_context(HeadwaterProcess(["projector"], keys, tmp_path / "projector.log"))
        stack.enter_context(HeadwaterProcess(PLAIN_WORKER, keys, tmp_path / "worker.log"))
        await run_tasks(streams, pool, 5)
        status = await export_status(pool)
        assert not status.done

        async def noticed() -> bool:
            return "langfuse_away" in (tmp_path / "projector.log").read_text()

        await until(noticed, "the exporter noticed that nobody answers")
        fake.start()
        await until(lambda: exported(pool), "everything was exported")
    assert_once(fake.spans(), await count_of_events(pool))


async def test_without_keys_nothing_happens_but_one_log_line(
    streams: Streams, pool: Pool, env: dict[str, str], tmp_path: Path
) -> None:
    quiet = env | {"LANGFUSE_PUBLIC_KEY": "", "LANGFUSE_SECRET_KEY": "", "LANGFUSE_HOST": ""}
    with contextlib.ExitStack() as stack:
        stack.enter_context(HeadwaterProcess(["projector"], quiet, tmp_path / "projector.log"))
        stack.enter_context(HeadwaterProcess(PLAIN_WORKER, quiet, tmp_path / "worker.log"))
        await run_tasks(streams, pool, 2)
    for name in ("projector", "worker"):
        lines = [line for line in (tmp_path / f"{name}.log").read_text().splitlines() if "langfuse" in line.lower()]
        assert len(lines) == 1, lines
        assert "langfuse_off" in lines[0]
    assert await pool.fetchval("SELECT count(*) FROM langfuse_positions") == 0
