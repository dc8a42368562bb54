"""Tasks as producers hand them in and as agents and routing rules see them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from schemas.content import Json
from schemas.ids import IdempotencyKey, SessionId, TenantId

Priority = Literal["low", "normal", "high", "critical"]
PRIORITY_RANK: dict[str, int] = {"critical": 0, "high": 1, "normal": 2, "low": 3}

MAX_TEXT_CHARS = 1_000_000


class NewTask(BaseModel):
    """One line of a task file: what a producer submits. Unknown fields are refused, so that typos are noticed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant: TenantId
    session: SessionId
    text: str = Field(min_length=1, max_length=MAX_TEXT_CHARS)
    type: str = Field(default="task", min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")
    data: dict[str, Any] | None = None
    priority: Priority = "normal"
    idempotency_key: IdempotencyKey | None = None

    @field_validator("text")
    @classmethod
    def _utf8(cls, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"is not valid Unicode (a lone surrogate at character {error.start})") from error
        return text


class Task(BaseModel):
    """A task as a routing rule or an agent gets it, with its content read in full."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant_id: TenantId
    session_id: SessionId
    task_id: str
    type: str
    text: str
    data: dict[str, Any] = Field(default_factory=dict)
    priority: Priority = "normal"
    subtask: int | None = None
    """Index of the step, when this is one step of a decomposed task; `text` is then the step's description."""


class Accepted(BaseModel):
    """What a producer gets back: the task's id, its position in the log, and whether it was there already."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant_id: TenantId
    session_id: SessionId
    task_id: str
    position: str
    duplicate: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it, on the command line and over HTTP."""
        return _named(self.model_dump(mode="json"))


class TaskOutcome(BaseModel):
    """How a task ended. `cost_usd` is left out here: the ledger knows it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant_id: TenantId
    task_id: str
    status: Literal["completed", "failed", "cancelled"]
    result: Json = None
    error: str | None = None
    call_chain: tuple[str, ...]
    routed_by: str | None = None
    decomposed: bool = False
    agent_results: dict[str, Json] = Field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it, on the command line: a part of what a task is there."""
        return _named(self.model_dump(mode="json"))


def _named(fields: dict[str, Any]) -> dict[str, Any]:
    """In JSON, what a task belongs to is named as in the log's entries and in task files: tenant, session, task."""
    return {name.removesuffix("_id"): value for name, value in fields.items()}
