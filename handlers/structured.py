"""Structured output: a model is asked for JSON of a given form, its answer is read robustly and validated."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from schemas.content import Json

M = TypeVar("M", bound=BaseModel)
Check = Callable[[M], str | None]
"""Says what is wrong with an answer of the right form, such as an agent that does not exist; None if nothing is."""

MAX_ERRORS = 5
MAX_STARTS = 50
"""An answer's text is searched for JSON from this many brackets at most."""
_FENCED = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.DOTALL)
_BRACKET = re.compile(r"[\[{]")
_DECODER = json.JSONDecoder()


class BadAnswerError(Exception):
    """An answer that cannot be used; the text says why, for the model to read."""


def instructions(model: type[BaseModel]) -> str:
    """What the system prompt says about the form: not every model takes a schema as a parameter."""
    schema = json.dumps(model.model_json_schema(), ensure_ascii=False, sort_keys=True)
    return f"Answer with one JSON value that is valid under this JSON Schema, and with nothing else:\n{schema}"


def response_format(model: type[BaseModel]) -> dict[str, Any]:
    """The request's parameter, in OpenAI's form. Not `strict`: that mode knows only a part of JSON Schema."""
    name = re.sub(r"[^a-zA-Z0-9_-]", "_", model.__name__)[:64]
    return {"type": "json_schema", "json_schema": {"name": name, "schema": model.model_json_schema()}}


def read(text: str, model: type[M], check: Check[M] | None, *, finish_reason: str | None = None) -> M:
    """The first JSON value in `text` that is a valid `model`, and passes `check`.

    Raises:
        BadAnswerError: there is none; of the JSON values found, the first one's errors are told.
    """
    first: str | None = None
    for candidate in _candidates(text):
        try:
            found = model.model_validate_json(candidate)
        except ValidationError as error:
            first = first or _errors(error)
            continue
        wrong = None if check is None else check(found)
        if wrong is None:
            return found
        raise BadAnswerError(wrong)
    if first is not None:
        raise BadAnswerError(first)
    cut = ": it was cut off at the limit of tokens" if finish_reason == "length" else ""
    raise BadAnswerError(f"the answer is not JSON{cut}")


def repair(answer: str, problem: str) -> list[Json]:
    """The messages that ask a model to repair its answer."""
    asked = (
        f"Your answer cannot be used: {problem}\n"
        "Answer again, with one JSON value that is valid under the JSON Schema, and with nothing else."
    )
    return [{"role": "assistant", "content": answer}, {"role": "user", "content": asked}]


def _candidates(text: str) -> Iterator[str]:
    """The JSON texts in an answer: the whole of it, what stands in code fences, what stands between prose."""
    for part in (text, *(match.group(1) for match in _FENCED.finditer(text))):
        try:
            json.loads(part)
        except (ValueError, RecursionError):
            continue
        yield part
    start = 0
    for _ in range(MAX_STARTS):
        found = _BRACKET.search(text, start)
        if found is None:
            return
        try:
            _, start = _DECODER.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            start = found.end()
            continue
        yield text[found.start() : start]


def _errors(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False)
    told = [f"{'.'.join(map(str, e['loc'])) or 'the value'}: {e['msg']}" for e in found[:MAX_ERRORS]]
    more = len(found) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more else "")
