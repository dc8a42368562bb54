"""What happens to a request in flight when its task, its lease, its process or its patience ends."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from handlers.context import TaskContext
from handlers.llm import LlmService
from headwater import AgentRegistration, BaseAgent, HybridRouter, Team
from headwater.embedded import Endpoints
from headwater.simulator import AnswerRule, FaultRule, SimulatorConfig, SimulatorProcess
from headwater.testing import running
from schemas.bodies import AgentCancelled, AgentCompleted, EventBody, LlmAttempted
from schemas.errors import StaleLeaseError
from schemas.task import Task
from streams.connection import Streams
from tests.agent_runs import LEASE_MS, AgentFunction, CrashError, OrderedCall, llm_service, order
from tests.processes import until

DEADLINE_S = 20.0
Running = asyncio.Task[EventBody]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def shared() -> Iterator[SimulatorProcess]:
    """Answers that take a while."""
    with SimulatorProcess(SimulatorConfig(answers=[AnswerRule(user="count", answer="One two three four")])) as process:
        yield process


@pytest.fixture
def simulator(shared: SimulatorProcess) -> SimulatorProcess:
    """The shared simulator, which takes a minute for an answer."""
    shared.set_faults([FaultRule(latency_ms=60_000)])
    return shared


@pytest.fixture
async def service(simulator: SimulatorProcess) -> AsyncIterator[LlmService]:
    """The LLM service over that simulator."""
    async with llm_service(simulator, timeout_s=60.0) as opened:
        yield opened


async def ask(task: Task, context: TaskContext) -> str:
    return (await context.llm.complete(task.text)).text


async def run_until_in_flight(call: OrderedCall, agent: AgentFunction, simulator: SimulatorProcess) -> Running:
    def arrived() -> int:
        # The simulator goes on with requests that earlier tests gave up.
        return sum(simulator.stats()["in_flight"].values())

    before = arrived()
    running = asyncio.create_task(call.run(agent))
    await until(lambda: _is(arrived() > before), "the request arrived")
    return running


async def _is(value: bool) -> bool:
    return value


async def test_a_request_of_a_cancelled_task_is_recorded(
    streams: Streams, service: LlmService, simulator: SimulatorProcess
) -> None:
    call = await order(streams, service)
    running = await run_until_in_flight(call, ask, simulator)
    await call.cancel()
    running.cancel()
    assert isinstance(await running, AgentCancelled)
    (attempt,) = await call.attempts()
    assert (attempt.status, attempt.cost_status, attempt.error_class) == ("cancelled", "unknown", "Cancelled")
    assert attempt.duration_us > 0
    assert [e.type for e in await call.events()][-2:] == ["llm.attempted", "agent.cancelled"]


async def test_it_is_recorded_even_if_the_cancellation_is_repeated(
    streams: Streams, service: LlmService, simulator: SimulatorProcess
) -> None:
    async def ask_under_fire(task: Task, context: TaskContext) -> None:
        current = asyncio.current_task()
        assert current is not None
        try:
            await ask(task, context)
        finally:
            assert [e.status for e in await call.attempts()] == ["cancelled"]

    call = await order(streams, service)
    running = await run_until_in_flight(call, ask_under_fire, simulator)
    await call.cancel()
    running.cancel()
    for _ in range(3):
        # The task is in the middle of recording.
        await asyncio.sleep(0)
        running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert [(e.status, e.cost_status) for e in await call.attempts()] == [("cancelled", "unknown")]


async def test_what_arrived_of_a_cancelled_stream_is_recorded(
    streams: Streams, service: LlmService, simulator: SimulatorProcess
) -> None:
    simulator.set_faults([FaultRule(slow_body_ms=4_000)])
    begun = asyncio.Event()

    async def read(task: Task, context: TaskContext) -> None:
        async with context.llm.stream("count") as stream:
            async for _ in stream:
                begun.set()

    call = await order(streams, service)
    running = await run_until_in_flight(call, read, simulator)
    async with asyncio.timeout(DEADLINE_S):
        await begun.wait()
    await call.cancel()
    running.cancel()
    assert isinstance(await running, AgentCancelled)
    (attempt,) = await call.attempts()
    assert (attempt.status, attempt.cost_status) == ("cancelled", "unknown")
    assert attempt.response["text"].startswith("One")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("cause", ["lost lease", "end of the process"])
async def test_a_lost_lease_or_the_end_of_the_process_records_nothing(
    streams: Streams, service: LlmService, simulator: SimulatorProcess, streaming: bool, cause: str
) -> None:
    async def read(task: Task, context: TaskContext) -> None:
        async with context.llm.stream(task.text) as stream:
            await anext(stream)

    call = await order(streams, service)
    running = await run_until_in_flight(call, read if streaming else ask, simulator)
    if cause == "lost lease":
        await call.end_lease()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not await call.attempts()
    if cause != "lost lease":
        await call.end_lease()
    # The next worker lists what may have been billed, once.
    simulator.set_faults([])
    assert isinstance(await call.run(read if streaming else ask), AgentCompleted)
    lost, *others = await call.attempts()
    assert (lost.status, lost.error_class, lost.delivery) == ("unknown", "WorkerLost", 1)
    assert len(others) == 1


async def test_a_request_that_its_agent_gives_up_is_recorded_with_the_next_fact(
    streams: Streams, service: LlmService, simulator: SimulatorProcess
) -> None:
    async def impatient(task: Task, context: TaskContext) -> Any:
        try:
            async with asyncio.timeout(0.3):
                return await ask(task, context)
        except TimeoutError:
            return await context.step("fallback", lambda: "took too long")

    call = await order(streams, service)
    ended = await call.run(impatient)
    assert isinstance(ended, AgentCompleted)
    assert ended.result == "took too long"
    (attempt,) = await call.attempts()
    assert (attempt.status, attempt.cost_status) == ("cancelled", "unknown")
    assert attempt.error == "the agent cancelled the request"
    types = [event.type for event in await call.events()]
    assert types[-3:] == ["llm.attempted", "step.recorded", "agent.completed"]


async def test_an_answer_that_is_being_recorded_is_recorded_although_the_agent_is_cancelled(
    streams: Streams, service: LlmService, simulator: SimulatorProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator.set_faults([])
    record = streams.functions.record
    writing = asyncio.Event()

    async def slow_record(*args: Any, **kwargs: Any) -> str:
        if not writing.is_set() and "started" not in kwargs["key"]:
            writing.set()
            await asyncio.Event().wait()
        return await record(*args, **kwargs)

    monkeypatch.setattr(streams.functions, "record", slow_record)
    call = await order(streams, service)
    running = asyncio.create_task(call.run(ask))
    async with asyncio.timeout(DEADLINE_S):
        await writing.wait()
    await call.cancel()
    running.cancel()
    assert isinstance(await running, AgentCancelled)
    assert [e.type for e in await call.events()][-2:] == ["llm.attempted", "agent.cancelled"]
    assert [a.status for a in await call.attempts()] == ["ok"]


async def test_a_worker_whose_lease_may_be_over_sends_nothing(
    streams: Streams, service: LlmService, simulator: SimulatorProcess
) -> None:
    simulator.set_faults([])

    async def ask_twice(task: Task, context: TaskContext) -> None:
        await ask(task, context)
        assert call.taken is not None
        assert not call.taken.delivery.lease_over()
        # As after a pause that is longer than the lease.
        call.taken.delivery.lease_ends_at -= LEASE_MS / 1000
        await context.llm.complete("and then?")

    call = await order(streams, service)
    requests = simulator.bill()["requests"]
    with pytest.raises(StaleLeaseError, match="nothing was sent"):
        await call.run(ask_twice)
    assert simulator.bill()["requests"] == requests + 1
    assert [attempt.status for attempt in await call.attempts()] == ["ok"]


async def test_renewing_and_recording_move_the_end_of_the_lease(streams: Streams, service: LlmService) -> None:
    call = await order(streams, service)
    delivery = (await call.take()).delivery
    begin = time.monotonic()
    assert begin < delivery.lease_ends_at <= begin + LEASE_MS / 1000
    await streams.functions.renew([delivery], lease_ms=2 * LEASE_MS)
    assert begin + LEASE_MS / 1000 < delivery.lease_ends_at
    await call.end_lease()
    assert await streams.functions.renew([delivery], lease_ms=LEASE_MS) == [False]
    assert delivery.lease_over()


@pytest.mark.parametrize("answers", [0, 1, 2])
@pytest.mark.parametrize("fails", [0, 1])
async def test_what_a_dead_worker_had_in_flight_is_listed_although_the_call_is_not_run_again(
    streams: Streams,
    service: LlmService,
    simulator: SimulatorProcess,
    monkeypatch: pytest.MonkeyPatch,
    answers: int,
    fails: int,
) -> None:
    simulator.set_faults([FaultRule(model="fast", fail_first=fails)])
    record = streams.functions.record
    budget = iter(range(answers * (1 + fails) + fails))

    async def die_at_last(*args: Any, **kwargs: Any) -> str:
        # The worker dies when the answer is there and paid for, and before it is recorded.
        if "started" not in kwargs["key"] and next(budget, None) is None:
            raise CrashError
        return await record(*args, **kwargs)

    async def ask_thrice(task: Task, context: TaskContext) -> None:
        for n in range(3):
            await context.llm.complete(f"{task.text} {n}")

    monkeypatch.setattr(streams.functions, "record", die_at_last)
    call = await order(streams, service, text=f"{answers} {fails}")
    billed = simulator.bill()["requests"]
    with pytest.raises(CrashError):
        await call.run(ask_thrice)
    monkeypatch.setattr(streams.functions, "record", record)
    await call.end_lease()
    taken = await call.take()
    await call.cancel()
    assert isinstance(await call.run_taken(taken, ask_thrice), AgentCancelled)
    bill = simulator.bill()["entries"][billed:]
    assert len(bill) == answers + 1
    ids = [event.id for event in await call.events() if event.type == "llm.attempted"]
    assert {entry["attempt_id"] for entry in bill} <= set(ids)
    *_, lost = await call.attempts()
    assert (lost.status, lost.error_class, lost.cost_status) == ("unknown", "WorkerLost", "unknown")
    assert bill[-1]["attempt_id"] == ids[-1]


async def test_a_task_that_is_cancelled_while_its_agent_reads_a_stream(endpoints: Endpoints) -> None:
    begun = asyncio.Event()

    class Reader(BaseAgent):
        registration = AgentRegistration(agent_id="reader", name="Reader", description="reads")

        async def execute(self, task: Task, context: TaskContext) -> str:
            async with context.llm.stream(task.text) as stream:
                async for _ in stream:
                    begun.set()
            return stream.text

    team = Team(agents=[Reader()], router=HybridRouter(rules=[lambda task: "reader"]))
    async with running(team, endpoints, faults=[FaultRule(slow_body_ms=60_000)], lease_ms=600) as hw:
        accepted = await hw.submit("one, two")
        async with asyncio.timeout(DEADLINE_S):
            await begun.wait()
        await hw.hw.bus(accepted.tenant_id).cancel(accepted.task_id, accepted.session_id)
        run = await hw.finished(accepted)
        assert run.outcome.status == "cancelled"

        async def stopped() -> bool:
            return [e.type for e in await hw.events()][-1] == "agent.cancelled"

        await until(stopped, "the agent was stopped")
        (attempt,) = [e for e in await hw.events() if isinstance(e.body, LlmAttempted)]
        (entry,) = hw.bill()
        assert entry["attempt_id"] == attempt.id
    body = attempt.body
    assert isinstance(body, LlmAttempted)
    assert (body.status, body.cost_status, body.delivery) == ("cancelled", "unknown", 1)
    assert body.response["text"]
