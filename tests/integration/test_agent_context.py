"""What an agent is given (rows D1 to D3): session, memories and task, recorded, and the same again after a crash."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from handlers.context import TaskContext
from handlers.embedders import ModelEmbedder
from handlers.llm import LlmService
from handlers.provider import LitellmProvider
from handlers.recall import Recall
from headwater.embedded import Endpoints
from headwater.long_term_memory import LongTermMemory
from headwater.runtime import add_projector, make_broker, make_recall
from headwater.settings import Settings
from headwater.simulator import SimulatorConfig, SimulatorProcess
from projections import queries
from projections.db import Pool
from projections.memory_search import MemorySearch
from projections.reading import caught_up
from projections.rebuild import digests, rebuild
from projections.runner import Runner
from projections.session_store import SessionStore
from schemas.bodies import (
    AgentCompleted,
    AgentFailed,
    ContextCompiled,
    MemoryStored,
    SessionStateSet,
    StepRecorded,
    TaskCompleted,
)
from schemas.errors import ConfigurationError
from schemas.task import NewTask, Task
from streams.bus import TenantEventBus
from streams.connection import Streams
from tests.agent_runs import CrashError, OrderedCall, llm_service, order
from tests.processes import until
from tests.projecting import event


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with SimulatorProcess(SimulatorConfig()) as process:
        yield process


@pytest.fixture
async def service(simulator: SimulatorProcess) -> AsyncIterator[LlmService]:
    simulator.set_faults([])
    async with llm_service(simulator) as opened:
        assert isinstance(opened.provider, LitellmProvider)
        await opened.provider.warm_up()
        yield opened


@pytest.fixture
async def recall(endpoints: Endpoints, streams: Streams, pool: Pool, settings: Settings) -> AsyncIterator[Recall]:
    """What agents can recall, with a projector at work."""
    broker = make_broker(endpoints.redis_url, streams)
    add_projector(broker, streams, Runner(pool, streams.log), settings)
    await broker.start()
    yield make_recall(settings, streams, pool)
    await broker.stop()


async def said(streams: Streams, tenant: str, text: str, answer: str) -> None:
    bus = TenantEventBus(streams, tenant)
    accepted = await bus.submit(NewTask(tenant=tenant, session="s", text=text))
    done = TaskCompleted(result=answer, routed_by="rules", agent_results={})
    await bus.publish(event(done, tenant, "s", accepted.task_id, agent="supervisor"))


async def ordered(streams: Streams, service: LlmService, recall: Recall, tenant: str = "acme") -> OrderedCall:
    return replace(await order(streams, service, tenant=tenant, text="What does Ada drink?"), recall=recall)


async def remember(streams: Streams, pool: Pool, service: LlmService, recall: Recall, tenant: str, text: str) -> str:
    memory = LongTermMemory(streams, pool, recall.embedder, lambda: service)
    return await memory.store(tenant, "s", text, agent_id="librarian")


async def compile_and_ask(task: Task, context: TaskContext) -> dict[str, Any]:
    compiled = await context.compile(system="You answer.", tier="fast", memories=2)
    answer = await context.llm.complete(compiled.messages, system=compiled.system, tier="fast")
    return {
        "asked": [[m["role"], m["content"]] for m in compiled.messages],
        "usage": compiled.token_usage,
        "n": len(answer.text),
    }


def bodies(events: list[Any], kind: type[Any]) -> list[Any]:
    return [e.body for e in events if isinstance(e.body, kind)]


async def test_a_context_has_the_session_the_memories_and_the_task(
    streams: Streams, pool: Pool, service: LlmService, recall: Recall
) -> None:
    for tenant, drink in (("acme", "tea"), ("globex", "coffee")):
        await said(streams, tenant, f"Hello from {tenant}", "Hello!")
        await remember(streams, pool, service, recall, tenant, f"Ada drinks {drink} every morning.")
        await remember(streams, pool, service, recall, tenant, "The warehouse door is green.")
        await remember(streams, pool, service, recall, tenant, "Invoices go out on Mondays.")
    call = await ordered(streams, service, recall)
    # Submitted later: not part of what this task may see.
    await said(streams, "acme", "Later.", "Later!")
    ended = await call.run(compile_and_ask)
    assert isinstance(ended, AgentCompleted), ended
    result = await streams.log.resolve("acme", ended.result)
    roles = [role for role, _ in result["asked"]]
    assert roles == ["user", "assistant", "user", "user"]
    assert [content for _, content in result["asked"][:2]] == ["Hello from acme", "Hello!"]
    assert "Ada drinks tea every morning." in result["asked"][2][1]
    assert result["asked"][3][1] == "What does Ada drink?"
    assert "coffee" not in str(result)
    assert "globex" not in str(result)

    events = await call.events()
    (compiled,) = bodies(events, ContextCompiled)
    assert (compiled.tier, compiled.budget_tokens, compiled.token_counter) == ("fast", 8000, "tiktoken:o200k_base")
    assert compiled.token_usage == result["usage"]
    assert 0 < compiled.token_usage["total"] <= 8000
    context = await streams.log.resolve("acme", compiled.context)
    stored = {e.id: e.body.text for e in events if isinstance(e.body, MemoryStored)}
    assert len(context["memories"]) == 2
    assert (
        stored[context["memories"][0]["event_id"]] == "Ada drinks tea every morning." == context["memories"][0]["text"]
    )
    # The very request that went out is on record, and has the context.
    (attempt,) = await call.attempts()
    sent = attempt.request["messages"]
    assert sent == [
        {"role": "system", "content": "You answer."},
        *({"role": r, "content": c} for r, c in result["asked"]),
    ]


async def test_after_a_crash_the_agent_sees_what_it_saw(
    streams: Streams, pool: Pool, service: LlmService, recall: Recall
) -> None:
    await remember(streams, pool, service, recall, "acme", "Ada drinks tea every morning.")
    call = await ordered(streams, service, recall)
    seen: list[Any] = []

    async def agent(task: Task, context: TaskContext) -> Any:
        found = [entry.model_dump() for entry in await context.memory.search("What does Ada drink?", k=5)]
        state = await context.session.get("mood", "none")
        compiled = await context.compile(system="You answer.")
        event_id = await context.memory.store("Ada asked about drinks.", metadata={"n": 1})
        await context.session.set("mood", "thirsty")
        seen.append((found, state, compiled, event_id))
        if context.delivery == 1:
            raise CrashError
        return "done"

    with pytest.raises(CrashError):
        await call.run(agent)
    # The world moves on between the two deliveries.
    await remember(streams, pool, service, recall, "acme", "Ada drinks tea and only tea, says Ada.")
    await said(streams, "acme", "New.", "New!")
    await call.end_lease()
    assert isinstance(await call.run(agent), AgentCompleted)
    assert seen[0] == seen[1]
    assert len(seen[0][0]) == 1
    events = await call.events()
    own = [e for e in events if e.source_agent_id == "writer"]
    assert len(bodies(own, ContextCompiled)) == 1
    assert len(bodies(own, MemoryStored)) == 1
    assert len(bodies(own, SessionStateSet)) == 1
    assert [b.name for b in bodies(own, StepRecorded)] == ["memory.search", "session.state"]
    assert not any(b.diverged for b in bodies(own, ContextCompiled))


async def test_a_changed_request_runs_live_and_says_so(
    streams: Streams, pool: Pool, service: LlmService, recall: Recall
) -> None:
    call = await ordered(streams, service, recall)

    async def agent(task: Task, context: TaskContext) -> Any:
        await context.compile(system=f"Delivery {context.delivery}.")
        if context.delivery == 1:
            raise CrashError
        return "done"

    with pytest.raises(CrashError):
        await call.run(agent)
    await call.end_lease()
    await call.run(agent)
    first, second = bodies(await call.events(), ContextCompiled)
    assert (first.diverged, second.diverged) == (False, True)


async def test_what_one_task_stores_the_next_one_finds(
    streams: Streams, pool: Pool, service: LlmService, recall: Recall
) -> None:
    async def store(task: Task, context: TaskContext) -> Any:
        await context.session.set("name", {"first": "Ada"})
        await context.session.set("gone", 1)
        await context.session.set("gone", None)
        return await context.memory.store("The customer is called Ada.", metadata={"from": "chat"})

    async def find(task: Task, context: TaskContext) -> Any:
        assert await context.memory.is_available()
        found = await context.memory.search("What is the customer's name?", k=3)
        mine = await context.memory.search("What is the customer's name?", k=3, agent_id="nobody")
        return [[e.event_id, e.text, e.metadata, e.agent_id] for e in found], len(mine), await context.session.state()

    first = await ordered(streams, service, recall)
    stored = await first.run(store)
    assert isinstance(stored, AgentCompleted), stored
    ended = await (await ordered(streams, service, recall)).run(find)
    assert isinstance(ended, AgentCompleted), ended
    expected = [stored.result, "The customer is called Ada.", {"from": "chat"}, "writer"]
    assert ended.result == [[expected], 0, {"name": {"first": "Ada"}}]
    # Another tenant's agent, in a session of the same name, finds nothing of it.
    other = await (await ordered(streams, service, recall, "globex")).run(find)
    assert isinstance(other, AgentCompleted), other
    assert other.result == [[], 0, {}]
    for tenant in ("acme", "globex"):
        assert await caught_up(pool, streams.log, tenant, timeout_s=30)
    before = [d for d in await digests(pool) if d.projection in ("memories", "sessions")]
    await rebuild(pool, ["memories", "sessions"])
    assert [d for d in await digests(pool) if d.projection in ("memories", "sessions")] == before


async def test_an_outage_of_the_read_models_is_waited_out_in_one_delivery(
    endpoints: Endpoints, streams: Streams, pool: Pool, service: LlmService, settings: Settings
) -> None:
    sessions = SessionStore(pool, streams, catch_up_s=0.01)
    memories = MemorySearch(pool, streams.log, catch_up_s=0.01)
    patient = replace(make_recall(settings, streams, pool), sessions=sessions, memories=memories)
    await said(streams, "acme", "Hello.", "Hi!")
    call = await ordered(streams, service, patient)

    async def agent(task: Task, context: TaskContext) -> Any:
        compiled = await context.compile()
        return [turn.content for turn in compiled.session], await context.session.state()

    with capture_logs() as logs:
        running = asyncio.create_task(call.run(agent))

        async def has_waited() -> bool:
            return len([entry for entry in logs if entry["event"] == "waiting_for_read_models"]) >= 3

        await until(has_waited, "the agent asked three times in vain")
        assert not running.done()
        broker = make_broker(endpoints.redis_url, streams)
        add_projector(broker, streams, Runner(pool, streams.log), settings)
        await broker.start()
        ended = await running
        await broker.stop()
    assert isinstance(ended, AgentCompleted), ended
    assert (ended.delivery, ended.result) == (1, [["Hello.", "Hi!"], {}])


async def test_embeddings_of_a_provider_are_billed_once(
    streams: Streams, pool: Pool, service: LlmService, recall: Recall, simulator: SimulatorProcess
) -> None:
    asking = replace(recall, embedder=ModelEmbedder("openai/sim-embed"))
    call = await ordered(streams, service, asking)

    async def agent(task: Task, context: TaskContext) -> Any:
        await context.memory.store("the cat sat on the mat")
        found = await context.memory.search("the cat sat", k=1)
        compiled = await context.compile(system="s", query="the cat sat")
        answer = await context.llm.complete("hello")
        if context.delivery == 1:
            raise CrashError
        return [found[0].text, compiled.memories[0].text, len(answer.text) > 0]

    before = len(simulator.bill()["entries"])
    with pytest.raises(CrashError):
        await call.run(agent)
    await call.end_lease()
    ended = await call.run(agent)
    assert isinstance(ended, AgentCompleted), ended
    assert ended.result == ["the cat sat on the mat", "the cat sat on the mat", True]
    assert len(simulator.bill()["entries"]) - before == 4
    assert [a.status for a in await call.attempts()] == ["ok"] * 4

    # A search outside any task is billed, too: to the tenant, and to no task.
    memory = LongTermMemory(streams, pool, asking.embedder, lambda: service)
    (found,) = await memory.search("acme", "the cat sat", k=1)
    assert found.text == "the cat sat on the mat"
    last = (await call.events())[-1]
    assert (last.type, last.task_id, last.body.status) == ("llm.attempted", "", "ok")  # type: ignore[attr-defined]
    assert len(simulator.bill()["entries"]) - before == 5


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda c: c.memory.store("  "), "a memory has 1 to"),
        (lambda c: c.memory.store("x", metadata={"k": "v" * 3000}), "bytes of metadata"),
        (lambda c: c.memory.store("\ud800"), "cannot be stored as JSON"),
        (lambda c: c.memory.search("", k=1), "an empty text has no embedding"),
        (lambda c: c.memory.search("x", k=0), "a search gives 1 to 200"),
        (lambda c: c.session.set("", 1), "a key of a session's state"),
        (lambda c: c.session.set("k", {1, object()}), "must be JSON-able"),
        (lambda c: c.compile(memories=1000), "a context has up to 200 memories"),
        (lambda c: c.compile(tier="huge"), "has no token budget"),
    ],
)
async def test_what_cannot_be_asked_fails_with_the_reason(
    streams: Streams, service: LlmService, recall: Recall, ask: Any, says: str
) -> None:
    async def agent(task: Task, context: TaskContext) -> Any:
        return await ask(context)

    ended = await (await ordered(streams, service, recall)).run(agent)
    assert isinstance(ended, AgentFailed)
    assert says in ended.error


async def test_without_a_database_or_an_embedder_the_reason_is_clear(
    streams: Streams, pool: Pool, service: LlmService, recall: Recall
) -> None:
    async def compiling(task: Task, context: TaskContext) -> Any:
        return await context.compile()

    async def storing(task: Task, context: TaskContext) -> Any:
        return await context.memory.store("x")

    ended = await (await order(streams, service)).run(compiling)
    assert isinstance(ended, AgentFailed)
    assert "DATABASE_URL" in ended.error
    switched_off = replace(recall, embedder=None, memories=None)
    ended = await (await ordered(streams, service, switched_off)).run(storing)
    assert isinstance(ended, AgentFailed)
    assert "HEADWATER_EMBEDDER=none" in ended.error
    # A context does without what there is none of.
    assert isinstance(await (await ordered(streams, service, switched_off)).run(compiling), AgentCompleted)
    with pytest.raises(ConfigurationError, match="switched off"):
        await LongTermMemory(streams, pool, None, lambda: service).search("acme", "x")


async def test_any_text_can_be_a_task(streams: Streams, pool: Pool, service: LlmService, recall: Recall) -> None:
    async def agent(task: Task, context: TaskContext) -> Any:
        compiled = await context.compile(system="s\ud800", query="\u200b")
        return compiled.system, compiled.token_usage["total"] <= 8000

    call = await order(streams, service, text="🙂\x00\u202e" * 30_000)
    ended = await replace(call, recall=recall).run(agent)
    assert isinstance(ended, AgentCompleted), ended
    assert ended.result == ["s?", True]
    (compiled,) = bodies(await call.events(), ContextCompiled)
    assert compiled.dropped["task_chars"] > 0
    assert (await queries.events(pool, "acme"))[0][1]["type"] == "task.submitted"
