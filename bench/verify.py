"""Deciding a recorded log again: 10,000 tasks in a file, and a tenant of a million events in bounded memory."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson

from bench.figures import Figure
from bench.world import World
from examples.research_team.agents import team
from handlers.decider import decided_event
from handlers.state import TaskState, evolve
from handlers.supervisor import Rules, decide
from headwater.replay.recording import FORMAT
from schemas.bodies import (
    AgentCompleted,
    AgentStarted,
    EventBody,
    HandoffProposed,
    LlmAttempted,
    SupervisorAnswered,
    TaskSubmitted,
)
from schemas.event import FIELDS, AgentEvent, encode
from schemas.handoff import HandoffProposal
from schemas.ids import derived_id
from schemas.money import TokenCounts

TASKS = 10_000
EVENTS = 1_000_000
MAX_S = 60.0
MAX_MB = 300.0
AT = datetime(2026, 11, 1, tzinfo=UTC)
RULES = Rules(team, team.strictness)
TEXT = "How does redis keep a stream? " + "Some more words about it. " * 8

_MEASURED = """
import resource, sys
from headwater.cli import main
try:
    main()
finally:
    sys.stderr.write(f"\\npeak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}\\n")
"""


async def run(world: World) -> list[Figure]:
    """Tasks verified per second on one core, and the peak memory of replaying a tenant of a million events."""
    tasks, events = (200, 20_000) if world.quick else (TASKS, EVENTS)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log.jsonl"
        per_task = _write(path, tasks)
        took, _ = _headwater("replay", "--verify", "--agents", "examples.research_team.agents:team", str(path))
        large = Path(directory) / "large.jsonl"
        _write(large, events // per_task)
        story_took, peak = _headwater("replay", str(large), "--task", _task_id(events // per_task - 1))
        verify_took, verify_peak = _headwater(
            "replay", "--verify", "--agents", "examples.research_team.agents:team", str(large)
        )
    return [
        Figure(f"verify {tasks:,} recorded tasks, one core", took, "s", aim=MAX_S, better="lower"),
        Figure("verified tasks/s", tasks / took, "tasks/s"),
        Figure(f"replay one task among {events:,} events, peak memory", peak, "MB", aim=MAX_MB, better="lower"),
        Figure(f"replay one task among {events:,} events", story_took, "s"),
        Figure(f"verify {events:,} events, peak memory", verify_peak, "MB", aim=MAX_MB, better="lower"),
        Figure(f"verify {events:,} events", verify_took, "s"),
    ]


def _headwater(*arguments: str) -> tuple[float, float]:
    """(seconds, peak memory in MB) of a command in a process of its own."""
    clock = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *arguments], capture_output=True, text=True, check=False, stdin=None
    )
    took = time.perf_counter() - clock
    if done.returncode != 0:
        raise RuntimeError(f"{arguments}: {done.stderr[-2000:]}")
    return took, int(done.stderr.rsplit("peak ", 1)[1]) / 1024


def _task_id(number: int) -> str:
    return derived_id("bench", number)


def _write(path: Path, tasks: int) -> int:
    """Write a tenant's log with so many tasks. Returns the number of events of each."""
    count = 0
    with path.open("wb") as file:
        file.write(orjson.dumps({"headwater": FORMAT}) + b"\n")
        for number in range(tasks):
            count = 0
            for event in _recorded(number):
                values = (value.decode() if isinstance(value, bytes) else value for value in encode(event, {}))
                fields = dict(zip(FIELDS, values, strict=True))
                position = f"{1_760_000_000_000 + number}-{count}"
                file.write(orjson.dumps({"tenant": "bench", "position": position, **fields}) + b"\n")
                count += 1
    return count


def _recorded(number: int) -> Iterator[AgentEvent]:
    """A task as a log has it: researched, checked, handed over, written."""
    task_id = _task_id(number)
    state: TaskState | None = None
    facts = iter(range(100))

    def fact(body: EventBody) -> AgentEvent:
        place = next(facts)
        return AgentEvent(
            id=derived_id(task_id, "fact", place),
            tenant_id="bench",
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
        decisions = decide(state, cause, RULES)
        state = evolve(state, cause)
        made = [decided_event(cause, n, decision, cause.at) for n, decision in enumerate(decisions)]
        for event in made:
            state = evolve(state, event)
        return [cause, *made]

    def call() -> str:
        assert state is not None
        return list(state.calls)[-1]

    yield from on(TaskSubmitted(task_type="question", text=TEXT))
    first = call()
    yield fact(AgentStarted(agent_id="researcher", call_id=first, delivery=1, worker="w"))
    yield fact(_attempt(first, "researcher"))
    yield fact(AgentCompleted(agent_id="researcher", call_id=first, delivery=1, handed_over=True, duration_us=1))
    payload = HandoffProposal(
        source_agent_id="researcher",
        target_agent_id="writer",
        tenant_id="bench",
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
