"""The structural check of a handoff (row C1): each way to be malformed is named."""

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.handoff import MAX_CHAIN_LENGTH, HandoffPayload, HandoffProposal, structural_problems


def proposal(**more: Any) -> HandoffProposal:
    fields: dict[str, Any] = {
        "source_agent_id": "triage",
        "target_agent_id": "writer",
        "tenant_id": "acme",
        "payload_type": "research_result",
        "content": {"notes": "found"},
        "confidence": 0.9,
        "call_chain": ("user", "supervisor", "triage"),
    }
    return HandoffProposal(**fields | more)


CHAIN = ("user", *(f"a{n}" for n in range(MAX_CHAIN_LENGTH - 2)), "triage")


@pytest.mark.parametrize(
    "fine",
    [
        {},
        {"confidence": 0},
        {"confidence": 1},
        {"content": None},
        {"call_chain": ("triage",)},
        {"call_chain": CHAIN},
        {"reason": "because"},
    ],
)
def test_a_well_formed_handoff_has_no_problems(fine: dict[str, Any]) -> None:
    assert structural_problems(proposal(**fine)) == []
    HandoffPayload.model_validate(proposal(**fine).model_dump())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"source_agent_id": "clerk"}, "source agent 'clerk' is not in the call chain"),
        ({"target_agent_id": "supervisor"}, "'supervisor' is already in the call chain"),
        ({"target_agent_id": "triage"}, "handing back would be a cycle"),
        ({"tenant_id": ""}, "tenant_id: "),
        ({"tenant_id": "a:b"}, "tenant id 'a:b' is not allowed"),
        ({"confidence": 1.01}, "confidence: "),
        ({"confidence": -0.1}, "confidence: "),
        ({"confidence": float("nan")}, "confidence: "),
        ({"confidence": float("inf")}, "confidence: "),
        ({"call_chain": (*CHAIN, "more")}, "call_chain: "),
        ({"call_chain": ()}, "call_chain: "),
        ({"payload_type": ""}, "payload_type: "),
        ({"payload_type": "x" * 65}, "payload_type: "),
        ({"source_agent_id": "no id!"}, "source_agent_id: "),
        ({"target_agent_id": ""}, "target_agent_id: "),
    ],
)
def test_each_way_to_be_malformed_is_named(wrong: dict[str, Any], said: str) -> None:
    problems = structural_problems(proposal(**wrong))
    assert len(problems) == 1
    assert said in problems[0]
    with pytest.raises(ValidationError):
        HandoffPayload.model_validate(proposal(**wrong).model_dump())


def test_all_problems_are_named_at_once() -> None:
    problems = structural_problems(proposal(tenant_id="", confidence=7, payload_type=""))
    assert sorted(p.partition(":")[0] for p in problems) == ["confidence", "payload_type", "tenant_id"]
    [both] = structural_problems(proposal(source_agent_id="clerk", target_agent_id="user"))
    assert "'clerk'" in both
    assert "'user'" in both


def test_a_long_chain_is_bounded_without_the_target() -> None:
    assert len(CHAIN) == MAX_CHAIN_LENGTH
    assert structural_problems(proposal(call_chain=CHAIN)) == []
