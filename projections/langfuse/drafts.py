"""What is particular to each kind of span: an agent's run, a question of the supervisor's, an LLM attempt."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import orjson

from schemas.bodies import AgentCancelled, AgentCompleted, AgentFailed, LlmAttempted, SupervisorAnswered
from schemas.content import Json
from schemas.event import AgentEvent
from schemas.money import Rates, TokenCounts, plain
from schemas.trace_ids import call_span_id, task_span_id

_NO_TOKENS = TokenCounts(input_uncached=0)


@dataclass(slots=True)
class Draft:
    """A span without what all spans have alike. Input and output may be references to blobs."""

    kind: str
    name: str
    agent_id: str
    start: datetime
    end: datetime
    parent_id: str | None = None
    level: str = "DEFAULT"
    status_message: str | None = None
    input: Json = None
    output: Json = None
    metadata: dict[str, Json] | None = None
    tags: tuple[str, ...] = ()
    extra: dict[str, str] | None = None


def run_draft(event: AgentEvent, body: AgentCompleted | AgentFailed | AgentCancelled) -> Draft:
    """An agent's run, by the event that ended it."""
    draft = Draft(
        kind="agent",
        name=body.agent_id,
        agent_id=body.agent_id,
        start=event.at - timedelta(microseconds=body.duration_us),
        end=event.at,
        parent_id=task_span_id(event.tenant_id, event.task_id),
        metadata={"call_id": body.call_id, "delivery": body.delivery},
    )
    assert draft.metadata is not None
    if isinstance(body, AgentCompleted):
        draft.output = body.result
        draft.metadata["handed_over"] = body.handed_over
    elif isinstance(body, AgentFailed):
        draft.level, draft.status_message = "ERROR", f"{body.error_class}: {body.error}"
        draft.metadata["error_class"] = body.error_class
    else:
        draft.level, draft.status_message = "WARNING", "cancelled"
    return draft


def question_draft(event: AgentEvent, body: SupervisorAnswered) -> Draft:
    """A question of the supervisor's, by its answer."""
    return Draft(
        kind="span",
        name=f"supervisor.{body.question}",
        agent_id=event.source_agent_id,
        start=event.at - timedelta(microseconds=body.duration_us),
        end=event.at,
        parent_id=task_span_id(event.tenant_id, event.task_id),
        level="DEFAULT" if body.error is None else "ERROR",
        status_message=body.error,
        output=body.answer,
        metadata={"call_id": body.call_id, "delivery": body.delivery, "question": body.question},
    )


def attempt_draft(event: AgentEvent, body: LlmAttempted, params: dict[str, Json]) -> Draft:
    """A generation, also of an embedding. Its name is the agent's id: the server's cost queries can group by names."""
    tokens = body.tokens or _NO_TOKENS
    level, message = _verdict(body)
    extra = {
        # The model that was asked for, as in the ledger: the answered one is in the metadata.
        "model.name": body.requested_model,
        "model.parameters": as_json(params),
        # Zeros are sent too: without counts, the server would count, and price, on its own.
        "usage_details": as_json(
            {
                "input": tokens.input_uncached,
                "input_cache_read": tokens.cache_read,
                "input_cache_write": tokens.cache_write,
                "output": tokens.output_text,
                "output_reasoning": tokens.output_reasoning,
                "total": tokens.total,
            }
        ),
        "cost_details": _cost_details(body, tokens),
    }
    if body.first_token_at is not None:
        extra["completion_start_time"] = as_json(body.first_token_at.isoformat())
    return Draft(
        kind="generation",
        name=body.agent_id,
        agent_id=body.agent_id,
        start=body.started_at,
        end=body.ended_at,
        parent_id=call_span_id(event.tenant_id, body.call_id),
        level=level,
        status_message=message,
        input=body.request,
        output=body.response,
        tags=() if body.cost_status in ("priced", "not_billed") else (f"cost:{body.cost_status}",),
        extra=extra,
        metadata={
            "call_id": body.call_id,
            "ordinal": body.ordinal,
            "attempt": body.attempt,
            "delivery": body.delivery,
            "tier": body.tier,
            "status": body.status,
            "answered_model": body.answered_model,
            "provider_response_id": body.provider_response_id,
            "http_status": body.http_status,
            "error_class": body.error_class,
            "cost_status": body.cost_status,
            "cost_usd": body.cost_usd,
            "reported_cost_usd": body.reported_cost_usd,
            "price_table": body.price_table,
            "diverged": body.diverged or None,
        },
    )


def _verdict(body: LlmAttempted) -> tuple[str, str | None]:
    if body.status == "cancelled":
        return "WARNING", "cancelled"
    if body.status != "ok":
        return "ERROR", f"{body.error_class or body.status}: {body.error or 'no reason was given'}"
    if body.cost_status == "unpriced":
        return "WARNING", f"unpriced: no price is known for {body.requested_model}, so its cost is sent as 0"
    return "DEFAULT", None


def _cost_details(body: LlmAttempted, tokens: TokenCounts) -> str:
    """Exact dollars as JSON numbers.

    The total is sent for every attempt. Without it the server shows 0, or guesses from prices of its own: an unpriced
    attempt, or one whose outcome nobody knows, is sent as 0 and says so by tag, status and level, so that the server's
    totals stay the ledger's.
    """
    parts: dict[str, Decimal] = {}
    if body.rates is not None and body.cost_usd is not None:
        rates = Rates.model_validate(body.rates)
        parts = {
            "input": rates.input_uncached * tokens.input_uncached,
            "input_cache_read": rates.cache_read * tokens.cache_read,
            "input_cache_write": rates.cache_write * tokens.cache_write,
            "output": rates.output_text * tokens.output_text,
            "output_reasoning": rates.output_reasoning * tokens.output_reasoning,
        }
    parts["total"] = Decimal(body.cost_usd or 0)
    return "{" + ",".join(f'"{key}":{plain(value)}' for key, value in parts.items()) + "}"


def as_json(value: Any) -> str:
    """JSON text."""
    return orjson.dumps(value).decode()
