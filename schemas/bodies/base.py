"""What every event's body is built on, and the words that several of them use."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.content import Json
from schemas.money import Count

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
