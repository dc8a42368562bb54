"""The simulator's bill: what a provider would charge. Its arithmetic is its own: a ledger is checked, not echoed."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

from headwater.simulator.config import Prices
from schemas.errors import ConfigurationError


def price(prices: Prices, model: str, usage: dict[str, Any]) -> Decimal | None:
    """What `usage` costs in US dollars, None for a model without a price for its input, or for output that it made."""
    entry = prices.get(model, {})
    if not usage["completion_tokens"]:
        # Embeddings have no output, and some tables no rate for it.
        entry = {"output_cost_per_token": 0} | entry
    if "input_cost_per_token" not in entry or "output_cost_per_token" not in entry:
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
    """Every request that was completed, at the moment its whole answer exists, just before its first byte is sent.

    So these are billed in full: a stream that the client or a fault cuts short, an answer that nobody waits for any
    more, a malformed one. These are not: a refused request (any status but 200) and a drop before the answer.
    """

    def __init__(self, prices: Prices, path: Path | None) -> None:
        """Raises `ConfigurationError` when the file at `path` cannot be used."""
        self._prices = prices
        self.entries: list[dict[str, Any]] = []
        self._unpriced = 0
        self._totals: dict[str, Decimal] = {}
        try:
            for entry in _reload(path) if path is not None else []:
                self._count(entry)
            self._file = path.open("ab") if path is not None else None
        except OSError as error:
            raise ConfigurationError(f"bill {path} cannot be opened: {error.strerror}") from error

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
        self._count(entry)
        if self._file is not None:
            self._file.write(orjson.dumps(entry) + b"\n")
            self._file.flush()

    def _count(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        self._unpriced += entry["usd"] is None
        self._totals[entry["model"]] = self._totals.get(entry["model"], Decimal(0)) + Decimal(entry["usd"] or 0)

    def reset(self) -> None:
        """Forget everything."""
        self.entries.clear()
        self._unpriced = 0
        self._totals.clear()
        if self._file is not None:
            self._file.truncate(0)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def summary(self) -> dict[str, Any]:
        """Totals, overall and by model, as decimal strings. Requests without a price count in `unpriced` only."""
        return {
            "requests": len(self.entries),
            "unpriced": self._unpriced,
            "total_usd": format(sum(self._totals.values(), Decimal(0)).normalize(), "f"),
            "by_model": {model: format(total.normalize(), "f") for model, total in sorted(self._totals.items())},
        }


def _reload(path: Path) -> list[dict[str, Any]]:
    """The entries in the file. Cuts off a last line that a crash left unfinished: the next entry would join it."""
    if not path.exists():
        return []
    kept, _, torn = path.read_bytes().rpartition(b"\n")
    if torn:
        with path.open("r+b") as file:
            file.truncate(len(kept) + 1 if kept else 0)
    entries = []
    for number, line in enumerate(kept.splitlines(), start=1):
        try:
            entries.append(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            raise ConfigurationError(f"bill {path}, line {number} is not JSON; move the file away: {error}") from error
    return entries
