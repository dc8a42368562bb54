"""What a simulator is told: its seed, its prices, its script of answers and its faults."""

import re
from decimal import Decimal, InvalidOperation
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from schemas.complaints import complaint
from schemas.errors import SettingError

PATTERN_FLAGS = re.IGNORECASE | re.DOTALL
PLACEHOLDER = re.compile(r"\{\{user(?:\.(\w+))?\}\}")


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern, PATTERN_FLAGS)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return pattern


def _dollars(rate: str | float) -> str | float:
    try:
        amount = Decimal(str(rate))
    except InvalidOperation as error:
        raise ValueError(f"{rate!r} is not a decimal number") from error
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{rate!r} is not a price: it has to be 0 or more")
    return rate


def _rates_only(entry: Any) -> Any:
    # LiteLLM's table has some forty other keys a model, and null for a rate that is not known.
    if not isinstance(entry, dict):
        return entry
    return {key: entry[key] for key in RATE_KEYS if entry.get(key) is not None}


RATE_KEYS = (
    "input_cost_per_token",
    "cache_read_input_token_cost",
    "cache_creation_input_token_cost",
    "output_cost_per_token",
    "output_cost_per_reasoning_token",
)
Prices = dict[
    str, Annotated[dict[str, Annotated[str | float | int, AfterValidator(_dollars)]], BeforeValidator(_rates_only)]
]
"""US dollars per token by model and kind of token, as decimal strings or numbers. Other keys are left out."""
Pattern = Annotated[str, AfterValidator(_compiles)]
Rate = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[int, Field(ge=0, le=600_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AnswerRule(_Strict):
    """One rule of a script. All patterns given must be found (case does not matter); the first rule that fits answers.

    `{{user}}` in an answer is the last user message, cut to 200 characters; `{{user.NAME}}` is a named group of the
    `user` pattern. Several `answer`s are picked by the request's hash. `json` is sent as its JSON text.
    """

    model: Pattern | None = None
    system: Pattern | None = None
    user: Pattern | None = None
    answer: str | Annotated[list[str], Field(min_length=1)] | None = None
    json_: dict[str, Any] | None = Field(default=None, alias="json")

    @model_validator(mode="after")
    def _answers(self) -> "AnswerRule":
        if (self.answer is None) == (self.json_ is None):
            raise ValueError("needs either 'answer' or 'json'")
        groups = re.compile(self.user or "", PATTERN_FLAGS).groupindex
        for template in self.templates():
            for name in PLACEHOLDER.findall(template):
                if name and name not in groups:
                    raise ValueError(f"{{{{user.{name}}}}} needs a group (?P<{name}>…) in the 'user' pattern")
        return self

    def templates(self) -> list[str]:
        """The answers to pick from, placeholders unfilled; `json` as its text."""
        if self.json_ is not None:
            return [orjson.dumps(self.json_).decode()]
        return [self.answer] if isinstance(self.answer, str) else list(self.answer or [])


class FaultRule(_Strict):
    """What goes wrong for models whose name matches `model`. The first rule that fits a model counts.

    Rates are shares of requests, drawn by (seed, request hash, how often this request came before), so a run can be
    repeated. `rate_drop` closes the connection before anything is billed; `rate_drop_billed` bills, sends half of the
    answer and closes it; `rate_malformed` sends broken JSON with status 200 (billed). At most one of them happens to a
    try, so the rates add up to 1 at most. `fail_first` makes the first tries of each request fail with the status
    `fail_first_with`. A 429 says `Retry-After` in seconds, or as the date that they lead to. `omit_usage` leaves out
    what an answer used, as some servers do; it is billed all the same.
    """

    model: Pattern = ".*"
    latency_ms: Milliseconds = 0
    jitter_ms: Milliseconds = 0
    slow_body_ms: Milliseconds = 0
    rate_429: Rate = 0
    rate_500: Rate = 0
    rate_503: Rate = 0
    rate_quota: Rate = 0
    rate_drop: Rate = 0
    rate_drop_billed: Rate = 0
    rate_malformed: Rate = 0
    fail_first: Annotated[int, Field(ge=0, le=100)] = 0
    fail_first_with: Literal["429", "503"] = "503"
    retry_after_s: Annotated[int, Field(ge=0, le=3600)] = 1
    retry_after_as_date: bool = False
    omit_usage: bool = False

    @model_validator(mode="after")
    def _shares(self) -> "FaultRule":
        total = sum(value for name, value in self if name.startswith("rate_"))
        # Ten times 0.1 is a little more than 1.
        if total > 1 + 1e-9:
            raise ValueError(f"the rates add up to {total:g}; they are shares of all requests, so 1 at most")
        return self


class SimulatorConfig(_Strict):
    """A simulator. `prices` is in LiteLLM's format, by model name without provider prefix."""

    seed: int = 0
    prices: Prices = Field(default_factory=lambda: load_prices(None))
    answers: list[AnswerRule] = Field(default_factory=list)
    faults: list[FaultRule] = Field(default_factory=list)
    bill_path: Path | None = None
    """JSON Lines file that keeps the bill over restarts."""


def load_answers(path: Path) -> list[AnswerRule]:
    """The script in a JSON file. Raises `ConfigurationError` naming the rule that is wrong, counted from 1."""
    try:
        return TypeAdapter(list[AnswerRule]).validate_json(path.read_bytes())
    except OSError as error:
        raise SettingError(f"script {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        number, *field = first["loc"] or ("",)
        where = f"rule {number + 1}" if isinstance(number, int) else "the file"
        at = f" ({'.'.join(map(str, field))})" if field else ""
        raise SettingError(f"script {path}: {where}{at}: {complaint(first)}") from error


def load_prices(path: Path | None) -> Prices:
    """A price file in LiteLLM's format, or the simulator's own. Raises `ConfigurationError` naming the model."""
    source = path or resources.files("headwater.simulator").joinpath("prices.json")
    try:
        table = TypeAdapter(Prices).validate_json(source.read_bytes())
    except OSError as error:
        raise SettingError(f"price file {source} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ": ".join(map(str, first["loc"][:2]))
        raise SettingError(f"price file {source}: {where}: {complaint(first)}") from error
    return {name.removeprefix("openai/"): entry for name, entry in table.items()}
