"""The price table: LiteLLM's bundled map, and the user's own file on top of it."""

import importlib.util
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from schemas.content import canonical_json, content_hash
from schemas.errors import ConfigurationError
from schemas.money import Rates, plain

_BUNDLED = "model_prices_and_context_window_backup.json"


class PriceTable:
    """Model name → rates and abilities, with a hash that says exactly which table priced an event."""

    def __init__(self, entries: Mapping[str, dict[str, Any]]) -> None:
        self._entries = entries
        self._rates: dict[tuple[str, bool], Rates | None] = {}
        self._texts: dict[tuple[str, bool], dict[str, str] | None] = {}

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

    @cached_property
    def sha256(self) -> str:
        """Hash of the whole table."""
        return content_hash(canonical_json(self._entries))

    def rates(self, model: str, *, output: bool = True) -> Rates | None:
        """Rates of a model, None if the table has none. A request without `output` needs an input rate only."""
        key = (model, output)
        if key not in self._rates:
            self._rates[key] = Rates.from_litellm(self._entry(model), output=output)
        return self._rates[key]

    def rate_texts(self, model: str, *, output: bool = True) -> dict[str, str] | None:
        """The model's rates as plain decimals, the way an event records them."""
        key = (model, output)
        if key not in self._texts:
            rates = self.rates(model, output=output)
            self._texts[key] = None if rates is None else {name: plain(rate) for name, rate in rates}
        return self._texts[key]

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
            try:
                Rates.from_litellm(entry)
            except (ArithmeticError, AttributeError, TypeError, KeyError, ValidationError) as error:
                raise ConfigurationError(
                    f"price file {path}: model {model!r} has a rate that is no number, or a negative one"
                ) from error
    except OSError as error:
        raise ConfigurationError(f"price file {path} cannot be read: {error.strerror}") from error
    except (orjson.JSONDecodeError, AttributeError) as error:
        raise ConfigurationError(f"price file {path} is not a JSON object of models: {error}") from error
    return dict(table)
