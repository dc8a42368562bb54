"""The price table: LiteLLM's bundled map, and the user's own file on top of it."""

import importlib.util
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from schemas.content import canonical_json, content_hash
from schemas.errors import ConfigurationError, SettingError
from schemas.money import Rates, TokenCounts, plain

_ABOVE = re.compile(r"(?<=^input_cost_per_token)_above_(\d+)k_tokens$")
_IS_RATE = re.compile(r"_cost_per_(reasoning_)?token|_token_cost")
_BUNDLED = "model_prices_and_context_window_backup.json"


class PriceTable:
    """Model name → rates and abilities, with a hash that says exactly which table priced an event."""

    def __init__(self, entries: Mapping[str, dict[str, Any]]) -> None:
        self._entries = entries
        self._known: dict[tuple[str, bool, str], tuple[Rates, dict[str, str]] | None] = {}
        self._thresholds: dict[str, list[tuple[int, str]]] = {}

    @classmethod
    def load(cls, own: Path | None = None) -> "PriceTable":
        """LiteLLM's bundled prices, overridden per model by the JSON file `own` (same format).

        Raises:
            ConfigurationError: the file is not a JSON object of objects, or has a rate that is not a number.
        """
        spec = importlib.util.find_spec("litellm")
        if spec is None or not spec.submodule_search_locations:
            raise ConfigurationError("the package litellm is not installed: install Headwater with its dependencies")
        bundled = orjson.loads((Path(spec.submodule_search_locations[0]) / _BUNDLED).read_bytes())
        return cls(bundled | (_own(own) if own else {}))

    @property
    def models(self) -> Iterable[str]:
        """The names that the table has."""
        return self._entries.keys()

    @cached_property
    def sha256(self) -> str:
        """Hash of the whole table."""
        return content_hash(canonical_json(self._entries))

    def charge(self, model: str, tokens: TokenCounts | None, *, output: bool = True) -> dict[str, Any]:
        """What an attempt's event says of its cost: `rates`, `price_table`, `cost_usd` and `cost_status`.

        Without `tokens` the cost is unknown, without rates the attempt is unpriced; neither is a cost of 0.
        """
        known = None if tokens is None else self._priced(model, output, self._threshold(model, tokens.input_total))
        if tokens is None or known is None:
            return {"cost_status": "unknown" if tokens is None else "unpriced"}
        rates, texts = known
        cost_usd = plain(rates.cost_usd(tokens))
        return {"rates": texts, "price_table": self.sha256, "cost_usd": cost_usd, "cost_status": "priced"}

    def rates(self, model: str, *, output: bool = True, input_tokens: int = 0) -> Rates | None:
        """Rates of a model, None if the table has none. A request without `output` needs an input rate only.

        Some models have other rates for a request with more than so many thousand `input_tokens`.
        """
        known = self._priced(model, output, self._threshold(model, input_tokens))
        return None if known is None else known[0]

    def _priced(self, model: str, output: bool, threshold: str) -> tuple[Rates, dict[str, str]] | None:
        key = (model, output, threshold)
        if key not in self._known:
            entry = self._entry(model)
            above = {k.removesuffix(threshold): v for k, v in entry.items() if threshold and k.endswith(threshold)}
            rates = Rates.from_litellm(entry | {k: v for k, v in above.items() if v is not None}, output=output)
            self._known[key] = None if rates is None else (rates, {name: plain(rate) for name, rate in rates})
        return self._known[key]

    def _threshold(self, model: str, input_tokens: int) -> str:
        """The ending of the names of the rates that hold, "" for the ordinary ones."""
        if model not in self._thresholds:
            found = {int(match[1]) * 1000: match[0] for key in self._entry(model) if (match := _ABOVE.search(key))}
            self._thresholds[model] = sorted(found.items(), reverse=True)
        return next((ending for above, ending in self._thresholds[model] if input_tokens > above), "")

    def supported(self, model: str, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters without a JSON Schema for the answer, if the table does not say that the model takes one."""
        if "response_format" in params and not self._entry(model).get("supports_response_schema"):
            wanted = params["response_format"]
            if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
                return {name: value for name, value in params.items() if name != "response_format"}
        return params

    def _entry(self, model: str) -> dict[str, Any]:
        """What the table has under the model's full name, else without its provider prefix."""
        return self._entries.get(model) or self._entries.get(model.partition("/")[2]) or {}


def _own(path: Path) -> dict[str, dict[str, Any]]:
    try:
        table = orjson.loads(path.read_bytes())
        for model, entry in table.items():
            wrong = ["it"] if not isinstance(entry, dict) else [key for key in entry if not _usable(key, entry[key])]
            if wrong:
                raise SettingError(f"price file {path}: model {model!r}: {wrong[0]} is no number of 0 or more")
    except OSError as error:
        raise SettingError(f"price file {path} cannot be read: {error.strerror}") from error
    except (orjson.JSONDecodeError, AttributeError) as error:
        raise SettingError(f"price file {path} is not a JSON object of models: {error}") from error
    return dict(table)


def _usable(key: str, value: object) -> bool:
    """Other keys than rates may hold anything, and a rate may be null."""
    if value is None or not _IS_RATE.search(key):
        return True
    try:
        rate = Decimal(str(value))
    except ArithmeticError:
        return False
    return rate.is_finite() and rate >= 0
