"""How closely a handoff of a given type is checked (contract row C2)."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class ValidationStrictness(StrEnum):
    """STRICT payloads make claims that others act on; LENIENT ones only inform."""

    STRICT = "strict"
    LENIENT = "lenient"


_LENIENT_TYPES = ("status_update", "notification", "status_report")


class StrictnessConfig:
    """Payload type → strictness. A type that is not listed is STRICT."""

    def __init__(self, overrides: Mapping[str, ValidationStrictness] | None = None) -> None:
        table = dict.fromkeys(_LENIENT_TYPES, ValidationStrictness.LENIENT) | dict(overrides or {})
        self._table = MappingProxyType(table)

    def strictness_of(self, payload_type: str) -> ValidationStrictness:
        """The strictness for a payload type."""
        return self._table.get(payload_type, ValidationStrictness.STRICT)
