"""What a simulator is told: its seed, its prices, its script of answers and its faults."""

import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from schemas.errors import ConfigurationError

Rate = Annotated[float, Field(ge=0, le=1)]
Milliseconds = Annotated[int, Field(ge=0, le=600_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AnswerRule(_Strict):
    """One rule of a script. All patterns given must be found (case does not matter); the first rule that fits answers.

    `{{user}}` in an answer is the last user message, cut to 200 characters; `{{user.NAME}}` is a named group of the
    `user` pattern. Several `answer`s are picked by the request's hash. `json` is sent as its JSON text.
    """

    model: str | None = None
    system: str | None = None
    user: str | None = None
    answer: str | list[str] | None = None
    json_: dict[str, Any] | None = Field(default=None, alias="json")

    @field_validator("model", "system", "user")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"is not a regular expression: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _answers(self) -> "AnswerRule":
        if (self.answer is None) == (self.json_ is None):
            raise ValueError("needs either 'answer' or 'json'")
        return self


class FaultRule(_Strict):
    """What goes wrong for models whose name matches `model`. The first rule that fits a model counts.

    Rates are shares of requests, drawn by (seed, request hash, how often this request came before), so a run can be
    repeated. `rate_drop` closes the connection before anything is billed, `rate_drop_billed` after, `rate_malformed`
    sends broken JSON with status 200 (billed). `fail_first` makes the first tries of each request a 503.
    """

    model: str = ".*"
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
    retry_after_s: Annotated[int, Field(ge=0, le=3600)] = 1


class SimulatorConfig(_Strict):
    """A simulator. `prices` is in LiteLLM's format, by model name without provider prefix."""

    seed: int = 0
    prices: dict[str, dict[str, str | float | int]] = Field(default_factory=lambda: load_prices(None))
    answers: list[AnswerRule] = Field(default_factory=list)
    faults: list[FaultRule] = Field(default_factory=list)
    bill_path: Path | None = None
    """JSON Lines file that keeps the bill over restarts."""


def load_answers(path: Path) -> list[AnswerRule]:
    """The script in a JSON file. Raises `ConfigurationError` naming the rule that is wrong."""
    try:
        return TypeAdapter(list[AnswerRule]).validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"script {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = f"rule {first['loc'][0]}" if first["loc"] else "the file"
        raise ConfigurationError(f"script {path}: {where}: {first['msg']}") from error


def load_prices(path: Path | None) -> dict[str, dict[str, str | float | int]]:
    """A price file, or the simulator's own. Raises `ConfigurationError`."""
    try:
        source = path or resources.files("headwater.simulator").joinpath("prices.json")
        table: dict[str, dict[str, str | float | int]] = orjson.loads(source.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise ConfigurationError(f"price file {path}: {error}") from error
    return {name.removeprefix("openai/"): entry for name, entry in table.items()}
