"""A call: one piece of slow or outside work that a decision ordered and a worker executes."""

from pydantic import BaseModel, ConfigDict, Field

from schemas.content import Json
from schemas.handoff import HandoffProposal
from schemas.ids import AgentId, SessionId, TenantId
from schemas.task import Priority


class Call(BaseModel):
    """An agent run, as it waits on the tenant's queue for that agent.

    `call_chain` ends with the agent that is called. `text` and
    `data` are content: inline, or a blob reference that the worker resolves.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    call_id: str
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
    handoff: HandoffProposal | None = None
    repair_reasons: tuple[str, ...] = Field(default=())
    """Why the handoff that this agent proposed was rejected, when it is asked to repair it."""
