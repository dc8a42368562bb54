"""The LLM service that agents use: tiers with fallbacks, our own retries, and a record of every attempt (row A6).

The text that users write stays in user messages: only an agent's own `system` argument becomes a system message.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

from handlers.journal import Journal
from handlers.prices import PriceTable
from handlers.provider import Provider, ProviderAnswer, ProviderFailureError
from schemas.bodies import LlmAttempted
from schemas.content import canonical_json, content_hash
from schemas.errors import ConfigurationError, InvalidInputError, ProviderError
from schemas.money import CostStatus, TokenCounts, plain

Tier = Literal["fast", "reasoning"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long one model is tried before the tier's next one."""

    attempts_per_model: int = 4
    base_delay_ms: int = 500
    max_delay_ms: int = 20_000
    timeout_s: float = 60.0

    def delay_s(self, failed: int, retry_after_s: float | None) -> float:
        """Seconds to wait after `failed` failures: doubling, or what the provider asks for, up to the maximum."""
        backoff: float = self.base_delay_ms * 2 ** (failed - 1) / 1000
        return min(max(backoff, retry_after_s or 0.0), self.max_delay_ms / 1000)


@dataclass(frozen=True, slots=True)
class LlmService:
    """What a worker needs to make LLM requests: the provider, the models of each tier in order, and prices."""

    provider: Provider
    tiers: Mapping[str, Sequence[str]]
    prices: PriceTable
    retry: RetryPolicy = field(default_factory=RetryPolicy)


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer. `cost_usd` is None when the model has no price (`cost_status` "unpriced")."""

    text: str
    model: str
    tokens: TokenCounts
    cost_usd: Decimal | None
    cost_status: CostStatus


@dataclass(frozen=True, slots=True)
class _Request:
    ordinal: int
    tier: str
    messages: list[dict[str, Any]]
    params: dict[str, Any]

    @property
    def content(self) -> dict[str, Any]:
        return {"messages": self.messages}

    def hash(self) -> str:
        return content_hash(canonical_json([self.tier, self.messages, self.params]))[:24]


class LlmClient:
    """`context.llm`: the LLM service in the name of one call."""

    def __init__(self, service: LlmService, journal: Journal) -> None:
        self._service = service
        self._journal = journal

    async def complete(
        self,
        prompt: str | Sequence[dict[str, Any]],
        *,
        system: str | None = None,
        tier: Tier = "fast",
        temperature: float | None = None,
        max_tokens: int | None = None,
        **params: Any,
    ) -> Completion:
        """Ask a model of `tier`. `prompt` is a user's text, or a list of messages in OpenAI's form.

        Rate limits, timeouts and server errors are retried with backoff, then the tier's next model is asked. After a
        crash, the recorded answer is returned and nothing is paid twice.

        Raises:
            ProviderError: every model of the tier failed; the text has the last reason.
        """
        if not isinstance(prompt, str) and any(message.get("role") == "system" for message in prompt):
            raise InvalidInputError("pass the system prompt as system=…; messages may not have the role 'system'")
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        given = {"temperature": temperature, "max_tokens": max_tokens, **params}
        request = _Request(
            self._journal.next_ordinal(), tier, messages, {k: v for k, v in given.items() if v is not None}
        )
        done, earlier = self._replay(request)
        if done is not None:
            return await self._from_record(done)
        return await self._run(request, earlier)

    def _replay(self, request: _Request) -> tuple[LlmAttempted | None, list[LlmAttempted]]:
        events = [e for e in self._journal.recorded(request.ordinal) if isinstance(e.body, LlmAttempted)]
        earlier = [e.body for e in events if isinstance(e.body, LlmAttempted)]
        for event, body in zip(events, earlier, strict=True):
            if body.status == "ok" and body.request_hash == request.hash():
                self._journal.reuse(event)
                return body, earlier
        return None, earlier

    async def _from_record(self, body: LlmAttempted) -> Completion:
        response = await self._journal.resolve(body.response)
        assert body.tokens is not None, "an attempt recorded as ok has tokens"
        cost = None if body.cost_usd is None else Decimal(body.cost_usd)
        model = body.answered_model or body.requested_model
        return Completion(response["text"], model, body.tokens, cost, body.cost_status)

    async def _run(self, request: _Request, earlier: list[LlmAttempted]) -> Completion:
        models = self._service.tiers.get(request.tier)
        if not models:
            raise ConfigurationError(
                f"tier {request.tier!r} has no models: set HEADWATER_{request.tier.upper()}_MODELS"
            )
        attempt = max((body.attempt for body in earlier), default=0)
        lost = self._journal.lost_delivery()
        if lost is not None:
            attempt += 1
            await self._journal.record_attempt(self._unknown(request, models[0], attempt, lost))
        failure: ProviderFailureError | None = None
        for model in models:
            for failed in range(1, self._service.retry.attempts_per_model + 1):
                attempt += 1
                completion, failure = await self._attempt(request, model, attempt, bool(earlier))
                if completion is not None:
                    return completion
                assert failure is not None
                if failure.action != "retry" or failed == self._service.retry.attempts_per_model:
                    break
                await asyncio.sleep(self._service.retry.delay_s(failed, failure.retry_after_s))
            if failure is not None and failure.action == "give_up":
                break
        raise ProviderError(f"{', '.join(models)}: {failure} ({attempt} attempts)") from failure

    async def _attempt(
        self, request: _Request, model: str, attempt: int, after_crash: bool
    ) -> tuple[Completion | None, ProviderFailureError | None]:
        journal = self._journal
        started_at, clock = datetime.now(UTC), time.perf_counter_ns()
        failure: ProviderFailureError | None = None
        answer: ProviderAnswer | None = None
        try:
            answer = await self._service.provider.complete(
                model,
                request.messages,
                request.params,
                attempt_id=journal.attempt_id(request.ordinal, attempt),
                agent_id=journal.call.agent_id,
                timeout_s=self._service.retry.timeout_s,
            )
        except ProviderFailureError as error:
            failure = error
        finally:
            duration_us = (time.perf_counter_ns() - clock) // 1000
        diverged = after_crash and any(
            e.body.request_hash != request.hash()
            for e in journal.recorded(request.ordinal)
            if isinstance(e.body, LlmAttempted)
        )
        base = self._base(request, model, attempt) | {
            "started_at": started_at,
            "ended_at": datetime.now(UTC),
            "duration_us": duration_us,
            "diverged": diverged,
        }
        if answer is None:
            assert failure is not None
            await journal.record_attempt(LlmAttempted(**base, **_failed(failure)))
            return None, failure
        body = LlmAttempted(**base, **self._answered(model, answer))
        await journal.record_attempt(body)
        journal.answered_live = True
        cost = None if body.cost_usd is None else Decimal(body.cost_usd)
        return Completion(answer.text, answer.model or model, answer.tokens, cost, body.cost_status), None

    def _base(self, request: _Request, model: str, attempt: int) -> dict[str, Any]:
        return {
            "call_id": self._journal.call.call_id,
            "ordinal": request.ordinal,
            "attempt": attempt,
            "delivery": self._journal.delivery.delivery,
            "agent_id": self._journal.call.agent_id,
            "tier": request.tier,
            "requested_model": model,
            "params": request.params,
            "request_hash": request.hash(),
            "request": request.content,
        }

    def _answered(self, model: str, answer: ProviderAnswer) -> dict[str, Any]:
        rates = self._service.prices.rates(model)
        return {
            "status": "ok",
            "answered_model": answer.model,
            "provider_response_id": answer.response_id,
            "http_status": 200,
            "response": {"text": answer.text, "finish_reason": answer.finish_reason},
            "tokens": answer.tokens,
            "tokens_source": "provider",
            "rates": self._service.prices.rate_texts(model),
            "price_table": None if rates is None else self._service.prices.sha256,
            "cost_usd": None if rates is None else plain(rates.cost_usd(answer.tokens)),
            "cost_status": "unpriced" if rates is None else "priced",
            "reported_cost_usd": answer.reported_cost_usd,
        }

    def _unknown(self, request: _Request, model: str, attempt: int, delivery: int) -> LlmAttempted:
        """The attempt that an earlier delivery may have sent before its worker died."""
        now = datetime.now(UTC)
        lost = {
            "delivery": delivery,
            "status": "unknown",
            "error_class": "WorkerLost",
            "error": f"the worker of delivery {delivery} died; whether it sent this request is not known",
            "started_at": now,
            "ended_at": now,
            "duration_us": 0,
            "cost_status": "unknown",
        }
        return LlmAttempted(**(self._base(request, model, attempt) | lost))


def _failed(failure: ProviderFailureError) -> dict[str, Any]:
    refused = failure.outcome == "error"
    return {
        "status": failure.outcome,
        "http_status": failure.http_status,
        "error_class": failure.error_class,
        "error": str(failure)[:500],
        "cost_status": "not_billed" if refused else "unknown",
        "cost_usd": "0" if refused else None,
    }
