"""One event that the supervisor decides on, what it goes by, and what a decision is. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from handlers.state import SUPERVISOR, TaskState
from handlers.strictness import StrictnessConfig
from handlers.team import Team
from schemas.bodies import AgentError, EventBody, Question, Subtask, SupervisorAsked, TaskFailed
from schemas.content import resolve
from schemas.event import AgentEvent
from schemas.ids import derived_id
from schemas.task import Task

USER = "user"


@dataclass(frozen=True, slots=True)
class Decision:
    """An event to be appended, with the chain of the call that it orders (or of the task's end)."""

    body: EventBody
    call_chain: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """What the supervisor goes by: the team, and how closely handoffs are checked."""

    team: Team
    strictness: StrictnessConfig


@dataclass(frozen=True, slots=True)
class Case:
    """One event to decide on, with the state before it and all that may be looked at."""

    state: TaskState
    event: AgentEvent
    rules: Rules
    blobs: Mapping[str, bytes]

    def call_id(self, *which: int | str) -> str:
        """The id of a call that is ordered because of this event."""
        return derived_id(self.event.id, "call", *which)

    def task(self, step: Subtask | None = None, index: int | None = None) -> Task:
        """The task, or one of its steps, as routing rules see it."""
        state = self.state
        return Task(
            tenant_id=state.tenant_id,
            session_id=state.session_id,
            task_id=state.task_id,
            type=state.task_type,
            text=resolve(state.text, self.blobs) if step is None else step.description,
            data=resolve(state.data, self.blobs) or {},
            priority=state.priority,
            subtask=index,
        )

    def ask(
        self, question: Question, *which: int | str, subtask: int | None = None, about: str | None = None
    ) -> Decision:
        """Order a question to a model."""
        asked = SupervisorAsked(call_id=self.call_id(*which), question=question, subtask=subtask, about_event_id=about)
        return Decision(asked, (USER, SUPERVISOR))

    def fail(self, reason: str, errors: tuple[AgentError, ...] = (), chain: tuple[str, ...] | None = None) -> Decision:
        """Give the task up."""
        failed = TaskFailed(
            reason=reason,
            errors=errors,
            routed_by=self.state.routed_by,
            decomposed=self.state.decomposed,
            agent_results=dict(self.state.agent_results),
            fork_of=self.state.fork_of,
        )
        return Decision(failed, chain or (USER, SUPERVISOR))
