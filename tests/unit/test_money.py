"""Money is exact: disjoint tokens times decimal rates, and no price is never a price of zero."""

from decimal import Decimal
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from schemas.money import DecimalText, Rates, TokenCounts, plain

ENTRY: dict[str, Any] = {
    "input_cost_per_token": 1.5e-07,
    "cache_read_input_token_cost": 7.5e-08,
    "cache_creation_input_token_cost": 3e-07,
    "output_cost_per_token": 6e-07,
    "output_cost_per_reasoning_token": 9e-07,
}


def rates(**changed: Any) -> Rates:
    found = Rates.from_litellm({k: v for k, v in (ENTRY | changed).items() if v is not None})
    assert found is not None
    return found


def test_each_class_of_tokens_has_its_rate() -> None:
    tokens = TokenCounts(input_uncached=1000, cache_read=200, cache_write=30, output_text=500, output_reasoning=70)
    assert rates().cost_usd(tokens) == Decimal("0.000537")
    assert tokens.total == 1800


def test_a_float_rate_is_taken_as_it_is_written() -> None:
    # As a binary float, 1.5e-07 is not 0.00000015; a million times it must be 0.15 to the last digit.
    assert rates().cost_usd(TokenCounts(input_uncached=10**6)) == Decimal("0.15")
    assert str(rates(input_cost_per_token="0.1").input_uncached) == "0.1"


def test_missing_rates_fall_back_as_providers_bill() -> None:
    bare = rates(
        cache_read_input_token_cost=None,
        cache_creation_input_token_cost=None,
        output_cost_per_reasoning_token=None,
    )
    assert (bare.cache_read, bare.cache_write, bare.output_reasoning) == (
        bare.input_uncached,
        bare.input_uncached,
        bare.output_text,
    )
    explicit = rates(cache_read_input_token_cost=0)
    assert explicit.cache_read == 0


@pytest.mark.parametrize("missing", ["input_cost_per_token", "output_cost_per_token"])
def test_an_entry_without_a_price_is_none_and_not_zero(missing: str) -> None:
    assert Rates.from_litellm({k: v for k, v in ENTRY.items() if k != missing}) is None
    assert Rates.from_litellm(ENTRY | {missing: None}) is None
    assert Rates.from_litellm({}) is None


def test_a_free_model_is_priced_at_zero() -> None:
    free = Rates.from_litellm({"input_cost_per_token": 0, "output_cost_per_token": 0})
    assert free is not None
    assert free.cost_usd(TokenCounts(input_uncached=9, output_text=9)) == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Decimal("1.20E-7"), "0.00000012"),
        (Decimal("0"), "0"),
        (Decimal("0.000"), "0"),
        (Decimal("100"), "100"),
        (Decimal("1E+3"), "1000"),
        (Decimal("10.50"), "10.5"),
        (Decimal("-0.50"), "-0.5"),
        (Decimal(5), "5"),
    ],
)
def test_plain_digits(value: Decimal, text: str) -> None:
    assert plain(value) == text
    assert TypeAdapter(DecimalText).validate_python(text) == text


@pytest.mark.parametrize("text", ["", "1e5", ".5", "5.", "+1", "1,5", " 1", "1\n", "NaN", "Infinity", "٣", "1" * 21])
def test_text_that_is_no_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(DecimalText).validate_python(text)


@pytest.mark.parametrize("count", [-1, 2**53 + 1, 1.5, "many", None])
def test_a_token_count_is_a_whole_number_that_survives_json(count: Any) -> None:
    with pytest.raises(ValidationError):
        TokenCounts(input_uncached=count)
    assert TokenCounts(input_uncached=2**53).total == 2**53
