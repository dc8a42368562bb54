"""What events look like as spans: ids, usage, money, levels, contents."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langfuse import Langfuse

from projections.langfuse.spans import EXPORTED, Span, SpanMaker, span_id_of
from projections.langfuse.wire import encode
from schemas.bodies import BODIES, DECISIONS, AgentCancelled, HandoffAccepted, TaskCancelled, TaskSubmitted
from schemas.event import AgentEvent
from schemas.money import Rates, TokenCounts, plain
from schemas.trace_ids import call_span_id, event_span_id, task_span_id, trace_id
from tests.fake_langfuse.store import decode_spans
from tests.logbook import START, Logbook

TOKENS = TokenCounts(input_uncached=10, cache_read=20, cache_write=5, output_text=7, output_reasoning=3)
RATES = Rates(
    input_uncached=Decimal("0.0000025"),
    cache_read=Decimal("2.5E-7"),
    cache_write=Decimal("0.000003125"),
    output_text=Decimal("0.00001"),
    output_reasoning=Decimal("0.00001"),
)


def span_of(event: AgentEvent, *, content: bool = True, **related: AgentEvent) -> Span:
    return SpanMaker(related, {}, content=content).make(event)


def attempt(**changes: Any) -> AgentEvent:
    return Logbook("acme").attempt(task="t1", call="c1", agent="billing", **changes)


def of(span: Span, key: str) -> Any:
    value = span.attributes.get(f"langfuse.observation.{key}")
    return json.loads(value, parse_float=Decimal) if isinstance(value, str) and value[:1] in "{[" else value


def test_a_trace_id_is_the_one_that_langfuse_makes_of_the_same_seed() -> None:
    assert trace_id("acme", "t1") == Langfuse.create_trace_id(seed="acme:t1")
    assert trace_id("acme", "t1") != trace_id("globex", "t1")


def test_ids_of_parents_follow_from_the_event_alone() -> None:
    event = attempt()
    span = span_of(event)
    assert (span.trace_id, span.span_id) == (trace_id("acme", "t1"), event_span_id("acme", event.id))
    assert span.parent_id == call_span_id("acme", "c1")
    run = Logbook("acme").add(
        AgentCancelled(agent_id="billing", call_id="c1", delivery=1, duration_us=5), task="t1", source="billing"
    )
    assert (span_of(run).span_id, span_of(run).parent_id) == (span.parent_id, task_span_id("acme", "t1"))
    end = Logbook("acme").add(TaskCancelled(reason="no need"), task="t1")
    assert (span_of(end).span_id, span_of(end).parent_id) == (span_of(run).parent_id, None)


def test_usage_is_disjoint_and_the_cost_exact() -> None:
    cost = RATES.cost_usd(TOKENS)
    rates = {name: plain(value) for name, value in RATES}
    span = span_of(attempt(tokens=TOKENS, rates=rates, cost_usd=plain(cost)))
    usage = of(span, "usage_details")
    assert usage.pop("total") == TOKENS.total == sum(usage.values())
    assert usage == {"input": 10, "input_cache_read": 20, "input_cache_write": 5, "output": 7, "output_reasoning": 3}
    parts = of(span, "cost_details")
    assert parts.pop("total") == cost == sum(parts.values())


@given(
    cost=st.decimals(min_value=0, max_value=10**6, places=20, allow_nan=False, allow_infinity=False),
    spent=st.integers(min_value=0, max_value=2**50),
)
def test_any_cost_arrives_to_the_last_digit(cost: Decimal, spent: int) -> None:
    event = attempt(tokens=TokenCounts(input_uncached=spent), cost_usd=plain(cost))
    (stored,) = decode_spans(encode([span_of(event)], public_key="pk", sdk_version="5"))
    assert (stored.total_cost, stored.usage["total"]) == (cost, spent)


@pytest.mark.parametrize(
    ("changes", "level", "message", "tag"),
    [
        ({"cost_usd": None, "cost_status": "unpriced"}, "WARNING", "unpriced: no price is known", "cost:unpriced"),
        (
            {"status": "unknown", "cost_usd": None, "cost_status": "unknown", "tokens": None, "error": "lost"},
            "ERROR",
            "unknown: lost",
            "cost:unknown",
        ),
        (
            {"status": "error", "cost_usd": "0", "cost_status": "not_billed", "tokens": None, "error_class": "E"},
            "ERROR",
            "E: no reason was given",
            None,
        ),
        ({"status": "cancelled", "cost_usd": None, "cost_status": "unknown"}, "WARNING", "cancelled", "cost:unknown"),
        ({}, "DEFAULT", None, None),
    ],
)
def test_a_cost_that_is_not_known_is_sent_as_0_and_never_silently(
    changes: dict[str, Any], level: str, message: str | None, tag: str | None
) -> None:
    """Left out, the server would show 0 without a word, or guess a price and count tokens on its own."""
    span = span_of(attempt(**changes))
    assert of(span, "level") == level
    assert (of(span, "status_message") or "").startswith(message or "")
    assert [t for t in span.attributes["langfuse.trace.tags"] if t.startswith("cost:")] == ([tag] if tag else [])
    assert of(span, "cost_details")["total"] == Decimal("0.00025" if not changes else 0)
    assert "total" in of(span, "usage_details")


def test_times_model_and_first_token_are_the_attempts_own() -> None:
    first = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
    span = span_of(attempt(first_token_at=first, answered_model="small-0501", params={"temperature": 0}))
    assert (span.start, span.end, span.name) == (START, START, "billing")
    assert (of(span, "model.name"), of(span, "model.parameters")) == ("openai/small", {"temperature": 0})
    assert of(span, "metadata.answered_model") == '"small-0501"'
    assert of(span, "completion_start_time") == '"2026-05-01T12:00:00.123456+00:00"'


def test_contents_can_be_left_out() -> None:
    event = attempt(
        request={"messages": ["secret"]}, response={"text": "secret"}, params={"tools": {"$blob": "x", "bytes": 1}}
    )
    assert "secret" in str(span_of(event))
    bare = span_of(event, content=False)
    assert "secret" not in str(bare)
    assert of(bare, "model.parameters") == {"tools": "(left out)"}
    slim = span_of(event).without_content()
    assert slim is not None
    assert "secret" not in str(slim)
    assert slim.attributes["langfuse.observation.cost_details"] == bare.attributes["langfuse.observation.cost_details"]
    assert bare.without_content() is None


def test_a_blob_that_is_gone_is_named() -> None:
    span = span_of(attempt(request={"$blob": "abc", "bytes": 9}))
    assert span.attributes["langfuse.observation.input"] == "(blob 'abc' is not in the archive)"


def test_an_unverified_handoff_is_a_warning() -> None:
    body = HandoffAccepted(
        source_agent_id="a",
        target_agent_id="b",
        payload_type="deal_data",
        strictness="strict",
        checks=("structural",),
        verification="unverified",
        call_id="c2",
    )
    span = span_of(Logbook("acme").add(body, task="t1"))
    assert (of(span, "level"), of(span, "status_message")) == ("WARNING", "unverified")
    assert span.attributes["langfuse.trace.tags"] == ("agent:a", "tenant:acme")


def test_a_task_has_its_submissions_start_and_text() -> None:
    book = Logbook("acme")
    submitted = book.add(TaskSubmitted(task_type="note", text="do it"), task="t1", source="user")
    span = span_of(book.add(TaskCancelled(), task="t1"), t1=submitted)
    assert (span.start, span.name, of(span, "input"), of(span, "level")) == (submitted.at, "note", "do it", "WARNING")


def test_every_fact_that_ends_something_is_exported() -> None:
    """A new terminal event, or a new verdict, must not be forgotten here."""
    terminal = {name for name, body in BODIES.items() if body.terminal}
    ends = {name for name, body in BODIES.items() if "duration_us" in body.model_fields and name.startswith("agent.")}
    verdicts = {name for name in DECISIONS if name.startswith("handoff.")}
    assert terminal | ends | verdicts | {"llm.attempted", "supervisor.answered"} == set(EXPORTED)


def test_no_two_spans_of_a_task_have_one_id() -> None:
    book = Logbook("acme")
    events = [book.attempt(task="t1", call="c1"), book.attempt(task="t1", call="c1")]
    events.append(book.add(TaskCancelled(), task="t1"))
    assert len({span_id_of(event) for event in events}) == 3
