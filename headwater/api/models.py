"""What goes in and out over HTTP. What comes out may gain fields; what goes in may have no others than these."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from schemas.content import Json
from schemas.ids import IdempotencyKey, SessionId
from schemas.task import MAX_TEXT_CHARS, Priority

_TASK_ID = "019abc0d4f2a6b1c9e8d7f60"
_POSITION = "1732450000000-0"
TASK_ID_PATTERN = r"^[!-~]{1,64}$"
SESSION_ID_PATTERN = r"^[^\x00-\x1f\x7f]{1,128}$"
POSITION_PATTERN = r"^[0-9]{1,18}(-[0-9]{1,18})?$"
Position = Annotated[str, StringConstraints(pattern=POSITION_PATTERN)]


class TaskIn(BaseModel):
    """A task to be worked on. Its tenant is the key's."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "session": "ticket-4711",
                    "type": "billing",
                    "text": "I was charged twice in March. Please check invoice 2024-031.",
                    "data": {"invoice": "2024-031"},
                    "priority": "high",
                }
            ]
        },
    )

    session: SessionId = Field(
        description="The conversation that it belongs to: 1 to 128 characters, none of them control characters.",
        json_schema_extra={"pattern": SESSION_ID_PATTERN},
    )
    text: str = Field(min_length=1, max_length=MAX_TEXT_CHARS, description="What is to be done.")
    type: str = Field(
        default="task",
        min_length=1,
        max_length=64,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="What kind of task it is; routing rules go by it.",
    )
    data: dict[str, Any] | None = Field(default=None, description="Whatever goes with it.")
    priority: Priority = "normal"
    idempotency_key: IdempotencyKey | None = Field(
        default=None,
        description="The same as the header Idempotency-Key, so that a line of a task file can be sent as it is.",
        json_schema_extra={"anyOf": [{"type": "string", "pattern": "^[!-~]{1,200}$"}, {"type": "null"}]},
    )
    tenant: str | None = Field(
        default=None, description="May be left out. Any other than the key's tenant is refused with 403."
    )


class AcceptedOut(BaseModel):
    """A task that was accepted, now or before."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "tenant": "acme",
                    "session": "ticket-4711",
                    "task": _TASK_ID,
                    "position": _POSITION,
                    "duplicate": False,
                }
            ]
        }
    )

    tenant: str
    session: str
    task: str
    position: Position = Field(description="Its place in the tenant's log.")
    duplicate: bool = Field(description="True: its idempotency key was known, and nothing new was submitted.")


TaskStatus = Literal["submitted", "running", "completed", "failed", "cancelled"]


class TaskOut(BaseModel):
    """A task, its outcome and its exact cost."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "tenant": "acme",
                    "session": "ticket-4711",
                    "task": _TASK_ID,
                    "type": "billing",
                    "priority": "high",
                    "status": "completed",
                    "result": {"answer": "The second charge is refunded."},
                    "call_chain": ["user", "supervisor", "triage", "writer"],
                    "routed_by": "rules",
                    "decomposed": False,
                    "agent_results": {"writer": {"answer": "The second charge is refunded."}},
                    "error": None,
                    "errors": [],
                    "submitted_at": "2026-11-25T02:00:00Z",
                    "ended_at": "2026-11-25T02:00:03.120000Z",
                    "fork_of": None,
                    "cost_usd": "0.000412",
                    "llm_attempts": 2,
                    "unpriced_attempts": 0,
                    "unknown_attempts": 0,
                }
            ]
        },
    )

    tenant: str
    session: str
    task: str
    type: str
    priority: Priority
    status: TaskStatus | str
    result: Json = None
    call_chain: list[str] | None = None
    routed_by: str | None = None
    decomposed: bool = False
    agent_results: dict[str, Json] = {}
    error: Json = None
    errors: list[Json] = []
    submitted_at: str | None = None
    ended_at: str | None = None
    fork_of: str | None = Field(default=None, description="The task that this one was forked from.")
    cost_usd: str | None = Field(default=None, description="Exact decimal, in US dollars; null until it is known.")
    llm_attempts: int | None = None
    unpriced_attempts: int | None = None
    unknown_attempts: int | None = None


class CancelIn(BaseModel):
    """Why a task is to be cancelled."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "the customer called"}]})

    reason: str = Field(default="", max_length=2000)


class CancelOut(BaseModel):
    """What became of a request to cancel."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"task": _TASK_ID, "status": "running"}]})

    task: str
    status: TaskStatus | str = Field(description="How the task stood when it was asked.")


