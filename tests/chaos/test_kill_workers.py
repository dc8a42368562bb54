"""Workers are killed at random while 2,000 tasks are in flight: each task ends once, and every cent is known."""

import asyncio
import contextlib
import os
import random
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from headwater.simulator import AnswerRule, FaultRule, SimulatorConfig, SimulatorProcess, load_prices
from projections.db import Pool
from projections.projection import parse_position
from projections.rebuild import digests, rebuild, rebuildable
from schemas.event import AgentEvent
from schemas.task import NewTask
from streams.bus import TenantEventBus
from streams.connection import Streams
from streams.log import readable
from tests.chaos.conftest import PRICES
from tests.processes import HeadwaterProcess, until

TASKS = 2_000
TENANTS = 20
KILLS = 20
WORKERS = 3
SEED = int(os.environ.get("CHAOS_SEED", "20261124"))
FAULTS = [FaultRule(latency_ms=5, jitter_ms=60, rate_429=0.01, rate_500=0.01, rate_drop_billed=0.002, retry_after_s=0)]

ANSWERS = [
    AnswerRule(system="check a handoff", json={"grounded": True}),
    AnswerRule(
        system="Split the task",
        json={"subtasks": [{"description": "read it"}, {"description": "stream it", "depends_on": [0]}]},
    ),
    AnswerRule(system="Put the results", json={"answer": "both", "sources": [0, 1]}),
]
DECOMPOSED_EVERY = 20
STREAMED_EVERY = 5
REMEMBERED_EVERY = 10


@pytest.mark.timeout(900)
async def test_killed_workers_lose_and_double_nothing(
    streams: Streams, pool: Pool, worker_env: dict[str, str], tmp_path: Path
) -> None:
    print(f"seed {SEED} (set CHAOS_SEED to repeat)")
    config = SimulatorConfig(seed=SEED, prices=load_prices(PRICES), faults=FAULTS, answers=ANSWERS)
    with SimulatorProcess(config) as simulator, contextlib.ExitStack() as stack:
        env = worker_env | {"HEADWATER_LLM_BASE_URL": f"{simulator.url}/v1"}
        stack.enter_context(HeadwaterProcess(["projector"], env, tmp_path / "projector.log"))
        workers = _Workers(env, tmp_path, stack)
        accepted = await _submit(streams)
        kills = await _kill_at_random(streams, workers)
        await until(lambda: _all_ended(streams), "all tasks ended", deadline_s=480)
        await until(lambda: _projected(streams, pool), "the projector read everything", deadline_s=120)
        bill = simulator.bill()

    assert kills == KILLS
    events = await _events(streams)
    _each_task_ended_once(events, accepted)
    _no_event_is_doubled(events)
    _everything_was_in_the_mix(events)
    await _ledger_equals_bill(pool, bill)
    live = {found.projection: found for found in await digests(pool)}
    await rebuild(pool, rebuildable())
    assert {found.projection: found for found in await digests(pool)} == live


class _Workers:
    """Worker processes; a killed one is replaced at once."""

    def __init__(self, env: dict[str, str], logs: Path, stack: contextlib.ExitStack) -> None:
        self._env, self._logs, self._stack = env, logs, stack
        self._count = 0
        self.running = [self._start() for _ in range(WORKERS)]

    def _start(self) -> HeadwaterProcess:
        self._count += 1
        log = self._logs / f"worker-{self._count}.log"
        return self._stack.enter_context(
            HeadwaterProcess(["worker", "--agents", "tests.chaos.team:team"], self._env, log)
        )

    def kill(self, draw: random.Random) -> None:
        """Kill any of them."""
        place = draw.randrange(WORKERS)
        assert self.running[place].is_running(), self.running[place].output()[-2000:]
        self.running[place].kill()
        self.running[place] = self._start()


def _tenants() -> list[str]:
    return [f"tenant-{n:02}" for n in range(TENANTS)]


async def _submit(streams: Streams) -> set[str]:
    buses = {tenant: TenantEventBus(streams, tenant) for tenant in _tenants()}

    async def one(number: int) -> str:
        tenant = f"tenant-{number % TENANTS:02}"
        text = f"task {number}: " + "please have a look at this " * (number % 7)
        text += " as a stream" * (number % STREAMED_EVERY == 0) + " and remember it" * (number % REMEMBERED_EVERY == 1)
        if number % DECOMPOSED_EVERY == 0:
            text += "\n1. read it\n2. write it"
        return (await buses[tenant].submit(NewTask(tenant=tenant, session=f"s{number % 50}", text=text))).task_id

    return set(await asyncio.gather(*(one(number) for number in range(TASKS))))


