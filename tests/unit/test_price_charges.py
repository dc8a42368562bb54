"""What prices make of token counts."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from handlers.prices import PriceTable
from schemas.errors import ConfigurationError
from schemas.money import TokenCounts

TOKENS = TokenCounts(input_uncached=1_000, cache_read=200, cache_write=30, output_text=400, output_reasoning=50)


@pytest.fixture(scope="module")
def bundled() -> PriceTable:
    """What LiteLLM brings."""
    return PriceTable.load()


def _load(tmp_path: Path, table: Any) -> PriceTable:
    path = tmp_path / "prices.json"
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    return PriceTable.load(path)


def test_every_bundled_model_has_usable_rates_or_none(bundled: PriceTable) -> None:
    rates = [bundled.rates(model, input_tokens=tokens) for model in bundled.models for tokens in (0, 10**6)]
    assert sum(rate is not None for rate in rates) > 2_000


def test_an_unknown_model_is_unpriced_and_unknown_tokens_cost_something_unknown(bundled: PriceTable) -> None:
    assert bundled.charge("openai/no-such-model", TOKENS) == {"cost_status": "unpriced"}
    assert bundled.charge("gpt-4o-mini", None) == {"cost_status": "unknown"}
    assert bundled.charge("openai/no-such-model", None) == {"cost_status": "unknown"}


def test_cached_tokens_are_not_paid_twice(tmp_path: Path) -> None:
    entry = {
        "input_cost_per_token": 1,
        "cache_read_input_token_cost": "0.1",
        "cache_creation_input_token_cost": 2,
        "output_cost_per_token": 10,
        "output_cost_per_reasoning_token": 7,
    }
    charge = _load(tmp_path, {"m": entry}).charge("m", TOKENS)
    assert charge["cost_usd"] == "5430"  # 1000 + 20 + 60 + 4000 + 350
    assert charge["cost_status"] == "priced"


def test_missing_rates_fall_back_as_providers_bill_them(tmp_path: Path) -> None:
    table = _load(tmp_path, {"m": {"input_cost_per_token": 1, "output_cost_per_token": 10}})
    assert table.charge("m", TOKENS)["cost_usd"] == "5730"  # 1230 + 4500


def test_a_longer_request_can_have_other_rates(tmp_path: Path) -> None:
    entry = {
        "input_cost_per_token": 1,
        "input_cost_per_token_above_128k_tokens": 2,
        "input_cost_per_token_above_200k_tokens": 3,
        "output_cost_per_token": 10,
        "output_cost_per_token_above_200k_tokens": 30,
    }
    table = _load(tmp_path, {"m": entry})
    found = {n: table.rates("m", input_tokens=n) for n in (0, 128_000, 128_001, 200_000, 200_001)}
    told = [(int(rates.input_uncached), int(rates.output_text)) for rates in found.values() if rates]
    assert told == [(1, 10), (1, 10), (2, 10), (2, 10), (3, 30)]
    long = TokenCounts(input_uncached=1, cache_read=200_000, output_text=1)
    assert table.charge("m", long)["cost_usd"] == str(200_001 * 3 + 30)
    assert table.charge("m", long)["rates"]["input_uncached"] == "3"


def test_embeddings_need_an_input_rate_only(tmp_path: Path) -> None:
    table = _load(tmp_path, {"e": {"input_cost_per_token": "0.5", "output_cost_per_token": None}, "f": {"x": 1}})
    tokens = TokenCounts(input_uncached=3)
    assert table.charge("e", tokens, output=False)["cost_usd"] == "1.5"
    assert table.charge("e", tokens)["cost_status"] == "unpriced"
    assert table.charge("f", tokens, output=False)["cost_status"] == "unpriced"


@pytest.mark.parametrize("entry", [{"output_cost_per_token_above_1k_tokens": "x"}, {"input_cost_per_token": True}])
def test_every_rate_of_a_users_table_is_looked_at(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"model 'm': {next(iter(entry))} is no number of 0 or more"):
        _load(tmp_path, {"m": entry})


def test_many_digits_are_kept(tmp_path: Path) -> None:
    rate = "0.000000123456789012345678"
    table = _load(tmp_path, {"m": {"input_cost_per_token": rate, "output_cost_per_token": 0}})
    count = 2**53
    charge = table.charge("m", TokenCounts(input_uncached=count))
    assert Fraction(charge["cost_usd"]) == Fraction(rate) * count


def test_only_models_that_take_a_schema_are_sent_one(tmp_path: Path) -> None:
    table = _load(tmp_path, {"a": {"supports_response_schema": True}, "b": {}})
    schema = {"response_format": {"type": "json_schema", "json_schema": {}}, "temperature": 0}
    assert table.supported("openai/a", schema) == schema
    assert table.supported("openai/b", schema) == table.supported("new", schema) == {"temperature": 0}
    # What an agent asks for itself is its own business.
    own = {"response_format": {"type": "json_object"}}
    assert table.supported("openai/b", own) == own
