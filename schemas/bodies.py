"""The events, one frozen class each. A class's docstring says when the event happens; docs/events.md is made from it.

A stored event is never edited. A change of meaning is a new `version` here and an upcaster in `schemas/upcast.py`.
`Content` fields hold any JSON value, or a reference to a blob when the value is large (`schemas/content.py`).
Durations are microseconds, so that sums over them are exact.
"""

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.content import Json
from schemas.handoff import HandoffProposal
from schemas.ids import AgentId
from schemas.money import CostStatus, Count, DecimalText, TokenCounts

Content = Json
Microseconds = Count
Ordinal = Annotated[int, Field(ge=0, le=2**31 - 1)]
RoutedBy = Literal["rules", "llm", "backup"]
Question = Literal["route", "decompose", "check", "synthesize", "decide"]
"""What the supervisor asks a model: who does it, in which steps, is a handoff grounded, what do the results say."""


class EventBody(BaseModel):
    """Base of every event body: frozen, no unknown fields, an explicit type name and version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: ClassVar[str]
    version: ClassVar[int] = 1
    decision: ClassVar[bool] = False
    """True for what a decider writes. Re-running the deciders gives exactly these events again (I5)."""
    terminal: ClassVar[bool] = False
    """True for the three ways a task can end (I1)."""
    contents: ClassVar[tuple[str, ...]] = ()
    """Where content stands that becomes a blob when it is large: a field, `field.*` for each value of a map, or
    `field.key`. Every other field stays inline."""
    needs_task: ClassVar[bool] = True
    """False for what can happen outside any task: its event's task id may be empty."""


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


class AgentStarted(EventBody):
    """A worker began to run an agent. `delivery` counts how often this call was given out, from 1."""

    type = "agent.started"

    agent_id: AgentId
    call_id: str
    delivery: Ordinal
    worker: str


class AgentCompleted(EventBody):
    """An agent's run ended without an error. With `handed_over`, a `handoff.proposed` follows and `result` is null.

    Version 1 had the duration as `seconds`, a float; version 2 has whole microseconds.
    """

    type = "agent.completed"
    contents = ("result",)
    version = 2

    agent_id: AgentId
    call_id: str
    delivery: Ordinal
    result: Content = None
    handed_over: bool = False
    duration_us: Microseconds


class AgentFailed(EventBody):
    """An agent's run ended with an error, or every worker that tried it died."""

    type = "agent.failed"

    agent_id: AgentId
    call_id: str
    delivery: Ordinal
    error_class: str
    error: str
    duration_us: Microseconds


class AgentCancelled(EventBody):
    """An agent's run was stopped because its task had ended."""

    type = "agent.cancelled"

    agent_id: AgentId
    call_id: str
    delivery: Ordinal
    duration_us: Microseconds


class LlmAttempted(EventBody):
    """One request to an LLM provider ended: answered, refused, cancelled, or with an outcome nobody knows.

    `ordinal` numbers the logical requests of a call from 0, `attempt` the tries of one logical request from 1. An
    attempt whose answer was not read to its end (timeout, dropped connection, dead worker) is `unknown`: the provider
    may have billed it.
    """

    type = "llm.attempted"
    needs_task = False
    contents = ("request", "response", "params.*")

    call_id: str
    ordinal: Ordinal
    attempt: Ordinal
    delivery: Ordinal
    agent_id: AgentId
    tier: str
    requested_model: str
    answered_model: str | None = None
    params: dict[str, Any]
    request_hash: str
    request: Content
    response: Content = None
    status: Literal["ok", "error", "cancelled", "unknown"]
    provider_response_id: str | None = None
    http_status: Ordinal | None = None
    error_class: str | None = None
    error: str | None = None
    started_at: datetime
    first_token_at: datetime | None = None
    ended_at: datetime
    duration_us: Microseconds
    tokens: TokenCounts | None = None
    tokens_source: Literal["provider"] | None = None
    rates: dict[str, str] | None = None
    price_table: str | None = None
    """SHA-256 of the price table that `rates` came from."""
    cost_usd: DecimalText | None = None
    """Exact decimal, computed here from `tokens` and `rates`."""
    cost_status: CostStatus
    reported_cost_usd: DecimalText | None = None
    """What LiteLLM says it cost; kept apart, for audit only."""
    diverged: bool = False
    """True when an earlier run had recorded another request at this ordinal, so this one ran live."""


class StepRecorded(EventBody):
    """An agent's durable step finished. Run again after a crash, the agent gets this result instead of a second run."""

    type = "step.recorded"
    contents = ("result",)

    call_id: str
    ordinal: Ordinal
    delivery: Ordinal
    agent_id: AgentId
    name: str
    request_hash: str
    result: Content
    duration_us: Microseconds
    diverged: bool = False
    """True when an earlier run had recorded another request at this ordinal, so this one ran live."""


class ContextCompiled(EventBody):
    """A context was put together for an agent's LLM request, within the token budget of its tier (row D3)."""

    type = "context.compiled"
    contents = ("context",)

    call_id: str
    ordinal: Ordinal
    delivery: Ordinal
    agent_id: AgentId
    tier: str
    budget_tokens: Count
    token_usage: dict[str, Count]
    """Tokens per part: system, session, memories, task; and their total."""
    token_counter: str
    """What counted: `tiktoken:<encoding>`, or the name of a counter that is never too low."""
    dropped: dict[str, Count]
    """How many messages and memories did not fit."""
    context: Content
    """What the agent was given: {system, session, memories, task}."""
    request_hash: str
    duration_us: Microseconds
    diverged: bool = False


