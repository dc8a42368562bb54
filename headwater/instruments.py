"""Instruments for code of one's own that runs agents or models outside of Headwater's log.

What runs on the log is measured by projecting the log, and needs none of this. A script or a service beside it can
measure its own runs under the same names, in a registry of its own process:

    async with track_agent_invocation("summarizer", "acme"):
        async with track_llm_call("openai/gpt-4o-mini", "acme", agent_id="summarizer") as call:
            answer = await ask()
            call.answered(tokens=TokenCounts(input_uncached=120, output_text=40), cost_usd=Decimal("0.00004"))

    prometheus_client.start_http_server(9100, registry=process_registry())

The registry is never part of the application's /metrics, so nothing is counted twice; in Prometheus the two are told
apart by their job and instance.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Histogram

from projections.metric_names import BUCKETS_US, MAX_AGENTS, MAX_MODELS, METRICS, OTHER
from schemas.money import TokenCounts

MAX_TENANTS = 100
"""Tenants with labels of their own in one process; the rest are `_other`."""


@dataclass(slots=True)
class LlmCall:
    """What `track_llm_call` hands out: say what the provider answered, before the block ends."""

    tokens: TokenCounts | None = None
    cost_usd: Decimal | None = None

    def answered(self, *, tokens: TokenCounts | None = None, cost_usd: Decimal | None = None) -> None:
        """Tokens by disjoint class, and the cost in US dollars; None for what is not known."""
        self.tokens, self.cost_usd = tokens, cost_usd


@dataclass(slots=True)
class _Bounded:
    """The first `limit` values of a label are shown, the rest are `_other`."""

    limit: int
    known: set[str] = field(default_factory=set)

    def label(self, value: str) -> str:
        if value not in self.known:
            if len(self.known) >= self.limit:
                return OTHER
            self.known.add(value)
        return value


class Instruments:
    """The metrics of agents and models in one registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._tenants, self._agents, self._models = _Bounded(MAX_TENANTS), _Bounded(MAX_AGENTS), _Bounded(MAX_MODELS)
        self._invocations = self._counter("agent_invocations_total")
        self._invocation_s = self._histogram("agent_invocation_duration_seconds")
        self._requests = self._counter("llm_requests_total")
        self._request_s = self._histogram("llm_request_duration_seconds")
        self._tokens = self._counter("llm_tokens_used_total")
        self._cost_usd = self._counter("llm_cost_usd_total")

    def _counter(self, name: str) -> Counter:
        return Counter(name, METRICS[name].help, METRICS[name].labels, registry=self.registry)

    def _histogram(self, name: str) -> Histogram:
        buckets = [bound / 1_000_000 for bound in BUCKETS_US]
        return Histogram(name, METRICS[name].help, METRICS[name].labels, buckets=buckets, registry=self.registry)

    @contextlib.asynccontextmanager
    async def track_agent_invocation(self, agent_id: str, tenant_id: str) -> AsyncIterator[None]:
        """Count and time one run of an agent: ok, error if the block raises, cancelled if it is cancelled."""
        agent, tenant = self._agents.label(agent_id), self._tenants.label(tenant_id)
        clock, status = time.perf_counter(), "error"
        try:
            yield
            status = "ok"
        except asyncio.CancelledError:
            status = "cancelled"
            raise
        finally:
            self._invocations.labels(agent, tenant, status).inc()
            self._invocation_s.labels(agent, tenant).observe(time.perf_counter() - clock)

    @contextlib.asynccontextmanager
    async def track_llm_call(self, model: str, tenant_id: str, *, agent_id: str = "_none") -> AsyncIterator[LlmCall]:
        """Count and time one request to a model, with the tokens and the cost that `answered` was told."""
        name, tenant, agent = self._models.label(model), self._tenants.label(tenant_id), self._agents.label(agent_id)
        clock, status, call = time.perf_counter(), "error", LlmCall()
        try:
            yield call
            status = "ok"
        except asyncio.CancelledError:
            status = "cancelled"
            raise
        finally:
            self._requests.labels(name, tenant, status).inc()
            self._request_s.labels(name, tenant).observe(time.perf_counter() - clock)
            for token_type, count in call.tokens or ():
                self._tokens.labels(name, tenant, token_type).inc(count)
            if call.cost_usd is not None:
                self._cost_usd.labels(name, tenant, agent).inc(float(call.cost_usd))


@lru_cache
def _instruments() -> Instruments:
    return Instruments()


def process_registry() -> CollectorRegistry:
    """The registry of this process' own runs, to be exposed where it suits, or empty."""
    return _instruments().registry


def track_agent_invocation(agent_id: str, tenant_id: str) -> contextlib.AbstractAsyncContextManager[None]:
    """Count and time one run of an agent in this process' registry (`Instruments.track_agent_invocation`)."""
    return _instruments().track_agent_invocation(agent_id, tenant_id)


def track_llm_call(
    model: str, tenant_id: str, *, agent_id: str = "_none"
) -> contextlib.AbstractAsyncContextManager[LlmCall]:
    """Count and time one request to a model in this process' registry (`Instruments.track_llm_call`)."""
    return _instruments().track_llm_call(model, tenant_id, agent_id=agent_id)
