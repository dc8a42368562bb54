"""Given-when-then on the supervisor: facts in, decisions out, with no server."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from handlers.agents import AgentRegistration, BaseAgent
from handlers.decider import decided_event
from handlers.decomposition import is_complex
from handlers.router import HybridRouter
from handlers.strictness import StrictnessConfig
from handlers.supervisor import Decision, Rules, TaskState, call_for, decide, evolve
from handlers.team import Team
from schemas.bodies import (
    AgentCompleted,
    AgentFailed,
    EventBody,
    HandoffProposed,
    SupervisorAnswered,
    TaskCancelRequested,
    TaskSubmitted,
)
from schemas.call import Call
from schemas.event import AgentEvent
from schemas.handoff import HandoffProposal
from schemas.ids import derived_id
from schemas.task import Task

AT = datetime(2026, 11, 25, 12, tzinfo=UTC)


def agent(agent_id: str, **more: Any) -> BaseAgent:
    """An agent that is registered and never run."""

    class Named(BaseAgent):
        registration = AgentRegistration(agent_id=agent_id, name=agent_id, description=f"does {agent_id}", **more)

        async def execute(self, task: Task, context: Any) -> Any:
            raise AssertionError("deciding runs no agent")

    return Named()


def rules(
    *agents: BaseAgent,
    to: str | Callable[[Task], str | None] | None = None,
    strictness: StrictnessConfig | None = None,
    decomposes: Callable[[Task], bool] = is_complex,
) -> Rules:
    """Rules of a team; `to` is its one routing rule, or the agent that gets everything."""
    routing = [] if to is None else [to if callable(to) else lambda task: to]
    team = Team(agents, HybridRouter(routing), decomposes=decomposes)
    return Rules(team, strictness or StrictnessConfig(semantic=False))


class Supervised:
    """One task under the supervisor. `when(body)` feeds a fact; `then` are the decisions on the last one."""

    def __init__(self, rules: Rules, text: str = "please help", *, tenant: str = "acme", **submitted: Any) -> None:
        self.rules = rules
        self.state: TaskState | None = None
        self.then: list[Decision] = []
        self.log: list[AgentEvent] = []
        self._tenant = tenant
        self.when(TaskSubmitted(task_type=submitted.pop("task_type", "task"), text=text, **submitted))

    def when(self, body: EventBody) -> "Supervised":
        """Feed a fact, and apply what is decided."""
        number = len(self.log)
        event = AgentEvent(
            id=derived_id("fact", number),
            tenant_id=self._tenant,
            session_id="s1",
            task_id="task-1",
            source_agent_id="user",
            call_chain=("user",),
            at=AT,
            body=body,
        )
        self.then = decide(self.state, event, self.rules)
        self.state = evolve(self.state, event)
        self.log.append(event)
        for ordinal, decision in enumerate(self.then):
            decided = decided_event(event, ordinal, decision, AT)
            self.state = evolve(self.state, decided)
            self.log.append(decided)
        return self

    @property
    def bodies(self) -> list[EventBody]:
        """The decisions on the last fact."""
        return [decision.body for decision in self.then]

    @property
    def body(self) -> Any:
        """The one decision on the last fact."""
        assert len(self.then) == 1, self.bodies
        return self.then[0].body

    @property
    def types(self) -> list[str]:
        """The types of the decisions on the last fact."""
        return [body.type for body in self.bodies]

    def call(self, agent_id: str | None = None, *, subtask: int | None = None) -> Call:
        """The open call of an agent (or the only open one), as its worker gets it."""
        assert self.state is not None, "the task has ended"
        found = [
            call_id
            for call_id, call in self.state.calls.items()
            if (agent_id is None or call.agent_id == agent_id) and (subtask is None or call.subtask == subtask)
        ]
        assert len(found) == 1, self.state.calls
        return call_for(self.state, found[0])

    def completes(self, agent_id: str, result: Any, **which: Any) -> "Supervised":
        """The agent's run ends with a result."""
        call = self.call(agent_id, **which)
        return self.when(
            AgentCompleted(agent_id=agent_id, call_id=call.call_id, delivery=1, result=result, duration_us=1)
        )

    def fails(self, agent_id: str, error: str = "it broke", **which: Any) -> "Supervised":
        """The agent's run ends with an error."""
        call = self.call(agent_id, **which)
        return self.when(
            AgentFailed(
                agent_id=agent_id,
                call_id=call.call_id,
                delivery=1,
                error_class="ValueError",
                error=error,
                duration_us=1,
            )
        )

    def proposes(self, agent_id: str, target: str, **more: Any) -> "Supervised":
        """The agent hands over; `more` replaces fields of the proposal."""
        call = self.call(agent_id)
        fields: dict[str, Any] = {
            "source_agent_id": agent_id,
            "target_agent_id": target,
            "tenant_id": self._tenant,
            "payload_type": "research_result",
            "content": {"notes": "found it"},
            "confidence": 0.9,
            "call_chain": call.call_chain,
        }
        payload = HandoffProposal(**fields | more)
        return self.when(HandoffProposed(call_id=call.call_id, payload=payload, given=("1-1",)))

    def answers(self, answer: Any = None, *, error: str | None = None, subtask: int | None = None) -> "Supervised":
        """A model answers the supervisor's open question, or there is no answer."""
        call = self.call("supervisor", subtask=subtask)
        assert call.kind != "agent"
        return self.when(
            SupervisorAnswered(
                call_id=call.call_id, question=call.kind, delivery=1, answer=answer, error=error, duration_us=1
            )
        )

    def cancel(self, reason: str = "no longer needed") -> "Supervised":
        """Somebody asks for the task to be cancelled."""
        return self.when(TaskCancelRequested(reason=reason))


def types_of(log: Sequence[AgentEvent]) -> list[str]:
    """The types of a log's events."""
    return [event.type for event in log]
