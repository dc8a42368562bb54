"""Handoffs: what an agent proposed, and what the supervisor made of it."""

from typing import Literal

from schemas.bodies.base import EventBody
from schemas.handoff import HandoffProposal


class HandoffProposed(EventBody):
    """An agent ended its turn by handing its work to another agent."""

    type = "handoff.proposed"
    contents = ("payload.content",)

    call_id: str
    payload: HandoffProposal
    given: tuple[str, ...] = ()
    """Positions in the log of what the agent was given while it worked: contexts, steps and answers (row C3)."""


class HandoffAccepted(EventBody):
    """A proposed handoff passed every check, and the call `call_id` to its target was ordered."""

    type = "handoff.accepted"
    decision = True

    proposal_event_id: str | None = None
    """The `handoff.proposed` that was judged; None stands for the event's own parent."""
    source_agent_id: str
    target_agent_id: str
    payload_type: str
    strictness: Literal["strict", "lenient"]
    checks: tuple[str, ...]
    """The checks that ran and passed: "structural", "semantic"."""
    verification: Literal["verified", "unverified", "not_required"] = "not_required"
    """Of the semantic check. "unverified": it was required and could not run; the policy let the handoff pass."""
    warnings: tuple[str, ...] = ()
    call_id: str


class HandoffRejected(EventBody):
    """A proposed handoff broke a rule. `returned_to` says who gets it back: the sender, once, then the supervisor."""

    type = "handoff.rejected"
    decision = True

    proposal_event_id: str | None = None
    """The `handoff.proposed` that was judged; None stands for the event's own parent."""
    source_agent_id: str
    target_agent_id: str
    payload_type: str
    strictness: Literal["strict", "lenient"]
    reasons: tuple[str, ...]
    failed_check: Literal["structural", "semantic"] = "structural"
    verification: Literal["verified", "unverified", "not_required"] = "not_required"
    """"unverified": the semantic check could not run, and the policy for this payload type is to fail closed."""
    returned_to: Literal["sender", "supervisor"]
    call_id: str | None = None
