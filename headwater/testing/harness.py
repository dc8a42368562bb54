"""A whole Headwater in one test: real servers, the real log, workers and projections, and a scripted provider."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from faststream.redis import RedisBroker

from handlers.llm import LlmService
from handlers.provider import LitellmProvider
from handlers.team import Team
from headwater import simulator
from headwater.client import Headwater
from headwater.embedded import Endpoints
from headwater.runtime import add_decider, add_projector, add_runner, make_broker, make_llm, make_recall, worker_name
from headwater.settings import Settings
from headwater.simulator import AnswerRule, FaultRule, SimulatorConfig, create_simulator, load_prices
from headwater.simulator.bill import Bill
from headwater.simulator.server import BILL
from projections.db import create_database, drop_database, migrate
from projections.runner import Runner
from schemas.event import AgentEvent
from schemas.ids import new_id
from schemas.task import Accepted, NewTask, TaskOutcome
from streams.connection import open_streams
from streams.log import readable

T = TypeVar("T")
TENANT = "test"
TIMEOUT_S = 60.0
SIMULATOR_PRICES = Path(simulator.__file__).with_name("prices.json")
Answers = Sequence[AnswerRule | dict[str, Any]]
"""What the provider answers: rules as in a simulator's script, such as `{"system": "You write", "answer": "Hi"}`."""


@dataclass(frozen=True, slots=True)
class TaskRun:
    """A task that ended: its outcome, its events in log order, and what it cost."""

    outcome: TaskOutcome
    events: list[AgentEvent]
    cost_usd: Decimal

    @property
    def result(self) -> Any:
        """The task's result, None unless it was completed."""
        return self.outcome.result

    def bodies(self, event_type: str) -> list[Any]:
        """The bodies of all events of one type."""
        return [event.body for event in self.events if event.type == event_type]


class Harness:
    """A team under test. `hw` is the client; `run_task` is what most tests need."""

    def __init__(self, hw: Headwater, settings: Settings, endpoints: Endpoints, provider_url: str, bill: Bill) -> None:
        self.hw = hw
        self.settings = settings
        self.endpoints = endpoints
        self.provider_url = provider_url
        self._bill = bill

    async def run_task(
        self,
        text: str,
        *,
        tenant: str = TENANT,
        session: str | None = None,
        timeout_s: float = TIMEOUT_S,
        **fields: Any,
    ) -> TaskRun:
        """Submit a task and wait until it ended and was projected. `fields` as in a task file: `type`, `data`, ….

        Raises `TimeoutError` after `timeout_s` seconds.
        """
        accepted = await self.submit(text, tenant=tenant, session=session, **fields)
        async with asyncio.timeout(timeout_s):
            return await self.finished(accepted)

    async def submit(self, text: str, *, tenant: str = TENANT, session: str | None = None, **fields: Any) -> Accepted:
        """Submit a task and go on."""
        task = NewTask.model_validate({"text": text, "tenant": tenant, "session": session or f"s-{new_id()}", **fields})
        return await self.hw.submit(task)

    async def finished(self, accepted: Accepted) -> TaskRun:
        """The run of a task that was submitted, once it ended."""
        outcome = await self.hw.outcomes.wait(accepted)
        if not await self.hw.caught_up(accepted.tenant_id, timeout_s=TIMEOUT_S):
            raise TimeoutError("the projections did not catch up")
        found = await self.hw.task(accepted.tenant_id, accepted.task_id)
        assert found is not None
        events = await self.events(accepted.tenant_id)
        return TaskRun(outcome, [e for e in events if e.task_id == accepted.task_id], Decimal(str(found["cost_usd"])))

    async def events(self, tenant: str = TENANT) -> list[AgentEvent]:
        """The tenant's whole log. Raises `AssertionError` if an entry cannot be read."""
        events, unreadable = readable(tenant, await self.hw.bus(tenant).read(limit=1_000_000))
        assert not unreadable, unreadable
        return events

    def bill(self) -> list[dict[str, Any]]:
        """What the provider billed so far: an entry per answered request."""
        return list(self._bill.entries)


class TeamRunner:
    """The fixture `headwater`: `run_task` runs one task on real servers and returns when it has ended."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints

    def run_task(self, team: Team, text: str, *, answers: Any = (), faults: Any = (), **fields: Any) -> TaskRun:
        """Run one task of `team`. `fields` as in a task file, such as `type`, `data` or `tenant`."""

        async def run() -> TaskRun:
            async with running(team, self.endpoints, answers=answers, faults=faults) as harness:
                return await harness.run_task(text, **fields)

        return self.run(run())

    @staticmethod
    def run(work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of a test that needs more than one task; see `headwater.testing.running`."""
        return asyncio.run(work)


@contextlib.asynccontextmanager
async def running(
    team: Team,
    endpoints: Endpoints,
    *,
    answers: Answers = (),
    faults: Sequence[FaultRule] = (),
    prices: Path | None = None,
    seed: int = 0,
    **settings: Any,
) -> AsyncIterator[Harness]:
    """Run `team` on an empty log and an empty database at `endpoints`, with everything in this process.

    The log on that Redis is flushed first: never point this at one that holds anything.
    `settings` are fields of `headwater.Settings`, such as `lease_ms`.
    """
    rules = [rule if isinstance(rule, AnswerRule) else AnswerRule.model_validate(rule) for rule in answers]
    config = SimulatorConfig(seed=seed, answers=rules, faults=list(faults), prices=load_prices(prices))
    async with contextlib.AsyncExitStack() as stack:
        app = create_simulator(config)
        url = await stack.enter_async_context(_serving(app))
        database_url = await create_database(endpoints.database_url)
        stack.push_async_callback(drop_database, endpoints.database_url, database_url)
        own = Endpoints(endpoints.redis_url, database_url)
        given = _settings(own, url, prices) | settings
        options = Settings(**given)
        await _flush(own.redis_url, options.shards)
        hw = await stack.enter_async_context(Headwater(options, own))
        await migrate(hw.pool)
        provider = LitellmProvider(options.llm_base_url, options.llm_api_key)
        await provider.warm_up()
        stack.push_async_callback(provider.aclose)
        broker = _broker(own, hw, team, options, make_llm(options, provider))
        await broker.start()
        stack.push_async_callback(broker.stop)
        yield Harness(hw, options, own, url, app[BILL])


def _settings(endpoints: Endpoints, provider_url: str, prices: Path | None) -> dict[str, Any]:
    return {
        "redis_url": endpoints.redis_url,
        "database_url": endpoints.database_url,
        "shards": 4,
        "lease_ms": 5_000,
        "llm_base_url": f"{provider_url}/v1",
        "llm_api_key": "simulator",
        "fast_models": ("openai/sim-fast",),
        "reasoning_models": ("openai/sim-reasoning",),
        "llm_retry_ms": 5,
        "prices": prices or SIMULATOR_PRICES,
    }


def _broker(endpoints: Endpoints, hw: Headwater, team: Team, settings: Settings, llm: LlmService) -> RedisBroker:
    broker = make_broker(endpoints.redis_url, hw.streams)
    add_decider(broker, hw.streams, team, settings)
    recall = make_recall(settings, hw.streams, hw.pool)
    add_runner(broker, hw.streams, team, llm, settings, worker_name(), recall=recall)
    add_projector(broker, hw.streams, Runner(hw.pool, hw.streams.log), settings)
    return broker


async def _flush(redis_url: str, shards: int) -> None:
    streams = await open_streams(redis_url, shards=shards)
    await streams.redis.flushall()
    await streams.close()


@contextlib.asynccontextmanager
async def _serving(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
