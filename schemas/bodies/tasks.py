"""Tasks and what the supervisor decides about them."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from schemas.bodies.base import Content, EventBody, Microseconds, Ordinal, Question, RoutedBy
from schemas.ids import AgentId
from schemas.money import DecimalText


class TaskSubmitted(EventBody):
    """A producer handed in a task, and it was accepted."""

    type = "task.submitted"
    contents = ("text", "data")

    task_type: str
    text: Content
    data: Content = None
    idempotency_key: str | None = None


class TaskForked(EventBody):
    """Somebody had a task run again from one of its moments: this new task, in the origin's tenant and session.

    With `point`, it goes on from what the supervisor knew before that fact, and the fact is decided anew; without, it
    begins like a submitted task. It adds no messages to the session, and its costs are its own.
    """

    type = "task.forked"
    contents = ("text", "data")

    task_type: str
    text: Content
    data: Content = None
    origin_task_id: str
    origin_event_id: str | None = None
    """The origin's fact that is decided anew; None: from the start."""
    root_task_id: str
    """The submitted task at the root of all forks. Contexts show its place in the session."""
    state: dict[str, Any] | None = None
    """The origin's state before the point, with this task's ids. Its contents are inline or references."""
    point: dict[str, Any] | None = None
    """The fact at the point: {type, v, body}, with this task's call ids."""
    models: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Tier → models, in the place of the settings'."""
    budget_usd: DecimalText | None = None
    """No LLM request is begun once the task has cost this much."""
    lane: str | None = None
    """Not the running team decides on it and works on it, but one that serves this lane."""
    agents: str | None = None
    """That team, as it was named: module:object."""
    idempotency_key: str | None = None


class TaskResumed(EventBody):
    """A forked task takes up calls that were open at its point, beside what the fact there leads to."""

    type = "task.resumed"
    decision = True

    call_ids: tuple[str, ...]


class TaskRouted(EventBody):
    """The supervisor gave the task to an agent, for the reason stated, and ordered the call `call_id`."""

    type = "task.routed"
    decision = True

    agent_id: AgentId
    call_id: str
    routed_by: RoutedBy
    confidence: Annotated[float, Field(ge=0, le=1)]
    reasoning: str
    replaces_call_id: str | None = None
    """The failed call whose place this one takes, when `routed_by` is "backup"."""
    subtask: Ordinal | None = None
    """Index of the subtask that is routed, None for a whole task."""


class Subtask(BaseModel):
    """One step of a decomposed task; `depends_on` names by index the steps whose results it needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: Annotated[str, Field(min_length=1)]
    depends_on: tuple[Ordinal, ...] = ()


class TaskDecomposed(EventBody):
    """The supervisor split a task. Steps without open prerequisites run in parallel, each routed as a task is."""

    type = "task.decomposed"
    decision = True

    subtasks: tuple[Subtask, ...]
    reasoning: str = ""


class SupervisorAsked(EventBody):
    """The supervisor needs a judgement before it can go on, and ordered the call `call_id` for it.

    A model judges, or for "decide" the rules of another team, to whose lane a forked task was given.
    """

    type = "supervisor.asked"
    decision = True

    call_id: str
    question: Question
    subtask: Ordinal | None = None
    """Index of the subtask that is asked about, None for a whole task."""
    about_event_id: str | None = None
    """The `handoff.proposed` that is to be checked, or for "decide" the fact that is to be decided on."""


class SupervisorAnswered(EventBody):
    """A judgement came back: `answer` has it, or `error` says why there is none.

    The shape of `answer` by question: route {agent_id, confidence, reasoning}; decompose {subtasks, reasoning}; check
    {grounded, reasons}; synthesize {answer, sources}; decide {decisions: [{type, v, body, chain}, …]}.
    """

    type = "supervisor.answered"
    contents = ("answer",)

    call_id: str
    question: Question
    delivery: Ordinal
    answer: Content = None
    error: str | None = None
    duration_us: Microseconds


class TaskCompleted(EventBody):
    """The last agent of a task finished without handing over: the task has its result."""

    type = "task.completed"
    contents = ("result", "agent_results.*")
    decision = True
    terminal = True

    result: Content
    routed_by: RoutedBy
    decomposed: bool = False
    agent_results: dict[str, Content]
    fork_of: str | None = None
    """The task that this one was forked from."""


class AgentError(BaseModel):
    """One agent's share in a failed task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent_id: str
    error: str
    subtask: Ordinal | None = None


class TaskFailed(EventBody):
    """The supervisor gave the task up. `reason` is one sentence; `errors` has what each agent reported."""

    type = "task.failed"
    contents = ("agent_results.*",)
    decision = True
    terminal = True

    reason: str
    errors: tuple[AgentError, ...] = ()
    routed_by: RoutedBy | None = None
    decomposed: bool = False
    agent_results: dict[str, Content] = Field(default_factory=dict)
    fork_of: str | None = None
    """The task that this one was forked from."""


class TaskCancelRequested(EventBody):
    """Somebody asked for a task to be cancelled. Too late for a task that has ended."""

    type = "task.cancel_requested"

    reason: str = ""


class TaskCancelled(EventBody):
    """A task was given up on request: what had not started does not start, and what runs is told to stop."""

    type = "task.cancelled"
    contents = ("agent_results.*",)
    decision = True
    terminal = True

    reason: str = ""
    routed_by: RoutedBy | None = None
    decomposed: bool = False
    agent_results: dict[str, Content] = Field(default_factory=dict)
    fork_of: str | None = None
    """The task that this one was forked from."""