class MemoryStored(EventBody):
    """An agent stored a fact to remember (row D2). The embedding is kept, so that a rebuild pays for nothing."""

    type = "memory.stored"
    contents = ("text", "embedding")
    needs_task = False

    call_id: str
    ordinal: Ordinal
    delivery: Ordinal
    agent_id: AgentId
    text: Content
    metadata: dict[str, Any] = Field(default_factory=dict)
    embedder: str
    dimensions: Ordinal
    embedding: Content
    """Base64 of little-endian 32-bit floats."""
    request_hash: str
    duration_us: Microseconds
    diverged: bool = False


class SessionStateSet(EventBody):
    """An agent set a value in its session's state (row D1); null takes the key away."""

    type = "session.state_set"
    contents = ("value",)

    call_id: str
    ordinal: Ordinal
    delivery: Ordinal
    agent_id: AgentId
    key: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
    value: Content = None
    request_hash: str
    diverged: bool = False


class SessionCleared(EventBody):
    """Somebody cleared a session: its messages and state so far are not part of any later context (row D1)."""

    type = "session.cleared"
    needs_task = False

    reason: str = ""


class HandoffProposed(EventBody):
    """An agent ended its turn by handing its work to another agent."""

    type = "handoff.proposed"
    contents = ("payload.content",)

    call_id: str
    payload: HandoffProposal
    given: tuple[str, ...] = ()
    """Positions in the log of what the agent was given while it worked: contexts, steps and answers (row C3)."""


class HandoffAccepted(EventBody):
    """A proposed handoff passed every check, and the call `call_id` to its target was ordered."""

    type = "handoff.accepted"
    decision = True

    proposal_event_id: str | None = None
    """The `handoff.proposed` that was judged; None stands for the event's own parent."""
    source_agent_id: str
    target_agent_id: str
    payload_type: str
    strictness: Literal["strict", "lenient"]
    checks: tuple[str, ...]
    """The checks that ran and passed: "structural", "semantic"."""
    verification: Literal["verified", "unverified", "not_required"] = "not_required"
    """Of the semantic check. "unverified": it was required and could not run; the policy let the handoff pass."""
    warnings: tuple[str, ...] = ()
    call_id: str


class HandoffRejected(EventBody):
    """A proposed handoff broke a rule. `returned_to` says who gets it back: the sender, once, then the supervisor."""

    type = "handoff.rejected"
    decision = True

    proposal_event_id: str | None = None
    """The `handoff.proposed` that was judged; None stands for the event's own parent."""
    source_agent_id: str
    target_agent_id: str
    payload_type: str
    strictness: Literal["strict", "lenient"]
    reasons: tuple[str, ...]
    failed_check: Literal["structural", "semantic"] = "structural"
    verification: Literal["verified", "unverified", "not_required"] = "not_required"
    """"unverified": the semantic check could not run, and the policy for this payload type is to fail closed."""
    returned_to: Literal["sender", "supervisor"]
    call_id: str | None = None


class EventParked(EventBody):
    """An entry was given up after every retry, or a call after it killed its workers: a person has to look at it.

    It stands on the tenant's dead-letter stream; what comes later in its task waits behind it. `call_id` is set for a
    call, which nothing waits behind: its task went on with the agent's failure.
    """

    type = "event.parked"

    reader: str
    position: str
    """Of the entry that could not be handled; for a call, empty."""
    event_id: str
    event_type: str
    attempts: Ordinal
    error: str
    call_id: str | None = None


class EventRedriven(EventBody):
    """Somebody had a parked entry handled again, and after it what waited behind it."""

    type = "event.redriven"

    parked_id: str
    reader: str
    position: str
    event_id: str
    event_type: str


class EventDropped(EventBody):
    """Somebody gave a parked entry up for good: it is never handled, and its task fails if it is still open."""

    type = "event.dropped"

    parked_id: str
    reader: str
    position: str
    event_id: str
    event_type: str
    error: str
    """Why it was parked."""
    reason: str = ""
    """Why it was dropped."""


BODIES: dict[str, type[EventBody]] = {
    body.type: body
    for body in (
        TaskSubmitted,
        TaskForked,
        TaskResumed,
        TaskCancelRequested,
        TaskRouted,
        TaskDecomposed,
        TaskCompleted,
        TaskFailed,
        TaskCancelled,
        SupervisorAsked,
        SupervisorAnswered,
        AgentStarted,
        AgentCompleted,
        AgentFailed,
        AgentCancelled,
        LlmAttempted,
        StepRecorded,
        ContextCompiled,
        MemoryStored,
        SessionStateSet,
        SessionCleared,
        HandoffProposed,
        HandoffAccepted,
        HandoffRejected,
        EventParked,
        EventRedriven,
        EventDropped,
    )
}
"""Every event type that can stand in a log, by its name."""

DECISIONS = frozenset(name for name, body in BODIES.items() if body.decision)
TERMINAL = frozenset(name for name, body in BODIES.items() if body.terminal)