class SessionOut(BaseModel):
    """A session with its messages and its tasks."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "tenant": "acme",
                    "session": "ticket-4711",
                    "first_at": "2026-11-25T02:00:00Z",
                    "last_at": "2026-11-25T02:00:03.120000Z",
                    "messages": [
                        {"position": _POSITION, "role": "user", "task": _TASK_ID, "content": "I was charged twice."}
                    ],
                    "tasks": [{"task": _TASK_ID, "status": "completed", "type": "billing"}],
                    "cost_usd": "0.000412",
                }
            ]
        },
    )

    tenant: str
    session: str
    first_at: str | None = None
    last_at: str | None = None
    messages: list[dict[str, Json]]
    tasks: list[dict[str, Json]]
    cost_usd: str | None = None


class ClearedOut(BaseModel):
    """A session that was cleared."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [{"session": "ticket-4711"}]})

    session: str
    position: str = Field(description="Place of the `session.cleared` in the log.", examples=[_POSITION])


class EventOut(BaseModel):
    """One fact of the log, as it is stored. A large content is a reference `{"$blob": …, "bytes": …}`."""

    model_config = ConfigDict(extra="allow")

    position: Position = Field(examples=[_POSITION])
    tenant: str = Field(examples=["acme"])
    id: str
    type: str = Field(examples=["task.submitted"])
    v: int = Field(examples=[1])
    session: str = Field(examples=["ticket-4711"])
    task: str = Field(examples=[_TASK_ID])
    priority: str = Field(examples=["normal"])
    source: str = Field(examples=["user"])
    chain: str = Field(examples=["user"], description="Agent ids, joined with '>'.")
    parent: str = Field(description="Id of the event that caused it; empty for what a producer wrote.")
    at: str = Field(examples=["2026-11-25T02:00:00.000000Z"])
    body: dict[str, Json]


class UnreadableOut(BaseModel):
    """An entry of the log that is no event."""

    position: Position
    error: str


class EventsOut(BaseModel):
    """A page of the log."""

    events: list[EventOut]
    unreadable: list[UnreadableOut] = []
    last: Position = Field(description="Go on after this position.", examples=[_POSITION])
    next: str | None = Field(
        description="Where the next page is, if there is one already.", examples=[f"/v1/events?after={_POSITION}"]
    )


class CostsOut(BaseModel):
    """Costs of one tenant, or for an operator of all, the dearest first."""

    tenant: str | None = Field(examples=["acme"])
    by: str = Field(examples=["agent"])
    days: int = Field(examples=[30])
    rows: list[dict[str, Json]] = Field(
        examples=[[{"agent": "writer", "cost_usd": "0.0123", "tokens": 4100, "attempts": 12, "failed": 1}]]
    )


class DecisionOut(BaseModel):
    """What one event led to, and cost."""

    model_config = ConfigDict(extra="allow")

    tenant: str = Field(examples=["acme"])
    event: str
    type: str = Field(examples=["task.routed"])
    task: str = Field(examples=[_TASK_ID])
    at: str
    cost_usd: str = Field(examples=["0.0123"])
    agents: list[dict[str, Json]]


class DeadLetterOut(BaseModel):
    """An entry or a call that could not be handled. `fields` are the entry's own, as they are stored."""

    model_config = ConfigDict(extra="allow")

    id: str = Field(examples=[_POSITION])
    tenant: str = Field(examples=["acme"])
    parked_at: str = Field(examples=["2026-11-25T02:00:00Z"])
    reader: str = Field(examples=["decider"])
    position: str = Field(examples=[_POSITION], description="Its place in the log; empty for a call.")
    attempts: int = Field(examples=[4])
    error: str = Field(examples=["LookupError: no such customer"])
    event: str = Field(description="The event's id.")
    event_type: str = Field(examples=["task.submitted"])
    session: str = Field(examples=["ticket-4711"])
    task: str = Field(examples=[_TASK_ID])
    call: str | None = Field(default=None, description="The call's id, if it is one.")
    fields: dict[str, str]


class DeadLettersOut(BaseModel):
    """A page of dead letters, oldest first."""

    dead_letters: list[DeadLetterOut]
    next: str | None = Field(description="Where the next page is, if there is one.")


class MemoryOut(BaseModel):
    """A fact that an agent stored. `event` is the id of the event that it came from."""

    model_config = ConfigDict(extra="allow")

    tenant: str = Field(examples=["acme"])
    event: str
    agent: str = Field(examples=["researcher"])
    session: str = Field(examples=["ticket-4711"])
    task: str = Field(examples=[_TASK_ID])
    text: str = Field(examples=["The customer pays by invoice."])
    metadata: dict[str, Json] = {}
    at: str = Field(examples=["2026-11-25T02:00:00Z"])
    embedder: str
    score: float = Field(description="Cosine similarity to what was asked, from -1 to 1.", examples=[0.83])


class MemoriesOut(BaseModel):
    """Memories, the most relevant first."""

    memories: list[MemoryOut]
