"""Handoffs: what an agent proposes, and what a well-formed one is (contract rows C1 and C2, structural part)."""

from math import isfinite
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, model_validator

from schemas.content import Json
from schemas.ids import AgentId, TenantId

MAX_CHAIN_LENGTH = 32
LOW_CONFIDENCE = 0.5


class HandoffProposal(BaseModel):
    """A handoff as an agent wrote it. Any values: whether it is well-formed is decided, and recorded, afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_agent_id: str
    target_agent_id: str
    tenant_id: str
    payload_type: str
    content: Json
    confidence: float
    call_chain: tuple[str, ...]
    reason: str = ""

    @field_serializer("confidence", when_used="json")
    def _confidence(self, value: float) -> float | str:
        # JSON has no NaN; as null it could not be read back, and nobody could say what was wrong with the handoff.
        return value if isfinite(value) else str(value)


class HandoffPayload(BaseModel):
    """A well-formed handoff: construction raises a `ValidationError` with one error per broken rule.

    `source_agent_id` is in `call_chain`, `target_agent_id` is not (no cycles), `confidence` is within 0..1, and the
    chain has at most 32 agents, the target not counted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source_agent_id: AgentId
    target_agent_id: AgentId
    tenant_id: TenantId
    payload_type: Annotated[str, Field(min_length=1, max_length=64)]
    content: Json
    confidence: Annotated[float, Field(ge=0, le=1)]
    call_chain: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_CHAIN_LENGTH)]
    reason: str = ""

    @model_validator(mode="after")
    def _chain(self) -> "HandoffPayload":
        problems = []
        if self.source_agent_id not in self.call_chain:
            problems.append(f"source agent {self.source_agent_id!r} is not in the call chain {list(self.call_chain)}")
        if self.target_agent_id in self.call_chain:
            problems.append(
                f"target agent {self.target_agent_id!r} is already in the call chain {list(self.call_chain)}: "
                "handing back would be a cycle"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


def structural_problems(proposal: HandoffProposal) -> list[str]:
    """What is wrong with the form of `proposal`, one sentence each; empty if it is a `HandoffPayload`."""
    try:
        HandoffPayload.model_validate(proposal.model_dump())
    except ValidationError as error:
        return [
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" if e["loc"] else e["msg"].removeprefix("Value error, ")
            for e in error.errors(include_url=False, include_input=False, include_context=False)
        ]
    return []
