"""`context.llm.stream` on a real log, against the simulator over HTTP: read to the end, left, cut off, cancelled."""

from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import pytest

from handlers.context import TaskContext
from handlers.llm import LlmService, LlmStream
from headwater.simulator import AnswerRule, FaultRule, SimulatorConfig, SimulatorProcess
from schemas.bodies import AgentCompleted, AgentFailed
from schemas.errors import InvalidInputError, ProviderError
from schemas.task import Task
from streams.connection import Streams
from tests.agent_runs import CrashError, OrderedCall, llm_service, order
from tests.processes import until

WORDS = "One two three four five six seven eight."
LONG = AnswerRule(user="at length", answer=" ".join(["word"] * 300))
ANSWERS = [AnswerRule(user="count", answer=WORDS), AnswerRule(user="short", answer="Yes."), LONG]

pytestmark = [
    # Pydantic's remarks about LiteLLM's own types, made while it reads a stream.
    pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def shared() -> Iterator[SimulatorProcess]:
    """Answers of known length."""
    with SimulatorProcess(SimulatorConfig(answers=ANSWERS)) as process:
        yield process


@pytest.fixture
def simulator(shared: SimulatorProcess) -> SimulatorProcess:
    """The shared simulator without faults."""
    shared.set_faults([])
    return shared


@pytest.fixture
async def service(simulator: SimulatorProcess) -> AsyncIterator[LlmService]:
    """The LLM service over that simulator."""
    async with llm_service(simulator, timeout_s=5.0) as opened:
        yield opened


async def read_all(task: Task, context: TaskContext) -> dict[str, Any]:
    async with context.llm.stream(task.text, system="You count.") as stream:
        pieces = [piece async for piece in stream]
    answer = stream.completion
    assert answer.text == stream.text == "".join(pieces)
    return {"pieces": pieces, "cost_usd": str(answer.cost_usd), "finish_reason": answer.finish_reason}


async def leave_after_three(task: Task, context: TaskContext) -> tuple[list[str], LlmStream]:
    pieces = []
    async with context.llm.stream(task.text) as stream:
        async for piece in stream:
            pieces.append(piece)
            if len(pieces) == 3:
                break
    with pytest.raises(ProviderError, match="left"):
        await anext(stream)
    return pieces, stream


async def billed(simulator: SimulatorProcess, call: OrderedCall) -> list[dict[str, Any]]:
    """The bill's entries for the attempts of this call."""
    ids = {event.id for event in await call.events()}
    return [entry for entry in simulator.bill()["entries"] if entry["attempt_id"] in ids]


async def test_a_stream_read_to_its_end(streams: Streams, service: LlmService, simulator: SimulatorProcess) -> None:
    simulator.set_faults([FaultRule(slow_body_ms=80)])
    call = await order(streams, service, text="count")
    ended = await call.run(read_all)
    assert isinstance(ended, AgentCompleted)
    assert ended.result["pieces"] == ["One", *(f" {word}" for word in WORDS.split()[1:])]
    assert ended.result["finish_reason"] == "stop"
    (attempt,) = await call.attempts()
    assert attempt.status == "ok"
    assert attempt.response == {"text": WORDS, "finish_reason": "stop"}
    assert attempt.first_token_at is not None
    assert attempt.started_at < attempt.first_token_at < attempt.ended_at
    assert attempt.reported_cost_usd is None
    (entry,) = await billed(simulator, call)
    assert entry["response_id"] == attempt.provider_response_id
    assert Decimal(entry["usd"]) == Decimal(attempt.cost_usd or "NaN") == Decimal(ended.result["cost_usd"])
    assert attempt.tokens is not None
    assert attempt.tokens.total == entry["prompt_tokens"] + entry["completion_tokens"]


async def test_a_recorded_stream_is_replayed_and_paid_once(
    streams: Streams, service: LlmService, simulator: SimulatorProcess
) -> None:
    given: list[dict[str, Any]] = []

    async def crash(task: Task, context: TaskContext) -> None:
        given.append(await read_all(task, context))
        raise CrashError

    call = await order(streams, service, text="count")
    for _ in range(2):
        with pytest.raises(CrashError):
            await call.run(crash)
        await call.end_lease()
    assert given[1] == given[0] | {"pieces": [WORDS]}
    assert len(await call.attempts()) == len(await billed(simulator, call)) == 1


async def test_a_stream_that_its_agent_leaves(
    streams: Streams, service: LlmService, simulator: SimulatorProcess
) -> None:
    simulator.set_faults([FaultRule(slow_body_ms=60_000)])
    given: list[list[str]] = []

    async def closed() -> bool:
        return not simulator.stats()["in_flight"]

    async def crash(task: Task, context: TaskContext) -> None:
        pieces, stream = await leave_after_three(task, context)
        given.append(pieces)
        # At once: long before the answer is over, and not only when nobody refers to the stream any more.
        await until(closed, "the simulator noticed that the connection was closed", deadline_s=30)
        assert stream.text == "".join(pieces)
        raise CrashError

    call = await order(streams, service, text="at length")
    for _ in range(2):
        with pytest.raises(CrashError):
            await call.run(crash)
        await call.end_lease()
    # The agent that is run again leaves at the same piece: it may have counted them.
    assert given == [["word", " word", " word"]] * 2
    (attempt,) = await call.attempts()
    assert (attempt.status, attempt.cost_status, attempt.cost_usd) == ("cancelled", "unknown", None)
    assert attempt.response["text"] == "word word word"
    assert attempt.first_token_at is not None
    assert len(await billed(simulator, call)) == 1


async def test_an_agent_that_raises_while_it_reads(streams: Streams, service: LlmService) -> None:
    async def fail(task: Task, context: TaskContext) -> None:
        async with context.llm.stream(task.text) as stream:
            async for _ in stream:
                raise ValueError("I do not like its tone")

    call = await order(streams, service, text="count")
    ended = await call.run(fail)
    assert isinstance(ended, AgentFailed)
    assert (ended.error_class, ended.error) == ("ValueError", "I do not like its tone")
    (attempt,) = await call.attempts()
    assert (attempt.status, attempt.cost_status, attempt.response["text"]) == ("cancelled", "unknown", "One")
    assert "I do not like its tone" in (attempt.error or "")


@pytest.mark.parametrize("kind", ["rate_drop_billed", "rate_malformed"])
async def test_a_stream_that_breaks_off_is_not_retried(
    streams: Streams, service: LlmService, simulator: SimulatorProcess, kind: str
) -> None:
    simulator.set_faults([FaultRule.model_validate({kind: 1})])
    call = await order(streams, service, text="count")
    ended = await call.run(read_all)
    assert isinstance(ended, AgentFailed)
    assert ended.error_class == ProviderError.__name__
    assert "openai/sim-fast broke off after 18 characters" in ended.error
    (attempt,) = await call.attempts()
    assert (attempt.status, attempt.cost_status, attempt.tokens) == ("unknown", "unknown", None)
    assert attempt.response == {"text": "One two three four", "finish_reason": None}
    assert len(await billed(simulator, call)) == 1


async def test_what_fails_before_the_first_piece_is_retried(
    streams: Streams, service: LlmService, simulator: SimulatorProcess
) -> None:
    simulator.set_faults([FaultRule(fail_first=1)])
    call = await order(streams, service, text="count")
    assert isinstance(await call.run(read_all), AgentCompleted)
    assert [(a.attempt, a.status, a.cost_status) for a in await call.attempts()] == [
        (1, "error", "not_billed"),
        (2, "ok", "priced"),
    ]


async def test_a_stream_that_ends_before_its_first_piece_is_retried_with_the_next_model(
    streams: Streams, service: LlmService, simulator: SimulatorProcess
) -> None:
    # Of one word, the simulator sends nothing before it cuts the connection.
    simulator.set_faults([FaultRule(model="sim-fast", rate_drop_billed=1)])
    call = await order(streams, service, text="short")
    ended = await call.run(read_all)
    assert isinstance(ended, AgentCompleted)
    assert ended.result["pieces"] == ["Yes."]
    attempts = await call.attempts()
    assert [(a.requested_model, a.status) for a in attempts] == [
        *[("openai/sim-fast", "unknown")] * 3,
        ("openai/sim-second", "ok"),
    ]
    assert attempts[-1].cost_status == "unpriced"
    assert len(await billed(simulator, call)) == 4


async def test_a_silent_stream_times_out(streams: Streams, simulator: SimulatorProcess) -> None:
    simulator.set_faults([FaultRule(slow_body_ms=60_000)])
    async with llm_service(simulator, timeout_s=0.2, attempts_per_model=1) as service:
        call = await order(streams, service, text="count")
        ended = await call.run(read_all)
    assert isinstance(ended, AgentFailed)
    assert [(a.status, a.error_class) for a in await call.attempts()] == [("unknown", "Timeout")] * 2


async def test_a_stream_has_to_be_opened_and_read(streams: Streams, service: LlmService) -> None:
    async def misuse(task: Task, context: TaskContext) -> None:
        stream = context.llm.stream(task.text)
        with pytest.raises(InvalidInputError, match="async with"):
            await anext(stream)
        async with stream:
            assert await anext(stream) == "One"
            with pytest.raises(InvalidInputError, match="read to its end"):
                _ = stream.completion

    call = await order(streams, service, text="count")
    assert isinstance(await call.run(misuse), AgentCompleted)
