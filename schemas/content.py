"""Content: a JSON value that stays inline while it is small and becomes a reference to a blob when it is not.

A blob is stored once per tenant under the SHA-256 of its canonical JSON. In an event's body, a blob reference is
the object `{"$blob": <sha256 hex>, "bytes": <int>}`. A user's own object that looks like one is *sealed* where it
enters, as `{"$json": <its JSON text>}`, so that the two cannot be confused.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from schemas.errors import InvalidInputError

INLINE_LIMIT_BYTES = 2048
MAX_CONTENT_BYTES = 4 * 1024 * 1024

Json = Any
"""Any value that JSON can express. pydantic has a `JsonValue`, at ten times the validation cost on large values."""


def canonical_json(value: Json) -> bytes:
    """`value` as JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises:
        InvalidInputError: JSON cannot express the value (a set, NaN in a key, a lone surrogate, …).
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except (TypeError, orjson.JSONEncodeError, RecursionError) as error:
        raise InvalidInputError(f"a value of type {type(value).__name__} cannot be stored as JSON: {error}") from error


def well_formed(text: str) -> str:
    """`text` as it can be stored: two halves of a surrogate pair are one character, a lone half becomes U+FFFD.

    A provider's JSON may have such halves: an answer that was cut off in an emoji, or a stream that was split in one.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def content_hash(data: bytes) -> str:
    """SHA-256 of `data` as 64 hex characters."""
    return hashlib.sha256(data).hexdigest()


def seal(value: Json) -> Json:
    """A value from outside, made safe to stand beside references: an object with our marks becomes `{"$json": …}`."""
    if type(value) is dict and ("$blob" in value or "$json" in value):
        return {"$json": canonical_json(value).decode()}
    return value


def unseal(value: Json) -> Json:
    """The value that was sealed, or `value` itself."""
    if type(value) is dict and len(value) == 1 and type(value.get("$json")) is str:
        return orjson.loads(value["$json"])
    return value


def blob_of(value: Json) -> str | None:
    """The SHA-256 that `value` refers to, or None if it is not a blob reference."""
    if type(value) is dict and len(value) == 2 and "$blob" in value and "bytes" in value:
        return str(value["$blob"])
    return None


def offload(value: Json, blobs: dict[str, bytes]) -> Json:
    """`value` itself if it is small, else a reference to it, with its JSON added to `blobs` (hash → bytes).

    A reference stays as it is. Raises `InvalidInputError` for what JSON cannot express or what is over 4 MiB.
    """
    if value is None or blob_of(value) is not None:
        return value
    if type(value) is str and len(value) * 4 < INLINE_LIMIT_BYTES:
        return value
    data = canonical_json(value)
    if len(data) <= INLINE_LIMIT_BYTES:
        return value
    if len(data) > MAX_CONTENT_BYTES:
        raise InvalidInputError(
            f"a value of {len(data):,} bytes is over the limit of {MAX_CONTENT_BYTES:,}: store it elsewhere and "
            "pass a reference"
        )
    sha = content_hash(data)
    blobs[sha] = data
    return {"$blob": sha, "bytes": len(data)}


def resolve(value: Json, blobs: Mapping[str, bytes]) -> Json:
    """The value behind a reference or a seal, or `value` itself. Raises `KeyError` when the blob is missing."""
    sha = blob_of(value)
    return unseal(value if sha is None else orjson.loads(blobs[sha]))
