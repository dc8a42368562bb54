"""The checks of a handoff as one call, for code outside of the supervisor (contract row C3).

The supervisor itself judges handoffs by the same functions, with the semantic check as a call of its own, so that no
model is waited for while it decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from handlers.answers import CheckAnswer
from handlers.handoffs import Verification, verified
from handlers.semantic import SemanticValidator
from handlers.strictness import StrictnessConfig, ValidationStrictness
from schemas.content import Json
from schemas.errors import HandoffRejectedError, HeadwaterError
from schemas.handoff import LOW_CONFIDENCE, HandoffProposal, structural_problems

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HandoffResult:
    """What became of a handoff. `verification` is "unverified" when the semantic check was due and could not run."""

    accepted: bool
    strictness: ValidationStrictness
    verification: Verification
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class HandoffProtocol:
    """Structural check always; for STRICT payload types the semantic check too, where there is a validator."""

    def __init__(self, strictness: StrictnessConfig | None = None, validator: SemanticValidator | None = None) -> None:
        self._strictness = strictness or StrictnessConfig()
        self._validator = validator

    async def validate(self, proposal: HandoffProposal, context: Sequence[tuple[str, Json]] = ()) -> HandoffResult:
        """Check a handoff against what its sender was given, as (name, value) pairs."""
        strictness = self._strictness.strictness_of(proposal.payload_type, proposal.tenant_id)
        low = proposal.confidence < LOW_CONFIDENCE
        warnings = (f"confidence {proposal.confidence} is under {LOW_CONFIDENCE}",) if low else ()
        for warning in warnings:
            logger.warning("handoff_warning", tenant=proposal.tenant_id, warning=warning)
        reasons = tuple(structural_problems(proposal))
        if reasons:
            return HandoffResult(False, strictness, "not_required", reasons, warnings)
        if not self._strictness.needs_semantic_check(proposal.payload_type, proposal.tenant_id):
            return HandoffResult(True, strictness, "not_required", (), warnings)
        answer, why = await self._ask(proposal, context)
        verdict = verified(answer, why, self._strictness.on_unavailable(proposal.payload_type))
        return HandoffResult(
            not verdict.reasons, strictness, verdict.verification, verdict.reasons, (*warnings, *verdict.warnings)
        )

    async def require(self, proposal: HandoffProposal, context: Sequence[tuple[str, Json]] = ()) -> HandoffResult:
        """The same, for those who cannot go on with a rejected handoff. Raises `HandoffRejectedError`."""
        result = await self.validate(proposal, context)
        if not result.accepted:
            raise HandoffRejectedError(f"handoff rejected: {'; '.join(result.reasons)}", result)
        return result

    async def _ask(
        self, proposal: HandoffProposal, context: Sequence[tuple[str, Json]]
    ) -> tuple[CheckAnswer | None, str]:
        if self._validator is None:
            return None, "there is no validator"
        try:
            return await self._validator.validate(proposal, context), ""
        except HeadwaterError as error:
            return None, f"{type(error).__name__}: {error}"
