"""The price table: the bundled prices, a user's own on top, and wrong files named."""

from decimal import Decimal
from pathlib import Path

import pytest

from handlers.prices import PriceTable
from schemas.errors import ConfigurationError
from schemas.money import TokenCounts

ENTRY = {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06}


@pytest.fixture(scope="module")
def bundled() -> PriceTable:
    return PriceTable.load()


def test_bundled_prices_by_full_name_and_without_the_provider(bundled: PriceTable) -> None:
    full, bare = bundled.rates("openai/gpt-4o-mini"), bundled.rates("gpt-4o-mini")
    assert full is not None
    assert full == bare
    assert full.cost_usd(TokenCounts(input_uncached=10**6)) == Decimal("0.15")
    assert bundled.charge("gpt-4o-mini", TokenCounts(input_uncached=1))["rates"] == {
        "input_uncached": "0.00000015",
        "cache_read": "0.000000075",
        "cache_write": "0.00000015",
        "output_text": "0.0000006",
        "output_reasoning": "0.0000006",
    }


@pytest.mark.parametrize("model", ["openai/no-such-model", "", "/"])
def test_an_unknown_model_has_no_price_rather_than_zero(bundled: PriceTable, model: str) -> None:
    assert bundled.rates(model) is None
    assert bundled.charge(model, TokenCounts(input_uncached=1)) == {"cost_status": "unpriced"}


def test_own_prices_are_over_the_bundled_ones(tmp_path: Path) -> None:
    own = tmp_path / "prices.json"
    own.write_text('{"gpt-4o-mini": {"input_cost_per_token": 1, "output_cost_per_token": "2.5"}}')
    table = PriceTable.load(own)
    rates = table.rates("openai/gpt-4o-mini")
    assert rates is not None
    assert (rates.input_uncached, rates.output_text) == (Decimal(1), Decimal("2.5"))
    assert table.rates("gpt-4o") is not None


def test_the_hash_says_which_table_it_was() -> None:
    assert PriceTable({"a": ENTRY}).sha256 == PriceTable({"a": dict(reversed(ENTRY.items()))}).sha256
    assert PriceTable({"a": ENTRY}).sha256 != PriceTable({"a": ENTRY | {"input_cost_per_token": 2e-06}}).sha256


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not a JSON object of models"),
        ("[]", "not a JSON object of models"),
        ('"text"', "not a JSON object of models"),
        ("", "not a JSON object of models"),
        ('{"m": 7}', "model 'm'"),
        ('{"m": [1]}', "model 'm'"),
        ('{"m": {"input_cost_per_token": "cheap", "output_cost_per_token": 1}}', "model 'm'"),
        ('{"m": {"input_cost_per_token": 1, "output_cost_per_token": {}}}', "model 'm'"),
        ('{"m": {"input_cost_per_token": -1, "output_cost_per_token": 1}}', "model 'm'"),
        ('{"m": {"input_cost_per_token": "NaN", "output_cost_per_token": 1}}', "model 'm'"),
        ('{"m": {"input_cost_per_token": "Infinity", "output_cost_per_token": 1}}', "model 'm'"),
    ],
)
def test_a_wrong_price_file_is_named_with_the_model(tmp_path: Path, text: str, said: str) -> None:
    own = tmp_path / "prices.json"
    own.write_text(text)
    with pytest.raises(ConfigurationError, match="price file") as caught:
        PriceTable.load(own)
    assert said in str(caught.value)
    assert str(own) in str(caught.value)


def test_a_price_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing\.json cannot be read"):
        PriceTable.load(tmp_path / "nothing.json")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        PriceTable.load(tmp_path)
