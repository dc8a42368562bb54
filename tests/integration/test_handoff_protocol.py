"""Handoffs judged by the protocol, with a model behind it: six ways to be malformed, three to be ungrounded (C3)."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from handlers.llm import LlmClient
from headwater import (
    AgentRegistration,
    BaseAgent,
    FailPolicy,
    HandoffProtocol,
    HandoffRejectedError,
    HandoffResult,
    HybridRouter,
    SemanticValidator,
    StrictnessConfig,
    Task,
    TaskContext,
    Team,
    ValidationStrictness,
)
from headwater.embedded import Endpoints
from headwater.testing import AnswerRule, Harness, running
from schemas.handoff import MAX_CHAIN_LENGTH, HandoffProposal

CONTEXT = [("order", {"id": 17, "total": "40 EUR", "status": "delivered"}), ("task", "Where is my order 17?")]
ANSWERS: list[AnswerRule | dict[str, Any]] = [
    {
        "system": "check a handoff",
        "user": "99 EUR",
        "json": {
            "grounded": False,
            "reasons": ["the amount of 99 EUR does not stand in the context, which has 40 EUR"],
        },
    },
    {
        "system": "check a handoff",
        "user": "delivered.*never delivered",
        "json": {"grounded": False, "reasons": ["'delivered' and 'never delivered' contradict each other"]},
    },
    {
        "system": "check a handoff",
        "user": "customer since",
        "json": {"grounded": False, "reasons": ["nothing says since when the person is a customer"]},
    },
    {"system": "check a handoff", "user": "gibberish|cannot be used", "answer": "I could not say"},
    {"system": "check a handoff", "json": {"grounded": True, "reasons": []}},
]


def proposal(**more: Any) -> HandoffProposal:
    fields: dict[str, Any] = {
        "source_agent_id": "a",
        "target_agent_id": "b",
        "tenant_id": "acme",
        "payload_type": "customer_info",
        "content": {"order": 17, "total": "40 EUR"},
        "confidence": 0.9,
        "call_chain": ("user", "supervisor", "a"),
    }
    return HandoffProposal(**fields | more)


class Judge(BaseAgent):
    """Runs the protocol with the LLM of its own call, so that each check is recorded and billed."""

    registration = AgentRegistration(agent_id="judge", name="Judge", description="judges")

    def __init__(self) -> None:
        super().__init__()
        self.proposal = proposal()
        self.strictness = StrictnessConfig()
        self.result: HandoffResult | None = None

    async def execute(self, task: Task, context: TaskContext) -> Any:
        """Judge what the test left here."""
        assert isinstance(context.llm, LlmClient)
        protocol = HandoffProtocol(self.strictness, SemanticValidator(context.llm))
        self.result = await protocol.validate(self.proposal, CONTEXT)
        return self.result.accepted


@pytest.fixture
async def judging(endpoints: Endpoints) -> AsyncIterator[tuple[Judge, Harness]]:
    judge = Judge()
    async with running(Team([judge], HybridRouter([lambda task: "judge"])), endpoints, answers=ANSWERS) as hw:
        yield judge, hw


async def judged(judging: tuple[Judge, Harness], **more: Any) -> HandoffResult:
    judge, hw = judging
    judge.proposal = proposal(**more)
    run = await hw.run_task("judge")
    assert run.outcome.status == "completed", run.outcome.error
    assert judge.result is not None
    return judge.result


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"source_agent_id": "z"}, "source agent 'z' is not in the call chain"),
        ({"target_agent_id": "supervisor"}, "handing back would be a cycle"),
        ({"tenant_id": ""}, "tenant id"),
        ({"confidence": 1.5}, "confidence"),
        ({"call_chain": (*(f"a{n}" for n in range(MAX_CHAIN_LENGTH)), "a")}, "call_chain"),
        ({"payload_type": ""}, "payload_type"),
    ],
)
async def test_a_malformed_handoff_is_rejected_and_no_model_is_asked(broken: dict[str, Any], reason: str) -> None:
    result = await HandoffProtocol().validate(proposal(**broken), CONTEXT)
    assert (result.accepted, result.verification) == (False, "not_required")
    assert any(reason in text for text in result.reasons), result.reasons
    with pytest.raises(HandoffRejectedError, match="handoff rejected") as caught:
        await HandoffProtocol().require(proposal(**broken))
    assert caught.value.result == result


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"total": "99 EUR"}, "99 EUR does not stand in the context"),
        ({"a": "it was delivered", "b": "it was never delivered"}, "contradict each other"),
        ({"note": "a customer since 2009"}, "nothing says since when"),
    ],
)
async def test_an_ungrounded_handoff_is_rejected_with_the_reason(
    judging: tuple[Judge, Harness], content: dict[str, Any], reason: str
) -> None:
    result = await judged(judging, content=content)
    assert (result.accepted, result.verification, result.strictness) == (
        False,
        "verified",
        ValidationStrictness.STRICT,
    )
    assert any(reason in text for text in result.reasons)


async def test_a_grounded_handoff_is_verified_and_low_confidence_is_a_warning(judging: tuple[Judge, Harness]) -> None:
    result = await judged(judging, confidence=0.2)
    assert (result.accepted, result.verification, result.reasons) == (True, "verified", ())
    assert result.warnings == ("confidence 0.2 is under 0.5",)


async def test_a_lenient_type_asks_no_model(judging: tuple[Judge, Harness]) -> None:
    result = await judged(judging, payload_type="status_update", content={"total": "99 EUR"})
    assert (result.accepted, result.verification) == (True, "not_required")
    assert judging[1].bill() == []


@pytest.mark.parametrize("policy", list(FailPolicy))
async def test_a_check_that_cannot_run_is_unverified(judging: tuple[Judge, Harness], policy: FailPolicy) -> None:
    judging[0].strictness = StrictnessConfig(on_unavailable={"customer_info": policy})
    result = await judged(judging, content={"note": "gibberish"})
    assert result.verification == "unverified"
    assert result.accepted is (policy is FailPolicy.FAIL_OPEN)
    assert "could not run" in "".join((*result.warnings, *result.reasons))
