"""Embedding vectors as bytes: little-endian 32-bit floats, the way they are recorded."""

import array
import sys
from collections.abc import Sequence


def pack(vector: Sequence[float]) -> bytes:
    """Four bytes a number."""
    return _little(array.array("f", vector)).tobytes()


def unpack(data: bytes) -> list[float]:
    """The numbers again, each as near as 32 bits allow."""
    floats = array.array("f")
    floats.frombytes(data)
    return _little(floats).tolist()


def _little(floats: "array.array[float]") -> "array.array[float]":
    if sys.byteorder == "big":
        floats.byteswap()
    return floats
