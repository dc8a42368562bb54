"""The events, one frozen class each. A class's docstring says when the event happens; docs/events.md is made from it.

A stored event is never edited. A change of meaning is a new `version` here and an upcaster in `schemas/upcast.py`.
`Content` fields hold any JSON value, or a reference to a blob when the value is large (`schemas/content.py`).
Durations are microseconds, so that sums over them are exact.
"""

from schemas.bodies.base import Content, EventBody, Microseconds, Ordinal, Question, RoutedBy
from schemas.bodies.context import ContextCompiled, MemoryStored, SessionCleared, SessionStateSet
from schemas.bodies.handoffs import HandoffAccepted, HandoffProposed, HandoffRejected
from schemas.bodies.parked import EventDropped, EventParked, EventRedriven
from schemas.bodies.runs import (
    AgentCancelled,
    AgentCompleted,
    AgentFailed,
    AgentStarted,
    BudgetExceeded,
    LlmAttempted,
    StepRecorded,
)
from schemas.bodies.tasks import (
    AgentError,
    Subtask,
    SupervisorAnswered,
    SupervisorAsked,
    TaskCancelled,
    TaskCancelRequested,
    TaskCompleted,
    TaskDecomposed,
    TaskFailed,
    TaskForked,
    TaskResumed,
    TaskRouted,
    TaskSubmitted,
)

__all__ = [
    "BODIES",
    "DECISIONS",
    "TERMINAL",
    "AgentCancelled",
    "AgentCompleted",
    "AgentError",
    "AgentFailed",
    "AgentStarted",
    "BudgetExceeded",
    "Content",
    "ContextCompiled",
    "EventBody",
    "EventDropped",
    "EventParked",
    "EventRedriven",
    "HandoffAccepted",
    "HandoffProposed",
    "HandoffRejected",
    "LlmAttempted",
    "MemoryStored",
    "Microseconds",
    "Ordinal",
    "Question",
    "RoutedBy",
    "SessionCleared",
    "SessionStateSet",
    "StepRecorded",
    "Subtask",
    "SupervisorAnswered",
    "SupervisorAsked",
    "TaskCancelRequested",
    "TaskCancelled",
    "TaskCompleted",
    "TaskDecomposed",
    "TaskFailed",
    "TaskForked",
    "TaskResumed",
    "TaskRouted",
    "TaskSubmitted",
]

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
        BudgetExceeded,
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
