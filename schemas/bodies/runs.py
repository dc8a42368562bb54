"""What happens while an agent runs: its beginning and end, its LLM requests and its durable steps."""

from datetime import datetime
from typing import Any, Literal

from schemas.bodies.base import Content, EventBody, Microseconds, Ordinal
from schemas.ids import AgentId
from schemas.money import CostStatus, DecimalText, TokenCounts


class AgentStarted(EventBody):
    """A worker began to run an agent. `delivery` counts how often this call was given out, from 1."""

    type = "agent.started"

    agent_id: AgentId
    call_id: str
    delivery: Ordinal
    worker: str


class AgentCompleted(EventBody):
    """An agent's run ended without an error. With `handed_over`, a `handoff.proposed` follows and `result` is null.

    Version 1 had the duration as `seconds`, a float; version 2 has whole microseconds.
    """

    type = "agent.completed"
    contents = ("result",)
    version = 2

    agent_id: AgentId
    call_id: str
    delivery: Ordinal
    result: Content = None
    handed_over: bool = False
    duration_us: Microseconds


class AgentFailed(EventBody):
    """An agent's run ended with an error, or every worker that tried it died."""

    type = "agent.failed"

    agent_id: AgentId
    call_id: str
    delivery: Ordinal
    error_class: str
    error: str
    duration_us: Microseconds


class AgentCancelled(EventBody):
    """An agent's run was stopped because its task had ended."""

    type = "agent.cancelled"

    agent_id: AgentId
    call_id: str
    delivery: Ordinal
    duration_us: Microseconds


class LlmAttempted(EventBody):
    """One request to an LLM provider ended: answered, refused, cancelled, or with an outcome nobody knows.

    `ordinal` numbers the logical requests of a call from 0, `attempt` the tries of one logical request from 1. An
    attempt whose answer was not read to its end (timeout, dropped connection, dead worker) is `unknown`: the provider
    may have billed it.
    """

    type = "llm.attempted"
    needs_task = False
    contents = ("request", "response", "params.*")

    call_id: str
    ordinal: Ordinal
    attempt: Ordinal
    delivery: Ordinal
    agent_id: AgentId
    tier: str
    requested_model: str
    answered_model: str | None = None
    params: dict[str, Any]
    request_hash: str
    request: Content
    response: Content = None
    status: Literal["ok", "error", "cancelled", "unknown"]
    provider_response_id: str | None = None
    http_status: Ordinal | None = None
    error_class: str | None = None
    error: str | None = None
    started_at: datetime
    first_token_at: datetime | None = None
    ended_at: datetime
    duration_us: Microseconds
    tokens: TokenCounts | None = None
    tokens_source: Literal["provider"] | None = None
    rates: dict[str, str] | None = None
    price_table: str | None = None
    """SHA-256 of the price table that `rates` came from."""
    cost_usd: DecimalText | None = None
    """Exact decimal, computed here from `tokens` and `rates`."""
    cost_status: CostStatus
    reported_cost_usd: DecimalText | None = None
    """What LiteLLM says it cost; kept apart, for audit only."""
    diverged: bool = False
    """True when an earlier run had recorded another request at this ordinal, so this one ran live."""


class BudgetExceeded(EventBody):
    """An LLM request was not sent for its task's budget: it is spent, or the price of the model is not known.

    It may be spent by more than it has: what is in flight when a request is begun is counted when it has ended.
    """

    type = "budget.exceeded"

    call_id: str
    ordinal: Ordinal
    delivery: Ordinal
    agent_id: AgentId
    tier: str
    requested_model: str
    because: Literal["spent", "unpriced"]
    budget_usd: DecimalText
    spent_usd: DecimalText


class StepRecorded(EventBody):
    """An agent's durable step finished. Run again after a crash, the agent gets this result instead of a second run."""

    type = "step.recorded"
    contents = ("result",)

    call_id: str
    ordinal: Ordinal
    delivery: Ordinal
    agent_id: AgentId
    name: str
    request_hash: str
    result: Content
    duration_us: Microseconds
    diverged: bool = False
    """True when an earlier run had recorded another request at this ordinal, so this one ran live."""
