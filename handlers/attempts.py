"""The attempts of an LLM request: which model is tried when, and the record of each, whatever became of it (row A6)."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from handlers.journal import Journal
from handlers.prices import PriceTable
from handlers.provider import Provider, ProviderAnswer, ProviderVectors
from handlers.provider_errors import ProviderFailureError
from schemas.bodies import BudgetExceeded, LlmAttempted
from schemas.content import Json, canonical_json, content_hash
from schemas.errors import BudgetExceededError, ConfigurationError, ProviderError
from schemas.money import plain
from schemas.plurals import counted

EMBEDDING = "embedding"
"""The tier that attempts at embeddings are recorded under."""
WORKER_LOST = "WorkerLost"
JITTER = 0.1
"""A wait is up to this much longer, so that agents that failed together do not come back together."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long one model is tried before the tier's next one.

    `timeout_s` bounds an answer, and for a stream the wait for each of its pieces.
    """

    attempts_per_model: int = 4
    base_delay_ms: int = 500
    max_delay_ms: int = 20_000
    timeout_s: float = 60.0
    max_retry_after_s: float = 60.0
    """A provider that asks for a longer wait is not waited for: the next model is tried."""

    def delay_s(self, failed: int, retry_after_s: float | None) -> float:
        """Seconds to wait at least after `failed` failures: doubling to the maximum, or what the provider asks for."""
        backoff: float = min(self.base_delay_ms * 2 ** (failed - 1), self.max_delay_ms) / 1000
        return max(backoff, retry_after_s or 0.0)


@dataclass(frozen=True, slots=True)
class LlmService:
    """What a worker needs to make LLM requests: the provider, the models of each tier in order, and prices.

    The tier "embedding" has the model for embeddings, if there is one.
    """

    provider: Provider
    tiers: Mapping[str, Sequence[str]]
    prices: PriceTable
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    def models(self, tier: str) -> Sequence[str]:
        """The models of a tier. Raises `ConfigurationError` if it has none."""
        models = self.tiers.get(tier)
        if not models:
            raise ConfigurationError(f"tier {tier!r} has no models: set HEADWATER_{tier.upper()}_MODELS")
        return models


@dataclass(frozen=True, slots=True)
class Request:
    """A logical request of an agent: the same at every attempt, and when the agent is run again."""

    ordinal: int
    tier: str
    content: dict[str, Json]
    """`{"messages": […]}`, or `{"input": [text, …]}` for embeddings."""
    params: dict[str, Any]
    hash: str

    @classmethod
    def of(cls, ordinal: int, tier: str, content: dict[str, Json], params: dict[str, Any]) -> "Request":
        """A request. Raises `InvalidInputError` if JSON cannot express it."""
        (asked,) = content.values()
        return cls(ordinal, tier, content, params, content_hash(canonical_json([tier, asked, params]))[:24])


class Tries:
    """Which model is tried next, and when none is any more."""

    def __init__(self, policy: RetryPolicy, tier: str, models: Sequence[str], number: int) -> None:
        self.number = number
        """The number of the attempt at hand, over all models and deliveries, from 1."""
        self._policy = policy
        self._tier = tier
        self._models = models
        self._index = 0
        self._failed = 0
        self._reasons: dict[str, str] = {}

    @property
    def model(self) -> str:
        """The model to try."""
        return self._models[self._index]

    async def after(self, failure: ProviderFailureError) -> None:
        """Wait for the next try, of this model or the next. Raises `ProviderError` when there is none."""
        policy = self._policy
        self._failed += 1
        self._reasons[self.model] = f"{self.model}: {str(failure)[:300]}"
        too_long = (failure.retry_after_s or 0.0) > policy.max_retry_after_s
        if too_long:
            self._reasons[self.model] += f" (it asks to wait for {failure.retry_after_s:.0f} s)"
        if failure.action == "retry" and self._failed < policy.attempts_per_model and not too_long:
            delay_s = policy.delay_s(self._failed, failure.retry_after_s)
            await asyncio.sleep(delay_s * random.uniform(1, 1 + JITTER))
        elif failure.action != "give_up" and self._index + 1 < len(self._models):
            self._index += 1
            self._failed = 0
        else:
            reasons = "; ".join(self._reasons.values())
            raise ProviderError(
                f"tier {self._tier!r} gave no answer in {counted(self.number, 'attempt')}. {reasons}"
            ) from failure
        self.number += 1


class Attempts:
    """The attempts of one call, on record in its journal."""

    def __init__(self, service: LlmService, journal: Journal) -> None:
        self.service = service
        self.journal = journal

    def finished(self, request: Request) -> LlmAttempted | None:
        """The attempt that answered this request in an earlier delivery: it is not sent again."""
        for event in self.journal.recorded(request.ordinal):
            body = event.body
            if isinstance(body, LlmAttempted) and body.request_hash == request.hash and _replayable(body):
                self.journal.reuse(event)
                return body
        return None

    async def begin(self, request: Request, models: Sequence[str]) -> Tries:
        """The tries of a request that is to be sent. Lists the attempt that a dead worker may have sent for it."""
        earlier = [e.body for e in self.journal.recorded(request.ordinal) if isinstance(e.body, LlmAttempted)]
        number = max((body.attempt for body in earlier), default=0) + 1
        tries = Tries(self.service.retry, request.tier, models, number)
        lost = self.journal.lost_delivery()
        if lost is not None:
            self.journal.check_lease()
            await Attempt(self, request, tries).lost(lost)
            tries.number += 1
        return tries

    async def open(self, request: Request, tries: Tries) -> "Attempt":
        """The attempt to make now.

        Raises:
            StaleLeaseError: this worker may have lost the call meanwhile.
            BudgetExceededError: the task has spent its budget.
        """
        if self.journal.call.budget_usd is not None:
            await self._check_budget(request, tries.model, Decimal(self.journal.call.budget_usd))
        self.journal.check_lease()
        return Attempt(self, request, tries)

    async def _check_budget(self, request: Request, model: str, budget_usd: Decimal) -> None:
        """What is in flight is not known yet: a task may go over its budget by the requests that it makes at once."""
        unpriced = self.service.prices.rates(model, output=request.tier != EMBEDDING) is None
        spent_usd = await self.journal.spent_usd()
        if not unpriced and spent_usd < budget_usd:
            return
        call = self.journal.call
        refusal = BudgetExceeded(
            call_id=call.call_id,
            ordinal=request.ordinal,
            delivery=self.journal.delivery.delivery,
            agent_id=call.agent_id,
            tier=request.tier,
            requested_model=model,
            because="unpriced" if unpriced else "spent",
            budget_usd=plain(budget_usd),
            spent_usd=plain(spent_usd),
        )
        await self.journal.record_refusal(refusal)
        if unpriced:
            raise BudgetExceededError(
                f"task {call.task_id} has a budget, and the price of {model} is not known: set HEADWATER_PRICES"
            )
        raise BudgetExceededError(f"task {call.task_id} has spent ${plain(spent_usd)} of ${plain(budget_usd)}")

    def models(self, tier: str) -> Sequence[str]:
        """The models of a tier for this call. Raises `ConfigurationError` if there are none."""
        return self.journal.call.models.get(tier) or self.service.models(tier)


class Attempt:
    """One attempt, from just before its request is sent until it is recorded."""

    def __init__(self, attempts: Attempts, request: Request, tries: Tries) -> None:
        self._service = attempts.service
        self._journal = attempts.journal
        self._request = request
        self._number = tries.number
        self.model = tries.model
        self.id = self._journal.attempt_id(request.ordinal, tries.number)
        self.params = self._service.prices.supported(self.model, request.params)
        self.first_token_at: datetime | None = None
        self._started_at, self._clock = datetime.now(UTC), time.perf_counter_ns()

    async def answered(self, answer: ProviderAnswer | ProviderVectors) -> LlmAttempted:
        """Record the answer, with its cost."""
        body = self._body(
            status="ok",
            answered_model=answer.model,
            provider_response_id=answer.response_id,
            http_status=200,
            response=answer.response,
            tokens=answer.tokens,
            tokens_source=None if answer.tokens is None else "provider",
            reported_cost_usd=answer.reported_cost_usd,
            **self._service.prices.charge(self.model, answer.tokens, output=self._request.tier != EMBEDDING),
        )
        await self._journal.record_attempt(body)
        self._journal.answered_live = True
        return body

    async def failed(self, failure: ProviderFailureError, response: Json = None) -> None:
        """Record that the provider refused, or that its answer broke off after `response`."""
        refused = failure.outcome == "error"
        body = self._body(
            status=failure.outcome,
            http_status=failure.http_status,
            error_class=failure.error_class,
            error=str(failure)[:500],
            response=response,
            cost_status="not_billed" if refused else "unknown",
            cost_usd="0" if refused else None,
        )
        await self._journal.record_attempt(body)

    async def left(self, reason: str, response: Json) -> None:
        """Record that the agent did not want the rest of its stream."""
        body = self._body(
            status="cancelled", error_class=LEFT, error=reason[:500], response=response, cost_status="unknown"
        )
        await self._journal.record_attempt(body)

    async def cancelled(self, response: Json = None) -> None:
        """Record that asyncio cancelled the request while it was in flight; to be called from the handler of that.

        A cancelled task is recorded at once: the lease is still held. Otherwise nobody knows yet what cancelled it. If
        it was the agent, with a timeout of its own, the record goes with its next fact. If it was the loss of the lease
        or the end of the process, there is no next fact, and the next delivery lists the attempt as unknown.
        """
        told = self._journal.delivery.cancelled
        reason = "the task was cancelled" if told else "the agent cancelled the request"
        body = self._body(
            status="cancelled", error_class="Cancelled", error=reason, response=response, cost_status="unknown"
        )
        if told:
            await self._journal.record_to_the_end(body)
        else:
            self._journal.set_aside(body)

    async def lost(self, delivery: int) -> None:
        """Record the attempt that an earlier delivery may have sent before its worker died."""
        body = self._body(
            delivery=delivery,
            status="unknown",
            error_class=WORKER_LOST,
            error=f"the worker of delivery {delivery} died; whether it sent this request is not known",
            cost_status="unknown",
        )
        await self._journal.record_attempt(body)

    def _body(self, **outcome: Any) -> LlmAttempted:
        request, journal = self._request, self._journal
        diverged = any(
            isinstance(event.body, LlmAttempted) and event.body.request_hash != request.hash
            for event in journal.recorded(request.ordinal)
        )
        known = {
            "call_id": journal.call.call_id,
            "ordinal": request.ordinal,
            "attempt": self._number,
            "delivery": journal.delivery.delivery,
            "agent_id": journal.call.agent_id,
            "tier": request.tier,
            "requested_model": self.model,
            "params": self.params,
            "request_hash": request.hash,
            "request": request.content,
            "started_at": self._started_at,
            "first_token_at": self.first_token_at,
            "ended_at": datetime.now(UTC),
            "duration_us": (time.perf_counter_ns() - self._clock) // 1000,
            "diverged": diverged,
        }
        return LlmAttempted(**(known | outcome))


def lost_with_its_worker(journal: Journal) -> LlmAttempted | None:
    """For a call that is not run again: the request that its last worker may have had in flight when it died.

    Which request it was is guessed from what was recorded before, so that its id is the one that was sent along; what
    it said, nobody knows any more.
    """
    lost = journal.lost_delivery()
    if lost is None:
        return None
    ordinal, last = journal.last_recorded() or (-1, None)
    failed = isinstance(last, LlmAttempted) and not _replayable(last)
    now = datetime.now(UTC)
    return LlmAttempted(
        call_id=journal.call.call_id,
        ordinal=ordinal if failed else ordinal + 1,
        attempt=last.attempt + 1 if isinstance(last, LlmAttempted) and failed else 1,
        delivery=lost,
        agent_id=journal.call.agent_id,
        tier="unknown",
        requested_model="unknown",
        params={},
        request_hash="",
        request=None,
        status="unknown",
        error_class=WORKER_LOST,
        error=f"the worker of delivery {lost} died; whether it had sent a request, and which, is not known",
        started_at=now,
        ended_at=now,
        duration_us=0,
        cost_status="unknown",
    )


LEFT = "StreamLeft"
"""`error_class` of a stream that its agent did not read to the end."""


def _replayable(body: LlmAttempted) -> bool:
    return body.status == "ok" or (body.status == "cancelled" and body.error_class == LEFT)
