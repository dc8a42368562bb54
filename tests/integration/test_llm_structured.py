"""`context.llm.complete(response_model=…)` on a real log, against the simulator over HTTP."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from pydantic import BaseModel, Field

from handlers.context import TaskContext
from handlers.llm import LlmService
from headwater.simulator import AnswerRule, SimulatorConfig, SimulatorProcess
from schemas.bodies import AgentCompleted, AgentFailed
from schemas.errors import StructuredOutputError
from schemas.task import Task
from streams.connection import Streams
from tests.agent_runs import CrashError, llm_service, order

REPAIRED = {"agent_id": "writer", "confidence": 0.75}
ANSWERS = [
    AnswerRule(user="cannot be used.*no agent 'nobody'", json=REPAIRED),
    AnswerRule(user="cannot be used.*confidence", answer=f"```json\n{REPAIRED}\n```".replace("'", '"')),
    AnswerRule(user="cannot be used", answer="I still will not."),
    AnswerRule(user="good", json=REPAIRED | {"confidence": 0.25}),
    AnswerRule(user="unknown agent", json={"agent_id": "nobody", "confidence": 1}),
    AnswerRule(user="too sure", json={"agent_id": "writer", "confidence": 7}),
    AnswerRule(user="prose", answer="I would rather not."),
]


class Choice(BaseModel):
    """Who does it."""

    agent_id: str
    confidence: float = Field(ge=0, le=1)


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    """Answers that are good, bad and repaired."""
    with SimulatorProcess(SimulatorConfig(answers=ANSWERS)) as process:
        yield process


@pytest.fixture
async def service(simulator: SimulatorProcess) -> AsyncIterator[LlmService]:
    """The LLM service over that simulator."""
    async with llm_service(simulator) as opened:
        yield opened


def registered(choice: Choice) -> str | None:
    return None if choice.agent_id == "writer" else f"there is no agent {choice.agent_id!r}"


async def choose(task: Task, context: TaskContext) -> dict[str, Any]:
    answer = await context.llm.complete(task.text, system="You route.", response_model=Choice, check=registered)
    assert isinstance(answer.parsed, Choice)
    return answer.parsed.model_dump()


async def test_a_good_answer_takes_one_request(streams: Streams, service: LlmService) -> None:
    call = await order(streams, service, text="good")
    ended = await call.run(choose)
    assert isinstance(ended, AgentCompleted)
    assert ended.result == {"agent_id": "writer", "confidence": 0.25}
    (attempt,) = await call.attempts()
    assert attempt.params["response_format"]["json_schema"]["schema"] == Choice.model_json_schema()
    system, user = attempt.request["messages"]
    assert system["role"] == "system"
    assert system["content"].startswith("You route.\n\n")
    assert '"confidence"' in system["content"]
    assert user == {"role": "user", "content": "good"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [("too sure", "confidence: Input should be less than or equal to 1"), ("unknown agent", "no agent 'nobody'")],
)
async def test_a_bad_answer_is_repaired_once(streams: Streams, service: LlmService, text: str, problem: str) -> None:
    call = await order(streams, service, text=text)
    ended = await call.run(choose)
    assert isinstance(ended, AgentCompleted)
    assert ended.result == REPAIRED
    first, second = await call.attempts()
    # Both are paid for, under ordinals of their own.
    assert [(a.ordinal, a.attempt, a.status, a.cost_status) for a in (first, second)] == [
        (0, 1, "ok", "priced"),
        (1, 1, "ok", "priced"),
    ]
    *before, answer, asked = second.request["messages"]
    assert before == first.request["messages"]
    assert answer == {"role": "assistant", "content": first.response["text"]}
    assert asked["role"] == "user"
    assert problem in asked["content"]


async def test_an_answer_that_is_not_repaired_is_an_error_that_says_why(streams: Streams, service: LlmService) -> None:
    call = await order(streams, service, text="prose")
    ended = await call.run(choose)
    assert isinstance(ended, AgentFailed)
    assert ended.error_class == StructuredOutputError.__name__
    assert "no usable Choice" in ended.error
    assert "the answer is not JSON" in ended.error
    assert "I still will not." in ended.error
    assert [a.status for a in await call.attempts()] == ["ok", "ok"]


async def test_a_model_that_takes_no_schema_is_told_in_words(streams: Streams, service: LlmService) -> None:
    async def on_reasoning(task: Task, context: TaskContext) -> float:
        answer = await context.llm.complete(task.text, tier="reasoning", response_model=Choice)
        return answer.parsed.confidence

    call = await order(streams, service, text="good")
    ended = await call.run(on_reasoning)
    assert isinstance(ended, AgentCompleted)
    assert ended.result == 0.25
    (attempt,) = await call.attempts()
    assert "response_format" not in attempt.params
    assert '"confidence"' in attempt.request["messages"][0]["content"]


async def test_after_a_crash_the_recorded_answers_are_read_again(
    streams: Streams, service: LlmService, simulator: SimulatorProcess
) -> None:
    async def crash(task: Task, context: TaskContext) -> None:
        await choose(task, context)
        raise CrashError

    call = await order(streams, service, text="too sure")
    billed = simulator.bill()["requests"]
    with pytest.raises(CrashError):
        await call.run(crash)
    await call.end_lease()
    ended = await call.run(choose)
    assert isinstance(ended, AgentCompleted)
    assert ended.result == REPAIRED
    assert ended.delivery == 2
    assert simulator.bill()["requests"] == billed + 2
    assert len(await call.attempts()) == 2
