"""A session as agents and producers see it (contract row D1)."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.content import Json
from schemas.ids import SessionId, TenantId

Role = Literal["user", "assistant"]


class SessionMessage(BaseModel):
    """One message of a session: what was asked, or what a task came to. `content` is read in full."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    content: Json
    task_id: str
    position: str
    """Place in the log of the event that the message comes from."""


class Session(BaseModel):
    """A session since it was last cleared: its messages, oldest first, and its state."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant_id: TenantId
    session_id: SessionId
    messages: tuple[SessionMessage, ...] = ()
    state: dict[str, Json] = Field(default_factory=dict)
    cleared_at: datetime | None = None
