"""Recorded tasks by the thousand, decided by the real rules, for benchmarks of what reads logs again."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from examples.research_team.agents import team
from handlers.decider import decided_event
from handlers.state import TaskState, evolve
from handlers.supervisor import Rules, decide
from schemas.bodies import (
    AgentCompleted,
    AgentStarted,
    EventBody,
    HandoffProposed,
    LlmAttempted,
    SupervisorAnswered,
    TaskSubmitted,
)
from schemas.content import INLINE_LIMIT_BYTES, Json, offload
from schemas.event import FIELDS, AgentEvent, encode
from schemas.handoff import HandoffProposal
from schemas.ids import derived_id
from schemas.money import TokenCounts

TENANT = "bench"
TEAM = "examples.research_team.agents:team"
PER_TASK = 14
"""Events of each task."""
LONG_EVERY = 10
AT = datetime(2026, 11, 1, tzinfo=UTC)
RULES = Rules(team, team.strictness)
TEXT = "How does redis keep a stream? " + "Some more words about it. " * 8
LONG = "How does redis keep a stream? " + "Many more words about it. " * (INLINE_LIMIT_BYTES // 20)


def stored(event: AgentEvent, blobs: dict[str, bytes]) -> dict[str, str]:
    """An event's fields as they stand in a log."""
    values = (value.decode() if isinstance(value, bytes) else value for value in encode(event, blobs))
    return dict(zip(FIELDS, values, strict=True))


def task_id_of(number: int) -> str:
    """The id of a task."""
    return derived_id("bench", number)


def recorded_task(number: int, blobs: dict[str, bytes], tenant: str = TENANT) -> Iterator[AgentEvent]:
    """A task as a log has it: researched, checked, handed over, written. One in `LONG_EVERY` has a text that stands in
    a blob, which is added to `blobs` (hash → JSON)."""
    task_id = task_id_of(number)
    state: TaskState | None = None
    facts = iter(range(100))
    text: Json = TEXT if number % LONG_EVERY else offload(f"{number}: {LONG}", blobs)

    def fact(body: EventBody) -> AgentEvent:
        place = next(facts)
        return AgentEvent(
            id=derived_id(task_id, "fact", place),
            tenant_id=tenant,
            session_id=f"s{number % 1000}",
            task_id=task_id,
            source_agent_id="user",
            call_chain=("user",),
            at=AT + timedelta(milliseconds=number * 10 + place),
            body=body,
        )

    def on(body: EventBody) -> list[AgentEvent]:
        nonlocal state
        cause = fact(body)
        decisions = decide(state, cause, RULES, blobs)
        state = evolve(state, cause)
        made = [decided_event(cause, n, decision, cause.at) for n, decision in enumerate(decisions)]
        for event in made:
            state = evolve(state, event)
        return [cause, *made]

    def call() -> str:
        assert state is not None
        return list(state.calls)[-1]

    yield from on(TaskSubmitted(task_type="question", text=text))
    first = call()
    yield fact(AgentStarted(agent_id="researcher", call_id=first, delivery=1, worker="w"))
    yield fact(_attempt(first, "researcher"))
    yield fact(AgentCompleted(agent_id="researcher", call_id=first, delivery=1, handed_over=True, duration_us=1))
    payload = HandoffProposal(
        source_agent_id="researcher",
        target_agent_id="writer",
        tenant_id=tenant,
        payload_type="research_result",
        content={"facts": ["a fact"], "question": TEXT},
        confidence=0.9,
        call_chain=("user", "supervisor", "researcher"),
    )
    yield from on(HandoffProposed(call_id=first, payload=payload))
    yield fact(_attempt(call(), "supervisor"))
    grounded = {"grounded": True, "reasons": []}
    yield from on(SupervisorAnswered(call_id=call(), question="check", delivery=1, answer=grounded, duration_us=1))
    second = call()
    yield fact(AgentStarted(agent_id="writer", call_id=second, delivery=1, worker="w"))
    yield fact(_attempt(second, "writer"))
    yield from on(AgentCompleted(agent_id="writer", call_id=second, delivery=1, result={"text": "x"}, duration_us=1))


def _attempt(call_id: str, agent_id: str) -> LlmAttempted:
    return LlmAttempted(
        call_id=call_id,
        ordinal=0,
        attempt=1,
        delivery=1,
        agent_id=agent_id,
        tier="fast",
        requested_model="openai/sim-fast",
        params={},
        request_hash="0" * 24,
        request={"messages": [{"role": "user", "content": TEXT}]},
        response={"text": "a fact"},
        status="ok",
        started_at=AT,
        ended_at=AT,
        duration_us=1000,
        tokens=TokenCounts(input_uncached=60, output_text=5),
        cost_usd="0.00001",
        cost_status="priced",
    )
