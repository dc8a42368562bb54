"""Whatever an agent returns or raises, its task ends at the first run, says why, and the others go on (I1)."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from handlers.strictness import StrictnessConfig
from headwater import AgentRegistration, BaseAgent, HybridRouter, Task, TaskContext, Team
from headwater.embedded import Endpoints
from headwater.runtime import add_decider, add_runner, make_broker, make_llm
from headwater.settings import Settings
from schemas.bodies import AgentFailed, HandoffRejected
from schemas.content import MAX_CONTENT_BYTES
from schemas.event import AgentEvent
from schemas.task import NewTask
from streams.bus import TenantEventBus
from streams.connection import Streams
from streams.log import readable
from streams.outcomes import Outcomes

DEADLINE_S = 40
TOO_LARGE = "x" * (MAX_CONTENT_BYTES + 1)
NOT_UTF8 = chr(0xDCFF)
"""How a byte that is not UTF-8 arrives in Python, such as from a file's name."""


class UnprintableError(Exception):
    """Fails even when it is asked what is wrong."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def give(result: Any) -> Callable[[TaskContext], Any]:
    return lambda context: result


def throw(error: BaseException) -> Callable[[TaskContext], Any]:
    def act(context: TaskContext) -> Any:
        raise error

    return act


def hand(
    target: str = "good", payload_type: str = "memo", content: Any = 1, **more: Any
) -> Callable[[TaskContext], Any]:
    return lambda context: context.hand_over(target, payload_type=payload_type, content=content, **more)


FAILING: dict[str, tuple[Callable[[TaskContext], Any], str]] = {
    "an object": (give(object()), "InvalidInputError"),
    "a lone surrogate": (give({"text": "\ud800"}), "InvalidInputError"),
    "too large a result": (give(TOO_LARGE), "over the limit"),
    "too large a handoff": (hand(content=TOO_LARGE), "over the limit"),
    "an unreadable reason": (hand(reason=NOT_UTF8), "InvalidInputError"),
    "an unreadable payload type": (hand(payload_type="\ud800"), "InvalidInputError"),
    "an unreadable target": (hand(target=NOT_UTF8), "InvalidInputError"),
    "a confidence in words": (hand(confidence="very"), "ValidationError"),
    "an error that is not UTF-8": (throw(ValueError(f"no file {NOT_UTF8}")), "no file"),
    "an error without words": (throw(UnprintableError()), "UnprintableError"),
    "a long error": (throw(ValueError("long " * 100_000)), "long long"),
    "an exit": (throw(SystemExit(3)), "SystemExit"),
    "a cancellation of its own": (throw(asyncio.CancelledError()), "CancelledError"),
    "a group of errors": (throw(ExceptionGroup("two", [ValueError("a"), ValueError("b")])), "two"),
    "a group of other errors": (throw(BaseExceptionGroup("two", [SystemExit(1)])), "two"),
    "a stop": (throw(StopIteration()), "Stop"),
}
FINE: dict[str, tuple[Callable[[TaskContext], Any], Any]] = {
    "nothing": (give(None), None),
    "a set": (give({1}), [1]),
    "no number": (give({"n": float("nan")}), {"n": None}),
    "odd text": (give("\u0000\u2028\N{GRINNING FACE}"), "\u0000\u2028\N{GRINNING FACE}"),
    "a look-alike": (give({"$blob": "0" * 64, "bytes": 3}), {"$blob": "0" * 64, "bytes": 3}),
    "a large result": (give("x" * 1_000_000), "x" * 1_000_000),
}
REJECTED: dict[str, tuple[Callable[[TaskContext], Any], str]] = {
    "no confidence at all": (hand(confidence=float("nan")), "confidence"),
    "endless confidence": (hand(confidence=float("inf")), "confidence"),
    "to itself": (hand(target="bad"), "cycle"),
    "to nobody": (hand(target=""), "target_agent_id"),
    "to a stranger": (hand(target="s p a c e"), "target_agent_id"),
}
ALL = FAILING | FINE | REJECTED


class Bad(BaseAgent):
    """Does what the task is called."""

    registration = AgentRegistration(agent_id="bad", name="Bad", description="misbehaves", max_concurrent_tasks=50)

    async def execute(self, task: Task, context: TaskContext) -> Any:
        """No model is asked."""
        return ALL[task.text][0](context)


class Good(BaseAgent):
    """Answers."""

    registration = AgentRegistration(agent_id="good", name="Good", description="behaves")

    async def execute(self, task: Task, context: TaskContext) -> str:
        """No model is asked."""
        return "good"


team = Team(
    agents=[Bad(), Good()],
    router=HybridRouter([lambda task: "good" if task.text == "good" else "bad"]),
    strictness=StrictnessConfig(semantic=False),
)


@pytest.fixture
async def told(streams: Streams, endpoints: Endpoints, settings: Settings) -> dict[str, tuple[Any, list[AgentEvent]]]:
    """What each misbehaviour came to: the outcome, and the events of its task."""
    broker = make_broker(endpoints.redis_url, streams)
    add_decider(broker, streams, team, settings)
    add_runner(broker, streams, team, make_llm(settings), settings, "worker-1")
    outcomes = Outcomes(streams)
    await broker.start()
    try:
        async with asyncio.timeout(DEADLINE_S):
            bus = TenantEventBus(streams, "acme")
            found = await asyncio.gather(
                *(outcomes.submit_and_wait(bus, NewTask(tenant="acme", session="s", text=text)) for text in ALL)
            )
            other = TenantEventBus(streams, "globex")
            good = await outcomes.submit_and_wait(other, NewTask(tenant="globex", session="s", text="good"))
    finally:
        await outcomes.close()
        await broker.stop()
    assert good.result == "good"
    events, unreadable = readable("acme", await streams.log.read("acme", limit=10_000))
    assert not unreadable
    assert await streams.redis.xlen(streams.keys.parked("acme")) == 0
    return {
        text: (outcome, [event for event in events if event.task_id == outcome.task_id])
        for text, outcome in zip(ALL, found, strict=True)
    }


async def test_each_task_ends_at_the_first_run_and_says_why(told: dict[str, tuple[Any, list[AgentEvent]]]) -> None:
    wrong: dict[str, Any] = {}
    for text, (outcome, events) in told.items():
        assert sum(event.body.terminal for event in events) == 1
        failures = [event.body for event in events if isinstance(event.body, AgentFailed)]
        if text in FAILING:
            said = FAILING[text][1]
            fine = outcome.status == "failed" and said in outcome.error and [f.delivery for f in failures] == [1]
            fine = fine and len(outcome.error) < 5000 and outcome.error.replace("\n", " ").isprintable()
        elif text in FINE:
            fine = outcome.status == "completed" and outcome.result == FINE[text][1]
        else:
            reasons = [" ".join(e.body.reasons) for e in events if isinstance(e.body, HandoffRejected)]
            fine = outcome.status == "failed" and len(reasons) == 2 and REJECTED[text][1] in reasons[0]
        if not fine:
            wrong[text] = (outcome.status, (outcome.error or "")[:300], str(outcome.result)[:100], len(failures))
    assert not wrong
