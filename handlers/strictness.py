"""How closely a handoff of a given type is checked (contract row C2), and what holds when a check cannot run (C3)."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class ValidationStrictness(StrEnum):
    """STRICT payloads make claims that others act on; LENIENT ones only inform."""

    STRICT = "strict"
    LENIENT = "lenient"


class FailPolicy(StrEnum):
    """What a handoff becomes whose semantic check cannot run: FAIL_OPEN accepts it, marked unverified."""

    FAIL_OPEN = "fail_open"
    FAIL_CLOSED = "fail_closed"


_STRICT_TYPES = (
    *("deal_data", "customer_info", "research_result", "technical_question", "technical_answer", "project_plan"),
    *("risk_alert", "requirements_analysis"),
)
_LENIENT_TYPES = ("status_update", "notification", "status_report")


class StrictnessConfig:
    """Payload type → strictness. A type that is not listed is STRICT.

    Args:
        overrides: for every tenant.
        tenants: tenant id → overrides of its own, before those for all.
        on_unavailable: payload type → what holds when its semantic check cannot run; default `fail_open`.
        semantic: False switches the semantic check off for all; the structural check always runs.
    """

    def __init__(
        self,
        overrides: Mapping[str, ValidationStrictness] | None = None,
        *,
        tenants: Mapping[str, Mapping[str, ValidationStrictness]] | None = None,
        on_unavailable: Mapping[str, FailPolicy] | None = None,
        semantic: bool = True,
    ) -> None:
        table = dict.fromkeys(_STRICT_TYPES, ValidationStrictness.STRICT)
        table |= dict.fromkeys(_LENIENT_TYPES, ValidationStrictness.LENIENT)
        table |= {name: ValidationStrictness(value) for name, value in (overrides or {}).items()}
        self._table = MappingProxyType(table)
        self._tenants = {
            tenant: {name: ValidationStrictness(value) for name, value in own.items()}
            for tenant, own in (tenants or {}).items()
        }
        self._on_unavailable = {name: FailPolicy(policy) for name, policy in (on_unavailable or {}).items()}
        self._semantic = semantic

    def strictness_of(self, payload_type: str, tenant_id: str | None = None) -> ValidationStrictness:
        """The strictness for a payload type, for a tenant or in general."""
        own = self._tenants.get(tenant_id or "", {})
        return own.get(payload_type) or self._table.get(payload_type, ValidationStrictness.STRICT)

    def needs_semantic_check(self, payload_type: str, tenant_id: str | None = None) -> bool:
        """Is a model to be asked whether such a handoff is grounded?"""
        return self._semantic and self.strictness_of(payload_type, tenant_id) is ValidationStrictness.STRICT

    def on_unavailable(self, payload_type: str) -> FailPolicy:
        """What holds when the semantic check of such a handoff cannot run."""
        return self._on_unavailable.get(payload_type, FailPolicy.FAIL_OPEN)
