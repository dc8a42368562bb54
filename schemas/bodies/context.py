"""What agents are given and what is remembered: contexts, memories, and the state of sessions (rows D1 to D3)."""

from typing import Annotated, Any

from pydantic import Field

from schemas.bodies.base import Content, EventBody, Microseconds, Ordinal
from schemas.ids import AgentId
from schemas.money import Count


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
