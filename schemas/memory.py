"""A memory: a fact that an agent learned and stored (contract row D2)."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from schemas.ids import TenantId


class MemoryEntry(BaseModel):
    """A memory as a search finds it. `event_id` is the `memory.stored` event that it came from: its provenance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant_id: TenantId
    event_id: str
    agent_id: str
    session_id: str
    task_id: str
    text: str
    metadata: dict[str, Any] = Field(default_factory=dict)
    at: datetime
    embedder: str
    score: float
    """Cosine similarity to what was asked, from -1 to 1."""
