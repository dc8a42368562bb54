"""What an older version left in Redis, with tasks in flight, is read and finished by today's code."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from handlers.decider import redecide
from handlers.provider import LitellmProvider
from handlers.supervisor import Rules
from headwater.embedded import Endpoints
from headwater.runtime import add_decider, add_projector, add_runner, make_broker, make_llm, worker_name
from headwater.settings import Settings
from headwater.simulator import SimulatorConfig, SimulatorProcess, load_prices
from projections.db import Pool
from projections.projection import parse_position
from projections.rebuild import digests, rebuild, rebuildable
from projections.runner import Runner
from schemas.bodies import AgentCompleted
from schemas.event import AgentEvent, entry_fields
from streams.connection import Streams, open_streams
from streams.log import readable
from tests.processes import until
from tests.replay import snapshot
from tests.replay.record import PRICES, SHARDS
from tests.replay.recording import LOGS
from tests.replay.team import FINISH, GO_ON, team

OLD = LOGS / "agent_completed_1.jsonl"
"""Eight tasks of acme: four runs under way with recorded steps, two results and two tasks that nobody decided on."""
TENANT = "acme"
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def old(streams: Streams, endpoints: Endpoints) -> AsyncIterator[Streams]:
    """A log that version 1 of `agent.completed` is in, opened."""
    await streams.redis.flushall()
    await snapshot.restore(streams.redis, snapshot.read(OLD))
    opened = await open_streams(endpoints.redis_url, shards=SHARDS)
    yield opened
    await opened.close()


async def events(streams: Streams) -> list[AgentEvent]:
    found, unreadable = readable(TENANT, await streams.log.read(TENANT))
    assert not unreadable
    return found


async def versions(streams: Streams) -> Counter[tuple[str, str]]:
    entries = [entry_fields(flat) for _, flat in await streams.log.read(TENANT)]
    return Counter((fields["type"], fields["v"]) for fields in entries)


async def test_tasks_in_flight_are_finished_and_the_old_events_counted(
    old: Streams, endpoints: Endpoints, pool: Pool, database_url: str, tmp_path: Path
) -> None:
    before = await events(old)
    assert (await versions(old))["agent.completed", "1"] == 8
    submitted = {event.task_id for event in before if event.type == "task.submitted"}
    assert len(submitted) == 8
    assert not [event for event in before if event.body.terminal]
    FINISH.set()
    GO_ON.set()
    with SimulatorProcess(SimulatorConfig(prices=load_prices(PRICES))) as simulator:
        settings = Settings(
            llm_base_url=f"{simulator.url}/v1",
            llm_api_key="simulator",
            fast_models=("openai/sim-fast",),
            reasoning_models=("openai/sim-reasoning",),
            prices=PRICES,
        )
        provider = LitellmProvider(settings.llm_base_url, settings.llm_api_key)
        broker = make_broker(endpoints.redis_url, old)
        add_decider(broker, old, team, settings)
        add_runner(broker, old, team, make_llm(settings, provider), settings, worker_name())
        add_projector(broker, old, Runner(pool, old.log), settings)
        await broker.start()
        try:

            async def ended() -> bool:
                return len({e.task_id for e in await events(old) if e.body.terminal}) == 8

            await until(ended, "the tasks that were in flight ended")
            await until(lambda: _projected(old, pool), "the projections read everything")
        finally:
            await broker.stop()
            await provider.aclose()
    after = await events(old)
    assert after[: len(before)] == before
    assert Counter(event.task_id for event in after if event.body.terminal) == dict.fromkeys(submitted, 1)
    assert len({event.id for event in after}) == len(after)
    # What was recorded of the runs under way was not done again: one step and one result a call.
    for event_type in ("step.recorded", "agent.completed"):
        calls = [event.body.call_id for event in after if event.type == event_type]  # type: ignore[attr-defined]
        assert len(set(calls)) == len(calls)
    assert (await versions(old))["agent.completed", "2"] > 0
    # Old decisions and new ones are today's decisions (I5).
    assert list(redecide(after, Rules(team, team.strictness), {})) == []
    # The old durations are in the metrics, to the microsecond, and a rebuild counts them again (I4).
    total = sum(event.body.duration_us for event in after if isinstance(event.body, AgentCompleted))
    assert total > 0
    assert await pool.fetchval("SELECT count(*) FROM events") == len(after)
    assert await pool.fetchval("SELECT count(*) FROM unreadable") == 0
    assert await pool.fetchval("SELECT count(*) FROM events WHERE type = 'agent.completed' AND v = '1'") == 8
    live = {found.projection: found for found in await digests(pool)}
    await rebuild(pool, rebuildable())
    assert {found.projection: found for found in await digests(pool)} == live
    printed = await asyncio.to_thread(headwater_events, endpoints.redis_url, database_url, tmp_path)
    assert [event["id"] for event in printed] == [event.id for event in after]


async def _projected(streams: Streams, pool: Pool) -> bool:
    row = await pool.fetchrow("SELECT ms, seq FROM positions WHERE projection = 'archive' AND tenant = $1", TENANT)
    return row is not None and (row["ms"], row["seq"]) == parse_position(await streams.log.end(TENANT))


def headwater_events(redis_url: str, database_url: str, data: Path) -> list[dict[str, Any]]:
    """`headwater events --json`, and once for people: an old event is readable by both."""
    environment = {"REDIS_URL": redis_url, "DATABASE_URL": database_url, "HEADWATER_SHARDS": str(SHARDS)}
    command = [sys.executable, "-m", "headwater", "events", "--tenant", TENANT, "--data", str(data)]
    for more in (["--json"], []):
        done = subprocess.run([*command, *more], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        if more:
            printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stdout.count("agent.completed") >= 8
    return printed
