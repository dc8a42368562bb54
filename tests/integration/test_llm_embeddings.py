"""`context.llm.embed` on a real log, against the simulator over HTTP."""

import json
import math
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from handlers.attempts import EMBEDDING
from handlers.context import TaskContext
from handlers.llm import LlmService
from headwater.simulator import FaultRule, SimulatorConfig, SimulatorProcess, load_prices
from schemas.bodies import AgentCompleted, AgentFailed
from schemas.task import Task
from streams.connection import Streams
from tests.agent_runs import CrashError, llm_service, order

TEXTS = ["the cat sat", "a cat sat down", "ünïcödé 語"]


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    """A simulator with its own prices."""
    with SimulatorProcess(SimulatorConfig()) as process:
        yield process


@pytest.fixture
async def service(simulator: SimulatorProcess) -> AsyncIterator[LlmService]:
    """The LLM service over that simulator."""
    simulator.set_faults([])
    async with llm_service(simulator) as opened:
        yield opened


async def embed(task: Task, context: TaskContext) -> list[list[float]]:
    return await context.llm.embed(TEXTS)


async def test_texts_become_vectors_that_are_recorded_and_priced(
    streams: Streams, service: LlmService, simulator: SimulatorProcess
) -> None:
    call = await order(streams, service)
    ended = await call.run(embed)
    assert isinstance(ended, AgentCompleted)
    cat, also, other = await streams.log.resolve("acme", ended.result)
    assert all(math.isclose(sum(x * x for x in vector), 1, rel_tol=1e-5) for vector in (cat, also, other))
    near, far = (sum(x * y for x, y in zip(cat, vector, strict=True)) for vector in (also, other))
    assert near > 0.4 > abs(far)
    (attempt,) = await call.attempts()
    assert (attempt.tier, attempt.status, attempt.requested_model) == (EMBEDDING, "ok", "openai/sim-embed")
    assert attempt.request == {"input": TEXTS}
    assert attempt.tokens is not None
    assert attempt.tokens.total == attempt.tokens.input_uncached > 0
    entry = simulator.bill()["entries"][-1]
    assert entry["attempt_id"] == (await call.events())[-2].id
    assert Decimal(entry["usd"]) == Decimal(attempt.cost_usd or "NaN") > 0


async def test_a_price_without_an_output_rate_prices_embeddings(streams: Streams, tmp_path: Path) -> None:
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps({"sim-embed": {"input_cost_per_token": "0.00000013"}, "sim-fast": {"mode": "chat"}}))
    config = SimulatorConfig(prices=load_prices(prices))
    with SimulatorProcess(config) as simulator:
        async with llm_service(simulator, prices=prices) as service:
            call = await order(streams, service)
            await call.run(embed)
        (attempt,) = await call.attempts()
        (entry,) = simulator.bill()["entries"]
    assert attempt.cost_status == "priced"
    assert Decimal(entry["usd"]) == Decimal(attempt.cost_usd or "NaN") > 0


async def test_after_a_crash_the_vectors_come_from_the_record(
    streams: Streams, service: LlmService, simulator: SimulatorProcess
) -> None:
    given: list[list[list[float]]] = []

    async def crash(task: Task, context: TaskContext) -> None:
        given.append(await embed(task, context))
        raise CrashError

    call = await order(streams, service)
    billed = simulator.bill()["requests"]
    with pytest.raises(CrashError):
        await call.run(crash)
    await call.end_lease()
    with pytest.raises(CrashError):
        await call.run(crash)
    assert given[0] == given[1]
    assert simulator.bill()["requests"] == billed + 1


async def test_many_texts_are_several_requests(streams: Streams, service: LlmService) -> None:
    async def many(task: Task, context: TaskContext) -> list[int]:
        vectors = await context.llm.embed([f"text {n}" for n in range(300)])
        return [len(vectors), *{len(vector) for vector in vectors}]

    call = await order(streams, service)
    ended = await call.run(many)
    assert isinstance(ended, AgentCompleted)
    assert ended.result == [300, 256]
    assert [attempt.ordinal for attempt in await call.attempts()] == [0, 1, 2]


async def test_failures_are_retried_and_recorded(
    streams: Streams, service: LlmService, simulator: SimulatorProcess
) -> None:
    simulator.set_faults([FaultRule(model="sim-embed", fail_first=1)])
    call = await order(streams, service)
    await call.run(embed)
    assert [(a.attempt, a.status, a.http_status) for a in await call.attempts()] == [(1, "error", 503), (2, "ok", 200)]


async def test_what_cannot_be_embedded_is_refused(streams: Streams, service: LlmService) -> None:
    async def empty(task: Task, context: TaskContext) -> None:
        await context.llm.embed(["x", " "])

    call = await order(streams, service)
    ended = await call.run(empty)
    assert isinstance(ended, AgentFailed)
    assert "an empty text has no embedding" in ended.error
    assert not await call.attempts()
