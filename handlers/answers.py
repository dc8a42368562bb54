"""What a model answers to the supervisor's questions. The worker validates it, and so does the decider, again."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from schemas.bodies import Subtask


def _clamped(value: object) -> object:
    """A confidence out of range is brought into it: models say 95 and mean 0.95, or 1.2 and mean sure."""
    return min(1.0, max(0.0, float(value))) if isinstance(value, int | float) else value


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class RouteAnswer(_Answer):
    """Which agent gets the task."""

    agent_id: str
    confidence: Annotated[float, BeforeValidator(_clamped)] = 0.5
    reasoning: str = ""


class DecomposeAnswer(_Answer):
    """The steps of a task; `depends_on` has the 0-based indices of the steps whose results a step needs."""

    subtasks: tuple[Subtask, ...] = Field(min_length=1)
    reasoning: str = ""


class CheckAnswer(_Answer):
    """Is every claim of a handoff grounded in what its sender was given, and is it free of contradictions?"""

    grounded: bool
    reasons: tuple[str, ...] = ()


class SynthesisAnswer(_Answer):
    """One answer from the results of all steps; `sources` has the indices of the steps it rests on."""

    answer: str = Field(min_length=1)
    sources: tuple[int, ...] = ()
