"""For any prices and any token counts, an attempt's cost follows to the last digit from its own fields."""

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from handlers.prices import PriceTable
from schemas.bodies import LlmAttempted
from schemas.event import AgentEvent, decode_body, encode
from schemas.money import TokenCounts

CLASSES = ("input_uncached", "cache_read", "cache_write", "output_text", "output_reasoning")
RATE_KEYS = (
    "input_cost_per_token",
    "cache_read_input_token_cost",
    "cache_creation_input_token_cost",
    "output_cost_per_token",
    "output_cost_per_reasoning_token",
)
counts = st.integers(0, 2**53)
tokens = st.builds(TokenCounts, **dict.fromkeys(CLASSES, counts))
amounts = st.one_of(
    # As price files have them: floats in any notation, whole numbers, decimals as text.
    st.floats(1e-12, 10).map(lambda rate: float(f"{rate:.15g}")),
    st.integers(0, 5),
    st.decimals(0, 10, places=20).map(str),
)
entries = st.fixed_dictionaries(
    {RATE_KEYS[0]: amounts, RATE_KEYS[3]: amounts},
    optional=dict.fromkeys((RATE_KEYS[1], RATE_KEYS[2], RATE_KEYS[4]), amounts),
)


def _recorded(charge: dict[str, Any], counted: TokenCounts | None) -> LlmAttempted:
    """The attempt, after it was written and read again."""
    now = datetime.now(UTC)
    body = LlmAttempted(
        call_id="c",
        ordinal=0,
        attempt=1,
        delivery=1,
        agent_id="a",
        tier="fast",
        requested_model="m",
        params={},
        request_hash="h",
        request={},
        status="ok",
        started_at=now,
        ended_at=now,
        duration_us=1,
        tokens=counted,
        **charge,
    )
    event = AgentEvent(
        id="e", tenant_id="t", session_id="s", task_id="k", source_agent_id="a", call_chain=("a",), at=now, body=body
    )
    fields = encode(event, {})
    read = decode_body("llm.attempted", "1", fields[-1])
    assert isinstance(read, LlmAttempted)
    return read


@given(entries, tokens)
def test_the_cost_is_recomputed_from_the_recorded_fields(entry: dict[str, Any], counted: TokenCounts) -> None:
    attempt = _recorded(PriceTable({"m": entry}).charge("openai/m", counted), counted)
    assert attempt.cost_status == "priced"
    assert attempt.rates is not None
    assert attempt.tokens == counted
    assert attempt.cost_usd is not None
    expected = sum(Fraction(attempt.rates[name]) * getattr(counted, name) for name in CLASSES)
    assert Fraction(attempt.cost_usd) == expected
    # The rates are those of the table, not what a float makes of them.
    assert Decimal(attempt.rates["input_uncached"]) == Decimal(str(entry[RATE_KEYS[0]]))


@given(st.dictionaries(st.sampled_from(RATE_KEYS), amounts, max_size=4), tokens)
def test_without_both_rates_nothing_is_priced(entry: dict[str, Any], counted: TokenCounts) -> None:
    attempt = _recorded(PriceTable({"m": entry}).charge("m", counted), counted)
    if RATE_KEYS[0] in entry and RATE_KEYS[3] in entry:
        assert attempt.cost_status == "priced"
    else:
        assert (attempt.cost_status, attempt.cost_usd, attempt.rates) == ("unpriced", None, None)
