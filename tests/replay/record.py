"""Records the logs that the tests decide again: `python -m tests.replay.record rules|models|in-flight NAME`.

A recorded log is evidence of what a version of the code decided. Do not record over one that is there: a version that
cannot reproduce it any more is what the tests are to find. Add a file with a new name, and a test for it.
"""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

from handlers.provider import LitellmProvider
from handlers.team import Team
from headwater.embedded import EmbeddedServers
from headwater.logs import configure_logging
from headwater.runtime import add_decider, add_runner, make_broker, make_llm, worker_name
from headwater.settings import Settings
from headwater.simulator import AnswerRule, FaultRule, SimulatorConfig, SimulatorProcess, load_prices
from projections.archive import blob_hashes
from schemas.task import Accepted, NewTask
from streams.bus import TenantEventBus
from streams.connection import Streams, open_streams
from streams.outcomes import Outcomes
from streams.subscriber import LogSubscriber
from tests.processes import until
from tests.replay import snapshot
from tests.replay.recording import LOGS, Recording, fields_of
from tests.replay.team import FINISH, asking, team

PRICES = Path(__file__).parents[2] / "examples" / "support_desk" / "prices.json"
TENANTS = ("acme", "globex")
SHARDS = 4
DEADLINE_S = 60.0

KINDS: tuple[dict[str, Any], ...] = (
    {"text": "How do I reset the clock?"},
    {"text": "How do I reset it?", "data": {"triage": "fails"}},
    {"text": "It does not start.", "data": {"triage": "unsure"}},
    {"text": "Any news?", "type": "update"},
    {"text": "Hello!", "type": "greeting"},
    {"text": "Hello!", "type": "greeting", "data": {"writer": "fails"}},
    {"text": "Please pay.", "type": "invoice"},
    {"text": "My money, please.", "type": "refund", "data": {"amount": 250}},
    {"text": "My money, please.", "type": "refund", "data": {"amount": "much"}},
    {"text": "Strange.", "type": "odd", "priority": "critical"},
    {"text": "Where is it?", "data": {"researcher": "cycle"}},
    {"text": "Who knows?", "data": {"researcher": "nobody"}, "priority": "high"},
    {"text": "Are you sure?", "data": {"researcher": "too sure"}},
    {"text": "I insist.", "data": {"researcher": "stubborn"}},
    {"text": "Both fail.", "data": {"triage": "fails", "researcher": "fails"}},
    {"text": "Stand-in insists.", "data": {"triage": "fails", "researcher": "stubborn"}},
    {"text": "The same again. " * 400, "priority": "low"},
    {"text": "The same again. " * 400 + "REFUND"},
    {"text": "\N{GRINNING FACE}\N{ZERO WIDTH JOINER}\u0000\u2028ü語", "data": {"$blob": "mine", "odd": None}},
)
ASKING: tuple[dict[str, Any], ...] = (
    {"text": "Hello!", "type": "greeting"},
    {"text": "Whose is this?"},
    {"text": "One for the researcher."},
    {"text": "One for the astronaut."},
    {"text": "One for the poet, who does not answer."},
    {"text": "Is it so?", "type": "INVENTED"},
    {"text": "It was so.", "type": "INVENTED", "data": {"triage": "stubborn"}},
    {"text": "Nobody can say.", "type": "UNCHECKED"},
    {"text": "One for the researcher: UNCHECKED notes."},
    {"text": "Good news.", "type": "update"},
    {"text": "Please:\n1. find both sides\n2. compare them"},
    {"text": "Please:\n1. find both sides\n2. compare them", "data": {"writer": "fails"}},
    {"text": "Please:\n1. go in a circle\n2. for ever"},
    {"text": "Please:\n1. count to one\n2. that is all"},
    {"text": "Where is it?", "data": {"researcher": "cycle"}},
    {"text": "Both fail.", "data": {"triage": "fails", "researcher": "fails"}},
    {"text": "A long one. " * 500},
)
CANCELLED: tuple[dict[str, Any], ...] = (
    {"text": "One for the researcher, in vain.", "data": {"researcher": "waits"}},
    {"text": "Please:\n1. find both sides\n2. compare them", "data": {"researcher": "waits"}},
)
ROUTE, SPLIT, CHECK, JOIN = "Choose the one agent", "Split the task", "You check a handoff", "Put the results"
BOTH_SIDES = {
    "subtasks": [
        {"description": "Researcher: find one side"},
        {"description": "Researcher: find the other side"},
        {"description": "Compare both", "depends_on": [0, 1]},
    ],
    "reasoning": "two sides, then both",
}
CIRCLE = {"subtasks": [{"description": "a", "depends_on": [1]}, {"description": "b", "depends_on": [0]}]}
ANSWERS = [
    AnswerRule(system=ROUTE, user="astronaut", json={"agent_id": "astronaut", "confidence": 1, "reasoning": "space"}),
    AnswerRule(system=ROUTE, user="poet|not JSON", answer="Shall I compare thee to an agent?"),
    AnswerRule(
        system=ROUTE, user="researcher", json={"agent_id": "researcher", "confidence": 0.7, "reasoning": "facts"}
    ),
    AnswerRule(system=ROUTE, json={"agent_id": "triage", "confidence": 95, "reasoning": "first things first"}),
    AnswerRule(system=SPLIT, user="both sides", json=BOTH_SIDES),
    AnswerRule(system=SPLIT, user="circle|cycle", json=CIRCLE),
    AnswerRule(system=SPLIT, json={"subtasks": [{"description": "all of it"}]}),
    AnswerRule(system=CHECK, user="INVENTED", json={"grounded": False, "reasons": ["nobody said so"]}),
    AnswerRule(system=CHECK, user="UNCHECKED|not JSON", answer="I would rather not say."),
    AnswerRule(system=CHECK, json={"grounded": True}),
    AnswerRule(system=JOIN, json={"answer": "both sides agree", "sources": [2]}),
]
IN_FLIGHT: tuple[dict[str, Any], ...] = (
    {"text": "Its writer is at work.", "data": {"writer": "waits"}},
    {"text": "Its researcher is at work, as the stand-in.", "data": {"triage": "fails", "researcher": "waits"}},
    {"text": "Its researcher is at work.", "data": {"researcher": "waits"}, "priority": "high"},
)


