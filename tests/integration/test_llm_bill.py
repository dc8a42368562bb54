"""A run with everything in it, through a real worker: each attempt's cost follows from its fields, and is as billed."""

import asyncio
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from pydantic import BaseModel

from headwater import AgentRegistration, BaseAgent, HybridRouter, Task, TaskContext, Team
from headwater.embedded import Endpoints
from headwater.testing import FaultRule, running
from schemas.bodies import LlmAttempted
from schemas.errors import ProviderError

pytestmark = [
    pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
]

TENANTS = ("acme", "globex")
TASKS_EACH = 10
CLASSES = ("input_uncached", "cache_read", "cache_write", "output_text", "output_reasoning")
FAULTS = [
    FaultRule(
        model="fast|reasoning|embed",
        rate_429=0.08,
        rate_500=0.08,
        rate_quota=0.06,
        rate_drop=0.04,
        rate_drop_billed=0.06,
        rate_malformed=0.06,
        retry_after_s=0,
    )
]


class Answer(BaseModel):
    """What the agent wants to have parsed."""

    answer: str


class Worker(BaseAgent):
    """Asks in every way there is; what fails is part of the run."""

    registration = AgentRegistration(agent_id="worker", name="Worker", description="works", max_concurrent_tasks=8)

    async def execute(self, task: Task, context: TaskContext) -> dict[str, Any]:
        """Six requests, one of them left in the middle."""
        failed = 0
        for ask in (self._plain, self._reason, self._parse, self._read, self._leave, self._embed):
            try:
                await ask(task.text, context)
            except ProviderError:
                failed += 1
        return {"failed": failed}

    async def _plain(self, text: str, context: TaskContext) -> None:
        await context.llm.complete(text, system="You help.", temperature=0)

    async def _reason(self, text: str, context: TaskContext) -> None:
        await context.llm.complete(text, tier="reasoning")

    async def _parse(self, text: str, context: TaskContext) -> None:
        await context.llm.complete(text, response_model=Answer)

    async def _read(self, text: str, context: TaskContext) -> None:
        async with context.llm.stream(text, tier="reasoning") as stream:
            async for _ in stream:
                pass
        assert stream.completion.text == stream.text

    async def _leave(self, text: str, context: TaskContext) -> None:
        async with context.llm.stream(text) as stream:
            async for _ in stream:
                break

    async def _embed(self, text: str, context: TaskContext) -> None:
        await context.llm.embed([text, f"{text} again"], model="openai/sim-embed")


def recomputed(attempt: LlmAttempted) -> Fraction | None:
    """The cost from nothing but the attempt's own fields."""
    if attempt.tokens is None or attempt.rates is None:
        return None
    return sum((Fraction(attempt.rates[name]) * getattr(attempt.tokens, name) for name in CLASSES), Fraction(0))


def assert_as_billed(attempt: LlmAttempted, entry: dict[str, Any]) -> None:
    """An attempt that was answered, and its entry in the bill, which the simulator reckons for itself."""
    tokens = attempt.tokens
    assert tokens is not None
    assert entry["prompt_tokens"] == tokens.input_total
    assert entry["cached_tokens"] == tokens.cache_read
    assert entry["completion_tokens"] == tokens.output_text + tokens.output_reasoning
    assert entry["reasoning_tokens"] == tokens.output_reasoning
    if entry["usd"] is None:
        assert (attempt.cost_status, attempt.cost_usd) == ("unpriced", None)
    else:
        assert attempt.cost_usd is not None
        assert Decimal(entry["usd"]) == Decimal(attempt.cost_usd)
        assert Fraction(attempt.cost_usd) == recomputed(attempt)


async def test_every_attempt_of_a_run_is_as_billed(endpoints: Endpoints) -> None:
    team = Team(agents=[Worker()], router=HybridRouter(rules=[lambda task: "worker"]))
    models = ("openai/sim-fast", "openai/sim-second")
    async with running(team, endpoints, faults=FAULTS, seed=11, fast_models=models, llm_attempts=3) as hw:
        texts = [(t, f"Question {n} of {t}: {'word ' * (n % 5)}") for t in TENANTS for n in range(TASKS_EACH)]
        runs = await asyncio.gather(*(hw.run_task(text, tenant=tenant) for tenant, text in texts))
        bill = {entry["attempt_id"]: entry for entry in hw.bill()}
        assert len(bill) == len(hw.bill())
        logs = {tenant: await hw.events(tenant) for tenant in TENANTS}
    assert all(run.outcome.status == "completed" for run in runs)
    attempts = {e.id: e.body for log in logs.values() for e in log if isinstance(e.body, LlmAttempted)}
    assert bill.keys() <= attempts.keys()
    listed = Decimal(0)
    for event_id, attempt in attempts.items():
        entry = bill.get(event_id)
        if attempt.status == "ok":
            assert entry is not None
            assert_as_billed(attempt, entry)
            continue
        assert attempt.tokens is None
        if attempt.status == "error":
            assert entry is None
            assert (attempt.cost_status, attempt.cost_usd) == ("not_billed", "0")
        else:
            assert (attempt.cost_status, attempt.cost_usd) == ("unknown", None)
            listed += Decimal(entry["usd"] or 0) if entry else 0
    # The whole: what was computed, and what is listed as unknown, is the bill. What tasks say they cost is the former.
    computed = sum((Decimal(a.cost_usd or 0) for a in attempts.values()), Decimal(0))
    assert computed + listed == sum((Decimal(e["usd"] or 0) for e in bill.values()), Decimal(0))
    assert computed == sum((run.cost_usd for run in runs), Decimal(0)) > 0
    assert_all_kinds(list(attempts.values()))


def assert_all_kinds(attempts: list[LlmAttempted]) -> None:
    """Nothing of what the test is about was missing from the run."""
    ok = [a for a in attempts if a.status == "ok" and a.tokens is not None]
    kinds: Counter[str] = Counter([*(a.status for a in attempts), *(a.cost_status for a in attempts)])
    kinds.update(a.tier for a in ok)
    kinds["streamed"] = sum(a.first_token_at is not None for a in ok)
    kinds["cached"] = sum(a.tokens.cache_read > 0 for a in ok if a.tokens)
    kinds["thought"] = sum(a.tokens.output_reasoning > 0 for a in ok if a.tokens)
    kinds["cut off"] = sum(a.status == "unknown" and a.first_token_at is not None for a in attempts)
    least = {"ok": 60, "error": 8, "unknown": 8, "cancelled": 8, "unpriced": 1, "embedding": 12, "reasoning": 20}
    least |= {"streamed": 8, "cached": 10, "thought": 20, "cut off": 1}
    assert {kind: kinds[kind] for kind, count in least.items() if kinds[kind] < count} == {}
