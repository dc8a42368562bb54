"""What a model answered, as an agent gets it."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Generic

from typing_extensions import TypeVar

from schemas.bodies import LlmAttempted
from schemas.content import Json
from schemas.money import CostStatus, TokenCounts

T = TypeVar("T", default=None)


@dataclass(frozen=True, slots=True)
class Completion(Generic[T]):
    """An answer.

    `cost_usd` is None when the model has no price (`cost_status` "unpriced"), or when the provider did not say what it
    used (`tokens` is None then, and `cost_status` "unknown"). `parsed` is the answer as the pydantic model that was
    asked for, None if none was.
    """

    text: str
    model: str
    tokens: TokenCounts | None
    cost_usd: Decimal | None
    cost_status: CostStatus
    parsed: T
    finish_reason: str | None = None
    tool_calls: Sequence[dict[str, Any]] = ()


def completion_of(body: LlmAttempted, response: Json) -> Completion:
    """The answer that an attempt recorded; `response` is the recorded one, read in full."""
    return Completion(
        text=response["text"],
        model=body.answered_model or body.requested_model,
        tokens=body.tokens,
        cost_usd=None if body.cost_usd is None else Decimal(body.cost_usd),
        cost_status=body.cost_status,
        parsed=None,
        finish_reason=response.get("finish_reason"),
        tool_calls=response.get("tool_calls", ()),
    )