def tasks(kinds: Sequence[dict[str, Any]]) -> Iterable[NewTask]:
    """Every kind of task twice, over two tenants."""
    for number, kind in enumerate([*kinds, *kinds]):
        yield NewTask(tenant=TENANTS[number * 7 // len(kinds) % 2], session=f"s{number % 5}", **kind)


@contextlib.asynccontextmanager
async def worker(
    streams: Streams, redis_url: str, simulator_url: str, team: Team = team
) -> AsyncIterator[LogSubscriber]:
    """One worker in this process, with its supervisor. It is cut off at the end, not drained."""
    settings = Settings(
        llm_base_url=f"{simulator_url}/v1",
        llm_api_key="simulator",
        fast_models=("openai/sim-fast",),
        reasoning_models=("openai/sim-reasoning",),
        llm_retry_ms=1,
        prices=PRICES,
    )
    provider = LitellmProvider(settings.llm_base_url, settings.llm_api_key)
    broker = make_broker(redis_url, streams)
    decider = add_decider(broker, streams, team, settings)
    add_runner(broker, streams, team, make_llm(settings, provider), settings, worker_name())
    await broker.start()
    try:
        yield decider
    finally:
        await broker.stop()
        await provider.aclose()


async def submit(streams: Streams, tasks: Iterable[NewTask]) -> list[Accepted]:
    """Submit in order."""
    return [await TenantEventBus(streams, task.tenant).submit(task) for task in tasks]


async def record_log(streams: Streams, redis_url: str, simulator_url: str, what: str) -> Recording:
    """Run every kind of task to its end."""
    outcomes = Outcomes(streams)
    kinds, by = (KINDS, team) if what == "rules" else (ASKING, asking)
    async with worker(streams, redis_url, simulator_url, by), asyncio.timeout(DEADLINE_S):
        submitted = await submit(streams, tasks(kinds))
        if what == "models":
            submitted += await cancelled(streams)
        await asyncio.gather(*(outcomes.wait(accepted) for accepted in submitted))
        await outcomes.close()
    recording = Recording()
    for tenant in TENANTS:
        entries = await streams.log.read(tenant, limit=1_000_000)
        recording.entries += [(tenant, entry[0], fields_of(entry)) for entry in entries]
        hashes = set().union(*(blob_hashes(fields_of(entry)["body"]) for entry in entries))
        recording.blobs[tenant] = await streams.log.blobs(tenant, sorted(hashes))
    return recording


async def cancelled(streams: Streams) -> list[Accepted]:
    """Tasks that are cancelled while their agents are at work."""
    accepted: list[Accepted] = []
    for tenant in TENANTS:
        bus = TenantEventBus(streams, tenant)
        for kind in CANCELLED:
            one = await bus.submit(NewTask(tenant=tenant, session="s", **kind))
            accepted.append(one)

            async def is_at_work(one: Accepted = one, bus: TenantEventBus = bus) -> bool:
                fields = [fields_of(entry) for entry in await bus.read(after=one.position, limit=100_000)]
                return any(f["task"] == one.task_id and f["type"] == "step.recorded" for f in fields)

            await until(is_at_work, "its agent is at work")
            await bus.cancel(one.task_id, one.session_id, "never mind")
    return accepted


async def record_in_flight(streams: Streams, redis_url: str, simulator_url: str) -> list[snapshot.Row]:
    """Stop in the middle: runs under way with recorded steps, and results and tasks that nobody decided on."""
    async with worker(streams, redis_url, simulator_url) as decider:
        kinds = [kind for kind in IN_FLIGHT for _ in range(2)]
        await submit(streams, (NewTask(tenant="acme", session="s", **kind) for kind in kinds))

        async def has(event_type: str, count: int) -> bool:
            entries = await streams.log.read("acme", limit=100_000)
            return sum(fields_of(entry)["type"] == event_type for entry in entries) >= count

        await until(lambda: has("step.recorded", 6), "all researchers began")
        await until(lambda: has("handoff.accepted", 6), "two tasks are with their writers")
        await decider.stop()
        # These two are submitted after the supervisor stopped, and these two writers finish.
        await submit(streams, (NewTask(tenant="acme", session="s", **KINDS[0]) for _ in range(2)))
        FINISH.set()
        await until(lambda: _two_results(streams), "two results that nobody decided on")
        return await snapshot.snapshot(streams.redis)


async def _two_results(streams: Streams) -> bool:
    fields = [fields_of(entry) for entry in await streams.log.read("acme", limit=100_000)]
    return sum(f["type"] == "agent.completed" and f["source"] == "writer" for f in fields) == 2


def main(what: str, name: str) -> None:
    """Write `tests/replay/logs/<name>.jsonl.gz` or, for what is in flight, `<name>.jsonl`."""
    path = LOGS / (f"{name}.jsonl" if what == "in-flight" else f"{name}.jsonl.gz")
    if path.exists():
        sys.exit(f"{path} is there already, and a recorded log is not recorded over: choose another name")
    configure_logging("warning")
    faults = [FaultRule(rate_429=0.05, rate_500=0.05, retry_after_s=0)]
    answers = ANSWERS if what == "models" else []
    config = SimulatorConfig(seed=4, prices=load_prices(PRICES), faults=faults, answers=answers)
    with (
        tempfile.TemporaryDirectory() as data,
        EmbeddedServers(Path(data), postgres=False) as servers,
        SimulatorProcess(config) as simulator,
    ):

        async def run() -> None:
            streams = await open_streams(servers.redis_url, shards=SHARDS)
            if what == "in-flight":
                rows = await record_in_flight(streams, servers.redis_url, simulator.url)
                snapshot.write(path, snapshot.with_old_agent_completed(rows))
            else:
                (await record_log(streams, servers.redis_url, simulator.url, what)).write(path)
            await streams.close()

        asyncio.run(run())
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("rules", "models", "in-flight"):
        sys.exit("usage: python -m tests.replay.record rules|models|in-flight NAME")
    main(sys.argv[1], sys.argv[2])
