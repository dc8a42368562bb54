"""The simulator's bill: what a provider would charge. Its arithmetic is its own: a ledger is checked, not echoed."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

Prices = dict[str, dict[str, str | float | int]]


def price(prices: Prices, model: str, usage: dict[str, Any]) -> Decimal | None:
    """What `usage` costs in US dollars, None for a model without a price."""
    entry = prices.get(model)
    if entry is None:
        return None
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
    input_rate, output_rate = (Decimal(str(entry[k])) for k in ("input_cost_per_token", "output_cost_per_token"))
    cached_rate = Decimal(str(entry.get("cache_read_input_token_cost", input_rate)))
    reasoning_rate = Decimal(str(entry.get("output_cost_per_reasoning_token", output_rate)))
    total: Decimal = (
        (usage["prompt_tokens"] - cached) * input_rate
        + cached * cached_rate
        + (usage["completion_tokens"] - reasoning) * output_rate
        + reasoning * reasoning_rate
    )
    return total


class Bill:
    """Every request that was completed: its answer was computed and given to the connection, whatever became of it."""

    def __init__(self, prices: Prices, path: Path | None) -> None:
        self._prices = prices
        self._path = path
        self.entries: list[dict[str, Any]] = []
        if path is not None and path.exists():
            # A last line that a crash cut short was never a finished entry.
            lines = path.read_bytes().split(b"\n")
            self.entries = [orjson.loads(line) for line in lines[:-1] if line]
        self._file = path.open("ab") if path is not None else None

    def add(self, *, response_id: str, attempt_id: str | None, model: str, usage: dict[str, Any], at: float) -> None:
        """Charge one request."""
        cost = price(self._prices, model, usage)
        entry = {
            "response_id": response_id,
            "attempt_id": attempt_id,
            "model": model,
            "prompt_tokens": usage["prompt_tokens"],
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "completion_tokens": usage["completion_tokens"],
            "reasoning_tokens": usage["completion_tokens_details"]["reasoning_tokens"],
            "usd": None if cost is None else format(cost.normalize(), "f"),
            "at": at,
        }
        self.entries.append(entry)
        if self._file is not None:
            self._file.write(orjson.dumps(entry) + b"\n")
            self._file.flush()

    def reset(self) -> None:
        """Forget everything."""
        self.entries.clear()
        if self._file is not None:
            self._file.truncate(0)

    def summary(self) -> dict[str, Any]:
        """Totals, overall and by model, as decimal strings."""
        totals: dict[str, Decimal] = {}
        for entry in self.entries:
            totals[entry["model"]] = totals.get(entry["model"], Decimal(0)) + Decimal(entry["usd"] or 0)
        return {
            "requests": len(self.entries),
            "unpriced": sum(entry["usd"] is None for entry in self.entries),
            "total_usd": format(sum(totals.values(), Decimal(0)).normalize(), "f"),
            "by_model": {model: format(total.normalize(), "f") for model, total in sorted(totals.items())},
        }
