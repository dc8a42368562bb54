"""How closely a handoff is checked (row C2)."""

import pytest

from handlers.strictness import StrictnessConfig, ValidationStrictness

STRICT = (
    *("deal_data", "customer_info", "research_result", "technical_question", "technical_answer", "project_plan"),
    *("risk_alert", "requirements_analysis"),
)
LENIENT = ("status_update", "notification", "status_report")


@pytest.mark.parametrize("payload_type", STRICT)
def test_what_others_act_on_is_strict(payload_type: str) -> None:
    assert StrictnessConfig().strictness_of(payload_type) is ValidationStrictness.STRICT


@pytest.mark.parametrize("payload_type", LENIENT)
def test_what_only_informs_is_lenient(payload_type: str) -> None:
    assert StrictnessConfig().strictness_of(payload_type) is ValidationStrictness.LENIENT


@pytest.mark.parametrize("payload_type", ["", "unheard_of", "Status_Update", "status_update ", "\u0000"])
def test_an_unknown_type_is_strict(payload_type: str) -> None:
    assert StrictnessConfig().strictness_of(payload_type) is ValidationStrictness.STRICT


def test_overrides_change_the_named_types_only() -> None:
    config = StrictnessConfig({"notification": ValidationStrictness.STRICT, "memo": ValidationStrictness.LENIENT})
    assert config.strictness_of("notification") is ValidationStrictness.STRICT
    assert config.strictness_of("memo") is ValidationStrictness.LENIENT
    assert config.strictness_of("status_update") is ValidationStrictness.LENIENT
    # One configuration's overrides are not another's.
    assert StrictnessConfig().strictness_of("memo") is ValidationStrictness.STRICT


def test_a_tenants_own_overrides_come_first_and_are_nobody_elses() -> None:
    config = StrictnessConfig(
        {"memo": ValidationStrictness.LENIENT}, tenants={"acme": {"memo": ValidationStrictness.STRICT}}
    )
    assert config.strictness_of("memo", "acme") is ValidationStrictness.STRICT
    assert config.strictness_of("memo", "globex") is ValidationStrictness.LENIENT
    assert config.strictness_of("memo") is ValidationStrictness.LENIENT


def test_words_are_taken_and_others_refused() -> None:
    assert StrictnessConfig({"memo": "lenient"}).strictness_of("memo") is ValidationStrictness.LENIENT  # type: ignore[dict-item]  # as from a file
    with pytest.raises(ValueError, match="lax"):
        StrictnessConfig({"memo": "lax"})  # type: ignore[dict-item]  # as from a file