async def _kill_at_random(streams: Streams, workers: _Workers) -> int:
    draw = random.Random(SEED)
    # The first kill comes when work has begun: before that there is nothing to lose.
    await until(lambda: _ended_at_least(streams, 20), "the workers began")
    kills = 0
    while kills < KILLS and not await _all_ended(streams):
        workers.kill(draw)
        kills += 1
        await asyncio.sleep(draw.uniform(0.2, 1.2))
    return kills


async def _events(streams: Streams) -> list[AgentEvent]:
    found: list[AgentEvent] = []
    for tenant in _tenants():
        entries = await streams.log.read(tenant, limit=1_000_000)
        events, unreadable = readable(tenant, entries)
        assert not unreadable
        found += events
    return found


async def _ended_at_least(streams: Streams, number: int) -> bool:
    return await _ended(streams) >= number


async def _all_ended(streams: Streams) -> bool:
    return await _ended(streams) >= TASKS


async def _ended(streams: Streams) -> int:
    """Open tasks have a state; the log says which were submitted."""
    pipeline = streams.redis.pipeline(transaction=False)
    for tenant in _tenants():
        pipeline.hlen(f"{streams.keys.prefix(tenant)}:state")
        pipeline.hget(streams.keys.readers(tenant), "decider")
        pipeline.xrange(streams.keys.log(tenant), "-", "+", count=TASKS // TENANTS)
    replies = await pipeline.execute()
    ended = 0
    for open_tasks, checkpoint, first in zip(replies[::3], replies[1::3], replies[2::3], strict=True):
        # All submissions stand at the log's beginning, unless the first decisions came in between.
        last = parse_position(first[-1][0].decode())
        if checkpoint is not None and parse_position(checkpoint.decode()) >= last:
            ended += TASKS // TENANTS - open_tasks
    return ended


async def _projected(streams: Streams, pool: Pool) -> bool:
    rows = await pool.fetch("SELECT tenant, ms, seq FROM positions WHERE projection = 'archive'")
    there = {row["tenant"]: (row["ms"], row["seq"]) for row in rows}
    ends = {tenant: parse_position(await streams.log.end(tenant)) for tenant in _tenants()}
    return there == ends


def _each_task_ended_once(events: list[AgentEvent], accepted: set[str]) -> None:
    ends = Counter(event.task_id for event in events if event.body.terminal)
    assert len(accepted) == TASKS
    assert set(ends) == accepted
    assert set(ends.values()) == {1}
    completed = sum(event.type == "task.completed" for event in events)
    # Refusals are retried and dead workers' calls taken over, so practically all succeed.
    assert completed >= TASKS - 20


def _no_event_is_doubled(events: list[AgentEvent]) -> None:
    doubled = [key for key, count in Counter((e.tenant_id, e.id) for e in events).items() if count > 1]
    assert not doubled
    runs = Counter(e.body.call_id for e in events if e.type == "agent.completed")  # type: ignore[attr-defined]
    assert set(runs.values()) == {1}


def _everything_was_in_the_mix(events: list[AgentEvent]) -> None:
    counts = Counter(event.type for event in events)
    assert counts["task.decomposed"] >= TASKS // DECOMPOSED_EVERY - 5
    assert counts["memory.stored"] >= TASKS // REMEMBERED_EVERY - 5
    assert counts["context.compiled"] >= TASKS // REMEMBERED_EVERY - 5
    verified = [e for e in events if e.type == "handoff.accepted" and e.body.verification == "verified"]  # type: ignore[attr-defined]
    assert len(verified) >= TASKS - 50
    streamed = [e for e in events if e.type == "llm.attempted" and e.body.first_token_at is not None]  # type: ignore[attr-defined]
    assert len(streamed) >= TASKS // STREAMED_EVERY - 20


async def _ledger_equals_bill(pool: Pool, bill: dict[str, Any]) -> None:
    ledger = {row["event_id"]: row for row in await pool.fetch("SELECT * FROM ledger")}
    billed = {entry["attempt_id"]: entry for entry in bill["entries"]}
    assert len(billed) == bill["requests"]
    answered = {key: row for key, row in ledger.items() if row["status"] == "ok"}
    unknown = {key for key, row in ledger.items() if row["status"] == "unknown"}
    # Nothing in the ledger that was not billed, and nothing billed that the ledger does not have or list as unknown.
    assert set(answered) <= set(billed)
    assert set(billed) - set(answered) <= unknown
    for key, row in answered.items():
        assert row["cost_usd"] == Decimal(billed[key]["usd"]), key
    total = sum((Decimal(entry["usd"]) for key, entry in billed.items() if key in answered), Decimal(0))
    assert sum((row["cost_usd"] for row in answered.values()), Decimal(0)) == total
    assert len(answered) >= 3 * (TASKS - 20)
