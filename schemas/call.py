"""A call: one piece of slow or outside work that a decision ordered and a worker executes."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.content import Json
from schemas.handoff import HandoffProposal
from schemas.ids import AgentId, SessionId, TenantId
from schemas.money import DecimalText
from schemas.task import Priority

CallKind = Literal["agent", "route", "decompose", "check", "synthesize", "decide"]
"""An agent's run, or a question of the supervisor's: to a model, or to the rules of the team that serves a lane."""


class SubtaskResult(BaseModel):
    """What a step of a decomposed task came to, as it is passed on to later steps and to the synthesis."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subtask: int
    description: str
    agent_id: AgentId
    result: Json


class Undecided(BaseModel):
    """A fact that the team of a lane is to decide on: the supervisor's `state` before it, and its entry in the log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: dict[str, Any] | None
    entry: dict[str, str]


class Call(BaseModel):
    """A call, as it waits on the tenant's queue for its agent (the supervisor's questions wait for "supervisor").

    `call_chain` ends with the agent that is called. `text` and `data` are content: inline, or a blob reference that
    the worker resolves. For a step of a decomposed task, `text` is the step's description and `whole_text` the task's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    call_id: str
    kind: CallKind = "agent"
    ordered_by: str
    """The id of the event that ordered this call: the cause of everything that the agent does."""
    agent_id: AgentId
    tenant_id: TenantId
    session_id: SessionId
    task_id: str
    priority: Priority
    call_chain: tuple[str, ...]
    task_type: str
    text: Json
    data: Json = None
    subtask: int | None = None
    whole_text: Json = None
    results: tuple[SubtaskResult, ...] = ()
    """Results of the steps that this one depends on; for a synthesis, of all steps."""
    handoff: HandoffProposal | None = None
    """The handoff that started this run; for a check, the one to be checked."""
    received: HandoffProposal | None = None
    """For a check: the handoff that had started the sender's run, if one had."""
    given: tuple[str, ...] = ()
    """For a check: positions in the log of what the sender was given."""
    repair_reasons: tuple[str, ...] = Field(default=())
    """Why the handoff that this agent proposed was rejected, when it is asked to repair it."""
    models: dict[str, tuple[str, ...]] = {}
    """Tier → models, where a forked task has others than the settings."""
    budget_usd: DecimalText | None = None
    """What its task may cost: no LLM request is begun once so much was spent."""
    undecided: Undecided | None = None
    """For the question "decide": what is to be decided on."""
    root_task_id: str | None = None
    """For a forked task: the submitted one, whose place in the session it has."""
