"""Large contents move to blobs and come back; a user's own object is never taken for a reference."""

from typing import Any

import pytest

from schemas.content import (
    INLINE_LIMIT_BYTES,
    MAX_CONTENT_BYTES,
    blob_of,
    canonical_json,
    content_hash,
    offload,
    resolve,
    seal,
    unseal,
)
from schemas.errors import InvalidInputError


@pytest.mark.parametrize("value", [None, 0, "", "x" * (INLINE_LIMIT_BYTES - 2), [], {}, {"a": [1]}, True, 1.5])
def test_a_small_value_stays_inline(value: Any) -> None:
    blobs: dict[str, bytes] = {}
    assert offload(value, blobs) == value
    assert not blobs


@pytest.mark.parametrize(
    "value", ["x" * INLINE_LIMIT_BYTES, ["x"] * 1000, {"k": "ü" * 1100}, "\N{GRINNING FACE}" * 600]
)
def test_a_large_value_becomes_a_reference_under_its_hash(value: Any) -> None:
    blobs: dict[str, bytes] = {}
    reference = offload(value, blobs)
    [(sha, data)] = blobs.items()
    assert reference == {"$blob": sha, "bytes": len(data)}
    assert sha == content_hash(data) == content_hash(canonical_json(value))
    assert resolve(reference, blobs) == value
    # What is a reference already stays one, and nothing is stored again.
    again: dict[str, bytes] = {}
    assert offload(reference, again) == reference
    assert not again


def test_equal_values_are_one_blob() -> None:
    blobs: dict[str, bytes] = {}
    filler = "x" * INLINE_LIMIT_BYTES
    assert offload({"b": 1, "a": filler}, blobs) == offload({"a": filler, "b": 1}, blobs)
    assert len(blobs) == 1


@pytest.mark.parametrize(
    "value",
    [
        {"$blob": "0" * 64, "bytes": 3},
        {"$blob": "mine", "bytes": 1},
        {"$blob": "mine"},
        {"$blob": None, "bytes": None, "more": 1},
        {"$json": "1"},
        {"$json": {"$json": "1"}},
        {"$json": "not json"},
        {"$blob": "x" * 3000, "bytes": 1},
    ],
)
def test_what_looks_like_a_reference_is_sealed_where_it_enters(value: dict[str, Any]) -> None:
    blobs: dict[str, bytes] = {}
    stored = offload(seal(value), blobs)
    assert stored != value
    assert resolve(stored, blobs) == value
    assert unseal(seal(value)) == value
    # Twice is twice, not once.
    assert unseal(unseal(seal(seal(value)))) == value


@pytest.mark.parametrize(
    "value", ["$blob", ["$blob", "bytes"], {"blob": 1}, {"x": {"$blob": "deep", "bytes": 1}}, None]
)
def test_what_does_not_look_like_one_is_left_alone(value: Any) -> None:
    assert seal(value) == value
    assert unseal(value) == value
    assert blob_of(value) is None


def test_a_missing_blob_is_named() -> None:
    with pytest.raises(KeyError, match="0" * 64):
        resolve({"$blob": "0" * 64, "bytes": 1}, {})


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [{1, 2}, "\ud800" * 600, {"k": "\ud800"}, {"\ud800": 1}, {(1, 2): 3}, 2**64, _nested(500)]
)
def test_what_json_cannot_express_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInputError):
        canonical_json(value)


def test_what_is_over_the_limit_is_refused_with_both_sizes() -> None:
    blobs: dict[str, bytes] = {}
    with pytest.raises(InvalidInputError, match=r"4,194,305 bytes.*4,194,304"):
        offload("x" * (MAX_CONTENT_BYTES - 1), blobs)
    assert not blobs
    offload("x" * (MAX_CONTENT_BYTES - 2), blobs)
    assert blobs
