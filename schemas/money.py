"""Money and tokens. Exact decimals inside; only the edge turns a cost into a JSON number.

Token counts are *disjoint*: a cached token is not also an uncached one, a reasoning token not also output text.
Users' bills went wrong elsewhere by counting cached tokens twice and by pricing unknown models at zero, so the
sum is plain (count x rate per class) and a model without rates is `unpriced`, never free.
"""

from collections.abc import Iterable
from decimal import Context, Decimal, Inexact
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0, le=2**53)]
"""A whole number that survives JSON and PostgreSQL's bigint."""
DecimalText = Annotated[str, Field(pattern=r"^-?[0-9]{1,20}(\.[0-9]{1,40})?$")]
"""A decimal number in plain digits."""

Rate = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]
"""US dollars per token: finite, and never negative."""

CostStatus = Literal["priced", "unpriced", "not_billed", "unknown"]
"""priced: computed from rates. unpriced: tokens known, no rates for the model. not_billed: the provider refused
with an HTTP error. unknown: the answer was never read in full, so the provider may or may not have billed."""


_EXACT = Context(prec=100, traps=[Inexact])
"""The usual 28 digits would round where a rate with many digits meets many tokens."""


class TokenCounts(BaseModel):
    """Tokens of one request, by disjoint class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_uncached: Count
    cache_read: Count = 0
    cache_write: Count = 0
    output_text: Count = 0
    output_reasoning: Count = 0

    @property
    def total(self) -> int:
        """All tokens of the request."""
        return self.input_total + self.output_text + self.output_reasoning

    @property
    def input_total(self) -> int:
        """All tokens that went in."""
        return self.input_uncached + self.cache_read + self.cache_write


class Rates(BaseModel):
    """US dollars per token of each class, as decimal strings on the wire."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_uncached: Rate
    cache_read: Rate
    cache_write: Rate
    output_text: Rate
    output_reasoning: Rate

    @classmethod
    def from_litellm(cls, entry: dict[str, Any], *, output: bool = True) -> "Rates | None":
        """Rates from one entry of a LiteLLM price map, or None if it prices no tokens.

        Without `output`, as for embeddings, a missing output rate does not matter and is taken as 0.

        A missing cache rate falls back to the input rate and a missing reasoning rate to the output rate, as
        providers bill them when they publish no separate price.
        """
        if not output:
            entry = {"output_cost_per_token": 0} | {k: v for k, v in entry.items() if v is not None}
        if entry.get("input_cost_per_token") is None or entry.get("output_cost_per_token") is None:
            return None

        def rate(key: str, fallback: str) -> Decimal:
            value = entry.get(key)
            return Decimal(str(entry[fallback] if value is None else value))

        return cls(
            input_uncached=rate("input_cost_per_token", "input_cost_per_token"),
            cache_read=rate("cache_read_input_token_cost", "input_cost_per_token"),
            cache_write=rate("cache_creation_input_token_cost", "input_cost_per_token"),
            output_text=rate("output_cost_per_token", "output_cost_per_token"),
            output_reasoning=rate("output_cost_per_reasoning_token", "output_cost_per_token"),
        )

    def cost_usd(self, tokens: TokenCounts) -> Decimal:
        """The exact price of `tokens` in US dollars."""
        total = Decimal(0)
        for rate, count in (
            (self.input_uncached, tokens.input_uncached),
            (self.cache_read, tokens.cache_read),
            (self.cache_write, tokens.cache_write),
            (self.output_text, tokens.output_text),
            (self.output_reasoning, tokens.output_reasoning),
        ):
            if count:
                total = _EXACT.add(total, _EXACT.multiply(rate, count))
        return total


def exact_sum(values: Iterable[Decimal | int]) -> Decimal:
    """The sum to the last digit. Python's own `+` and `-` round a decimal to 28 digits, the sign's change included."""
    total = Decimal(0)
    for value in values:
        total = _EXACT.add(total, value)
    return total


def plain(value: Decimal) -> str:
    """A decimal as plain digits without exponent or trailing zeros: Decimal('1.20E-7') → '0.00000012'."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
