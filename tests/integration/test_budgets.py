"""What a budget holds back, on a real log, against the simulator over HTTP: said once, to its own tenant."""

from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import pytest

from handlers.context import TaskContext
from handlers.llm import LlmService
from headwater.simulator import SimulatorConfig, SimulatorProcess
from schemas.bodies import AgentCompleted, BudgetExceeded
from schemas.errors import BudgetExceededError
from schemas.task import Task
from streams.budgets import spent_usd
from streams.connection import Streams
from tests.agent_runs import CrashError, OrderedCall, llm_service, order

BUDGET = "0.000000000001"


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    """A simulator that makes its answers up."""
    with SimulatorProcess(SimulatorConfig()) as process:
        yield process


@pytest.fixture
async def service(simulator: SimulatorProcess) -> AsyncIterator[LlmService]:
    """The LLM service over that simulator."""
    async with llm_service(simulator) as opened:
        yield opened


async def open_call(streams: Streams, service: LlmService, **more: Any) -> OrderedCall:
    """A call whose task is open, as far as Redis is concerned."""
    call = await order(streams, service, **more)
    state = streams.keys.spent(call.call.tenant_id).removesuffix("spent") + "state"
    await streams.redis.hset(state, call.call.task_id, "{}")
    return call


async def refusals(call: OrderedCall) -> list[BudgetExceeded]:
    return [event.body for event in await call.events() if isinstance(event.body, BudgetExceeded)]


async def ask_twice(task: Task, context: TaskContext) -> str:
    await context.llm.complete("one")
    try:
        await context.llm.complete("two")
    except BudgetExceededError:
        return "held back"
    return "answered"


async def test_a_request_is_held_back_in_one_fact_however_often_its_call_is_delivered(
    streams: Streams, service: LlmService
) -> None:
    async def ask_and_die(task: Task, context: TaskContext) -> str:
        assert await ask_twice(task, context) == "held back"
        raise CrashError

    call = await open_call(streams, service, budget_usd=BUDGET)
    for _ in range(2):
        with pytest.raises(CrashError):
            await call.run(ask_and_die)
        await call.end_lease()
    ended = await call.run(ask_twice)
    assert isinstance(ended, AgentCompleted)
    assert ended.result == "held back"
    # Of a worker that died it is not known what it had sent last; those attempts are listed as unknown.
    (attempt,) = [attempt for attempt in await call.attempts() if attempt.status != "unknown"]
    (refusal,) = await refusals(call)
    assert (refusal.ordinal, refusal.delivery, refusal.because) == (1, 1, "spent")
    assert (refusal.budget_usd, refusal.spent_usd) == (BUDGET, attempt.cost_usd)
    assert await spent_usd(streams, "acme", call.call.task_id) == Decimal(attempt.cost_usd or 0) > Decimal(BUDGET)
    started = [event for event in await call.events() if event.type == "agent.started"]
    assert len(started) == 3, "what travels with a fact is not lost when the fact is there already"
    other = await open_call(streams, service, tenant="globex")
    answered = await other.run(ask_twice)
    assert isinstance(answered, AgentCompleted)
    assert answered.result == "answered", "another tenant's budget is none of its business"
    assert await refusals(other) == []


async def test_a_model_without_a_price_is_held_back_before_anything_is_sent(
    streams: Streams, service: LlmService
) -> None:
    async def ask(task: Task, context: TaskContext) -> str:
        return (await context.llm.complete("one")).text

    models = {"fast": ("openai/unheard-of",)}
    call = await open_call(streams, service, budget_usd="1", models=models)
    ended = await call.run(ask)
    assert ended.type == "agent.failed"
    assert await call.attempts() == []
    (refusal,) = await refusals(call)
    assert (refusal.because, refusal.requested_model, refusal.spent_usd) == ("unpriced", "openai/unheard-of", "0")
