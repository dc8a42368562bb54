"""One call, as a worker has it: ordered on a real log, taken, and run by a function that stands for an agent."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from handlers.agents import AgentRegistration, BaseAgent
from handlers.context import TaskContext
from handlers.llm import LlmService, RetryPolicy
from handlers.prices import PriceTable
from handlers.provider import LitellmProvider
from handlers.recall import Recall
from handlers.registry import AgentRegistry
from handlers.runner import AgentRunner
from headwater.simulator import SimulatorProcess
from schemas.bodies import EventBody, LlmAttempted, TaskCancelRequested, TaskSubmitted
from schemas.call import Call
from schemas.event import AgentEvent, encode
from schemas.ids import derived_id, new_id
from schemas.task import Task
from streams.connection import Streams
from streams.functions import Commit, NewCall
from streams.log import readable
from streams.subscriber import TakenCall

PRICES = Path(str(resources.files("headwater.simulator"))) / "prices.json"
AgentFunction = Callable[[Task, TaskContext], Awaitable[Any]]
AGENT = "writer"
LEASE_MS = 60_000


class CrashError(BaseException):
    """Raised by an agent function in place of the death of its worker: nothing after it is written."""


@dataclass
class OrderedCall:
    """A call that waits for its agent, and every event of its tenant's log."""

    streams: Streams
    service: LlmService
    call: Call
    lease_ms: int = LEASE_MS
    recall: Recall | None = None
    taken: TakenCall | None = field(default=None, init=False)
    """The delivery at hand."""

    async def take(self, worker: str = "worker-1") -> TakenCall:
        """The call, given to a worker. Raises `AssertionError` if it does not wait."""
        shard = self.streams.keys.shard_of(self.call.tenant_id)
        taken = await self.streams.functions.take([(shard, [(AGENT, 1)])], worker, lease_ms=self.lease_ms)
        (delivery,) = taken[0]
        self.taken = TakenCall(delivery, Call.model_validate_json(delivery.body))
        return self.taken

    async def run(self, agent: AgentFunction) -> EventBody:
        """Deliver the call, run `agent`, settle, and return the body of the event that ends the run.

        Raises what passes the runner by: `CrashError`, `StaleLeaseError`.
        """
        return await self.run_taken(await self.take(), agent)

    async def run_taken(self, taken: TakenCall, agent: AgentFunction) -> EventBody:
        """Run `agent` on a delivery, and settle."""
        events = await _runner(self.streams, self.service, agent, self.lease_ms, self.recall).handle(taken)
        blobs: dict[str, bytes] = {}
        facts = [encode(event, blobs) for event in events]
        await self.streams.functions.settle(taken.delivery, facts=facts, blobs=blobs)
        return events[-1].body

    async def end_lease(self) -> None:
        """Let the lease of the delivery at hand end, and give the call back to its queue."""
        prefix = self.streams.keys.prefixes[self.streams.keys.shard_of(self.call.tenant_id)]
        member = f"{self.call.tenant_id}|{self.call.call_id}"
        assert await self.streams.redis.zadd(f"{prefix}:leases", {member: 0}, xx=True, ch=True) == 1
        assert await self.streams.functions.reclaim([self.streams.keys.shard_of(self.call.tenant_id)]) == 1

    async def cancel(self) -> None:
        """Cancel the task, as the decider does, and tell the worker, as its renewals do."""
        event = _from_user(self.call, new_id(), TaskCancelRequested())
        await _decide(self.streams, event, Commit(cancels=[self.call.call_id]))
        assert self.taken is not None
        assert await self.streams.functions.renew([self.taken.delivery], lease_ms=self.lease_ms) == [True]
        assert self.taken.delivery.cancelled

    async def events(self) -> list[AgentEvent]:
        """The tenant's log."""
        events, unreadable = readable(self.call.tenant_id, await self.streams.log.read(self.call.tenant_id))
        assert not unreadable
        return events

    async def attempts(self) -> list[LlmAttempted]:
        """The attempts on record, with request and response read in full."""
        found = [event.body for event in await self.events() if isinstance(event.body, LlmAttempted)]
        resolve = self.streams.log.resolve
        return [
            body.model_copy(
                update={
                    "request": await resolve(self.call.tenant_id, body.request),
                    "response": await resolve(self.call.tenant_id, body.response),
                }
            )
            for body in found
        ]


@asynccontextmanager
async def llm_service(simulator: SimulatorProcess, *, prices: Path = PRICES, **retry: Any) -> AsyncIterator[LlmService]:
    """The LLM service over LiteLLM, against a simulator. Waits between attempts are a millisecond."""
    provider = LitellmProvider(f"{simulator.url}/v1", "simulator")
    tiers = {
        "fast": ("openai/sim-fast", "openai/sim-second"),
        "reasoning": ("openai/sim-reasoning",),
        "embedding": ("openai/sim-embed",),
    }
    policy = RetryPolicy(**({"attempts_per_model": 3, "base_delay_ms": 1, "timeout_s": 10.0} | retry))
    yield LlmService(provider, tiers, PriceTable.load(prices), policy)
    await provider.aclose()


async def order(
    streams: Streams, service: LlmService, *, tenant: str = "acme", text: str = "Write.", **more: Any
) -> OrderedCall:
    """Put a call for one agent on a tenant's queue, as a decider does."""
    task_id, cause = new_id(), new_id()
    call = Call(
        call_id=derived_id(cause, "call"),
        ordered_by=cause,
        agent_id=AGENT,
        tenant_id=tenant,
        session_id="s",
        task_id=task_id,
        priority="normal",
        call_chain=("user", "supervisor", AGENT),
        task_type="note",
        text=text,
        **more,
    )
    body = call.model_dump_json().encode()
    event = _from_user(call, cause, TaskSubmitted(task_type="note", text=text))
    await _decide(streams, event, Commit(calls=[NewCall(call.call_id, AGENT, 2, body)]))
    return OrderedCall(streams, service, call)


def _from_user(call: Call, event_id: str, body: EventBody) -> AgentEvent:
    return AgentEvent(
        id=event_id,
        tenant_id=call.tenant_id,
        session_id=call.session_id,
        task_id=call.task_id,
        source_agent_id="user",
        call_chain=("user",),
        at=datetime.now(UTC),
        body=body,
    )


async def _decide(streams: Streams, event: AgentEvent, commit: Commit) -> None:
    """A fact that a producer appends, and what the decider makes of it."""
    await streams.functions.append(
        event.tenant_id,
        key=event.id,
        fingerprint="f",
        ttl_ms=60_000,
        task_id=event.task_id,
        fact=encode(event, {}),
        blobs={},
    )
    shard = streams.keys.shard_of(event.tenant_id)
    leased = await streams.functions.lease([shard], "decider", lease_ms=60_000, max_tenants=1000, max_entries=1000)
    (batch,) = [batch for batch in leased[0] if batch.tenant_id == event.tenant_id]
    assert await streams.functions.commit("decider", [(batch, commit)]) == [True]


def _runner(
    streams: Streams, service: LlmService, agent: AgentFunction, lease_ms: int, recall: Recall | None
) -> AgentRunner:
    class FunctionAgent(BaseAgent):
        registration = AgentRegistration(agent_id=AGENT, name="Writer", description="writes")

        async def execute(self, task: Task, context: TaskContext) -> Any:
            return await agent(task, context)

    registry = AgentRegistry()
    registry.register(FunctionAgent())
    return AgentRunner(streams, registry, service, lease_ms=lease_ms, recall=recall)
