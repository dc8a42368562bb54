"""A supervisor that runs in the test, with a routing rule that fails when a test says so."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from handlers.agents import AgentRegistration, BaseAgent
from handlers.context import TaskContext
from handlers.router import HybridRouter, RoutingDecision
from handlers.team import Team
from headwater.embedded import Endpoints
from headwater.runtime import add_decider, make_broker
from headwater.settings import Settings
from schemas.bodies import TaskCancelRequested
from schemas.event import AgentEvent
from schemas.ids import new_id
from schemas.task import Accepted, NewTask, Task
from streams.bus import TenantEventBus
from streams.connection import Streams
from streams.log import readable

BROKEN = "broken"
"""The text of a task that the rule fails on."""


class Idle(BaseAgent):
    """Nobody runs it: only decisions are looked at."""

    registration = AgentRegistration(agent_id="idle", name="Idle", description="does nothing")

    async def execute(self, task: Task, context: TaskContext) -> None:
        """Never called."""


@dataclass
class Rule:
    """Routes to the idle agent, but fails on broken tasks until it is mended. Keeps when it was asked about those."""

    mended: bool = False
    asked_at: dict[str, list[float]] = field(default_factory=dict)

    def __call__(self, task: Task) -> str:
        """The rule itself."""
        if task.text.startswith(BROKEN):
            self.asked_at.setdefault(task.task_id, []).append(time.monotonic())
            if not self.mended:
                raise LookupError("no such customer")
        return "idle"


class Raising(HybridRouter):
    """A router whose rule is not skipped when it fails: the defect of a custom router."""

    def __init__(self, rule: Rule) -> None:
        super().__init__(rules=[lambda task: "idle"])
        self._rule = rule

    def match(self, task: Task) -> RoutingDecision | None:
        """The rule's choice, or its error."""
        self._rule(task)
        return super().match(task)


@asynccontextmanager
async def supervisor(streams: Streams, endpoints: Endpoints, settings: Settings, rule: Rule) -> AsyncIterator[None]:
    """A decider on every tenant's log."""
    broker = make_broker(endpoints.redis_url, streams)
    team = Team(agents=[Idle()], router=Raising(rule))
    add_decider(broker, streams, team, settings)
    await broker.start()
    try:
        yield
    finally:
        await broker.stop()


async def submit(streams: Streams, tenant: str, text: str) -> Accepted:
    """A task."""
    return await TenantEventBus(streams, tenant).submit(NewTask(tenant=tenant, session="s", text=text))


async def ask_to_cancel(streams: Streams, accepted: Accepted) -> None:
    """A second event of a task, for the supervisor to decide on."""
    event = AgentEvent(
        id=new_id(),
        tenant_id=accepted.tenant_id,
        session_id="s",
        task_id=accepted.task_id,
        source_agent_id="user",
        call_chain=("user",),
        at=datetime.now(UTC),
        body=TaskCancelRequested(reason="changed my mind"),
    )
    await TenantEventBus(streams, accepted.tenant_id).publish(event)


async def events_of(streams: Streams, accepted: Accepted) -> list[AgentEvent]:
    """The task's events, in order."""
    events, _ = readable(accepted.tenant_id, await streams.log.read(accepted.tenant_id))
    return [event for event in events if event.task_id == accepted.task_id]


async def types_of(streams: Streams, accepted: Accepted) -> list[str]:
    """Their types."""
    return [event.type for event in await events_of(streams, accepted)]


async def until_types(streams: Streams, accepted: Accepted, wanted: list[str], *, deadline_s: float = 20.0) -> None:
    """Wait until the task has exactly these events."""
    end = time.monotonic() + deadline_s
    while (found := await types_of(streams, accepted)) != wanted:
        assert time.monotonic() < end, f"wanted {wanted}, found {found}"
        await asyncio.sleep(0.02)
