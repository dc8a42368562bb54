"""Judging a handoff (contract rows C1 and C3). Pure: what the models say about it comes in as an answer."""

from dataclasses import dataclass
from typing import Literal

from handlers.answers import CheckAnswer
from handlers.state import OpenCall
from handlers.strictness import FailPolicy, ValidationStrictness
from handlers.team import Team
from schemas.bodies import HandoffAccepted, HandoffRejected
from schemas.handoff import LOW_CONFIDENCE, HandoffProposal, structural_problems

Verification = Literal["verified", "unverified", "not_required"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the checks of a handoff came to: accepted when there are no reasons against it."""

    reasons: tuple[str, ...] = ()
    failed_check: Literal["structural", "semantic"] = "structural"
    verification: Verification = "not_required"
    warnings: tuple[str, ...] = ()


def judge_structure(tenant_id: str, call: OpenCall, payload: HandoffProposal, team: Team) -> list[str]:
    """Every reason against the form of a handoff: its own rules, and that it says what the log knows."""
    reasons = structural_problems(payload)
    if payload.tenant_id != tenant_id:
        reasons.append(f"tenant {payload.tenant_id!r} is not {tenant_id!r}, whose task this is")
    if payload.source_agent_id != call.agent_id:
        reasons.append(f"source agent {payload.source_agent_id!r} is not {call.agent_id!r}, which proposed it")
    if payload.call_chain != call.call_chain:
        reasons.append(f"call chain {list(payload.call_chain)} is not the recorded one, {list(call.call_chain)}")
    if payload.target_agent_id not in team.registry:
        known = ", ".join(a.agent_id for a in team.registry)
        reasons.append(f"target agent {payload.target_agent_id!r} is not registered; there are: {known}")
    return reasons


def verified(answer: CheckAnswer | None, why_not: str, policy: FailPolicy) -> Verdict:
    """The verdict of the semantic check. Without an answer the policy decides, and nothing is called verified."""
    if answer is None:
        text = f"the semantic check could not run: {why_not}"
        if policy is FailPolicy.FAIL_CLOSED:
            return Verdict((text,), failed_check="semantic", verification="unverified")
        return Verdict(verification="unverified", warnings=(text,))
    if answer.grounded:
        return Verdict(verification="verified")
    reasons = tuple(answer.reasons) or ("the model found it ungrounded and gave no reason",)
    return Verdict(reasons, failed_check="semantic", verification="verified")


def accepted(
    proposal_id: str | None,
    sender: OpenCall,
    payload: HandoffProposal,
    strictness: ValidationStrictness,
    verdict: Verdict,
    *,
    call_id: str,
) -> HandoffAccepted:
    """The event of a handoff that goes through, to the call `call_id`."""
    low = payload.confidence < LOW_CONFIDENCE
    return HandoffAccepted(
        proposal_event_id=proposal_id,
        source_agent_id=sender.agent_id,
        target_agent_id=payload.target_agent_id,
        payload_type=payload.payload_type,
        strictness=strictness.value,
        checks=("structural", "semantic") if verdict.verification == "verified" else ("structural",),
        verification=verdict.verification,
        warnings=(*verdict.warnings, *([f"confidence {payload.confidence} is under {LOW_CONFIDENCE}"] if low else [])),
        call_id=call_id,
    )


def rejected(
    proposal_id: str | None,
    sender: OpenCall,
    payload: HandoffProposal,
    strictness: ValidationStrictness,
    verdict: Verdict,
    *,
    returned_to: Literal["sender", "supervisor"],
    call_id: str | None = None,
) -> HandoffRejected:
    """The event of a handoff that does not; `call_id` is the sender's chance to repair it."""
    return HandoffRejected(
        proposal_event_id=proposal_id,
        source_agent_id=sender.agent_id,
        target_agent_id=payload.target_agent_id,
        payload_type=payload.payload_type,
        strictness=strictness.value,
        reasons=verdict.reasons,
        failed_check=verdict.failed_check,
        verification=verdict.verification,
        returned_to=returned_to,
        call_id=call_id,
    )
