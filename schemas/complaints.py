"""What is wrong with a value from outside, in our words: pydantic finds it, and people read it.

pydantic's own texts ("Input should be a valid string") speak of inputs and models; whoever misspelled a field of a task
file knows neither.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

_PLAIN = {
    "missing": "is missing",
    "extra_forbidden": "is not known here: is it misspelled?",
    "json_invalid": "is not JSON: {error}",
    "finite_number": "must be a finite number",
    "none_required": "must be left out",
    "greater_than": "must be over {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than": "must be under {lt:g}",
    "less_than_equal": "must be {le:g} or less",
    "multiple_of": "must be a multiple of {multiple_of:g}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have {max_length:,} characters at most",
    "string_pattern_mismatch": "must have the form {pattern}",
    "string_unicode": "is not valid Unicode",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "too_short": "must have at least {min_length}, and has {actual_length}",
    "too_long": "must have {max_length} at most, and has {actual_length}",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "timezone_naive": "must not have a time zone",
    "timezone_aware": "must have a time zone",
    "url_scheme": "must be a URL that begins with {expected_schemes}",
    "decimal_max_digits": "has more than {max_digits} digits",
    "decimal_max_places": "has more than {decimal_places} digits after the point",
    "union_tag_invalid": "must be {expected_tags}",
    "union_tag_not_found": "is missing {discriminator}",
}
_KINDS = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "decimal": "a decimal number",
    "bool": "true or false",
    "dict": "an object",
    "mapping": "an object",
    "model": "an object",
    "model_attributes": "an object",
    "dataclass": "an object",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "iterable": "a list",
    "bytes": "bytes",
    "date": "a date such as 2026-11-25",
    "time": "a time such as 12:30:00",
    "datetime": "a time such as 2026-11-25T12:30:00Z",
    "datetime_from_date": "a time such as 2026-11-25T12:30:00Z",
    "time_delta": "a duration in seconds",
    "uuid": "a UUID",
    "url": "a URL such as https://headwater.example",
    "path": "a path",
    "json": "JSON text",
}
_SAID_ALREADY = ("value_error", "assertion_error")
_PREFIXES = ("Value error, ", "Assertion failed, ")


def complaint(error: Mapping[str, Any]) -> str:
    """What is wrong with one value: to be read after its name, as in "session: is missing".

    `error` is one of pydantic's: {"type", "msg", "ctx"}. What a validator of ours said is kept as it is.
    """
    kind, context = error["type"], error.get("ctx") or {}
    if kind in _SAID_ALREADY:
        text = str(error["msg"])
        return next((text.removeprefix(prefix) for prefix in _PREFIXES if text.startswith(prefix)), text)
    if kind == "string_too_short" and context.get("min_length") == 1:
        return "is empty"
    if kind in _PLAIN:
        try:
            return _PLAIN[kind].format(**context)
        except (KeyError, ValueError, TypeError):
            return f"cannot be used ({kind.replace('_', ' ')})"
    wanted = _KINDS.get(kind.removesuffix("_type").removesuffix("_parsing"))
    return f"must be {wanted}" if wanted else f"cannot be used ({kind.replace('_', ' ')})"


def complaints(error: ValidationError) -> Iterator[tuple[str, str]]:
    """(where, what is wrong) of everything that a validation found. `where` is a dotted path; empty for all of it."""
    for one in error.errors(include_url=False, include_input=False):
        yield ".".join(map(str, one["loc"])), complaint(one)


def first_complaint(error: ValidationError, whole: str) -> str:
    """The first of them as one sentence; `whole` is the name of what was validated."""
    where, what = next(complaints(error))
    return f"{where or whole}: {what}"
