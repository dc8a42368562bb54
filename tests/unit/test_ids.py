"""Ids: what could reach outside its keys, or not be read back, is refused; derived ids follow from their cause."""

import time
from collections.abc import Callable

import pytest

from schemas.errors import InvalidInputError
from schemas.ids import (
    check_agent_id,
    check_idempotency_key,
    check_session_id,
    check_tenant_id,
    derived_id,
    new_id,
)

LOOK_ALIKES = [
    "\N{CYRILLIC SMALL LETTER A}cme",
    "acme\N{FULLWIDTH COLON}log",
    "acme\N{RATIO}log",
    "\N{FULLWIDTH LATIN SMALL LETTER A}cme",
    "acme\N{COMBINING ACUTE ACCENT}",
    "acmé",
    "acme\N{ARABIC-INDIC DIGIT ONE}",
    "acme\N{ZERO WIDTH SPACE}",
    "acme\N{SOFT HYPHEN}",
    "acme\N{RIGHT-TO-LEFT OVERRIDE}x",
    "acme\N{NON-BREAKING HYPHEN}x",
    "acme\N{NO-BREAK SPACE}",
    "\N{KELVIN SIGN}",
    "\ud800",
]
LEAVING = [
    "a:b",
    "a:log",
    "{a}",
    "a}",
    "a{",
    "a b",
    " a",
    "a ",
    "a|b",
    "a/b",
    "../a",
    "a*",
    "a?",
    "[a]",
    "a\\",
    "a>b",
    "$",
]
CONTROL = ["a\n", "\na", "a\r\n", "a\x00", "\x00", "a\tb", "a\x1b[31m", "a\x7f", "a\x85", "a\u2028"]


@pytest.mark.parametrize("tenant", [*LOOK_ALIKES, *LEAVING, *CONTROL, "", "A", "aCme", "-a", ".a", "_a", "a" * 64])
def test_a_tenant_id_that_could_leave_its_keys_is_refused(tenant: str) -> None:
    with pytest.raises(InvalidInputError, match="tenant id") as caught:
        check_tenant_id(tenant)
    # The text names the culprit and can be printed anywhere.
    assert str(caught.value).isprintable()
    assert ascii(tenant)[1:-1].isascii()


@pytest.mark.parametrize("tenant", ["a", "0", "acme", "acme-2", "a.b_c-d", "0" * 63, "a--", "a..b"])
def test_an_ordinary_tenant_id_is_allowed(tenant: str) -> None:
    assert check_tenant_id(tenant) == tenant


@pytest.mark.parametrize("value", [None, 7, b"acme", ["acme"], {"acme": 1}, True])
@pytest.mark.parametrize("check", [check_tenant_id, check_agent_id, check_session_id, check_idempotency_key])
def test_what_is_no_text_is_refused(check: Callable[[object], str], value: object) -> None:
    with pytest.raises(InvalidInputError):
        check(value)


@pytest.mark.parametrize("agent", [*LOOK_ALIKES, *LEAVING, *CONTROL, "", "-a", "a" * 64])
def test_an_agent_id_that_could_leave_its_queue_is_refused(agent: str) -> None:
    with pytest.raises(InvalidInputError, match="agent id"):
        check_agent_id(agent)


def test_agent_ids_may_have_capitals() -> None:
    assert check_agent_id("Triage.v2") == "Triage.v2"


@pytest.mark.parametrize(
    "session", ["", "a\n", "\n", "a\x00", "a\x7f", "a\x1b", "a\x85", "x" * 129, "\ud800", chr(0xDCFF)]
)
def test_a_session_id_with_control_characters_is_refused(session: str) -> None:
    with pytest.raises(InvalidInputError, match="session id"):
        check_session_id(session)


@pytest.mark.parametrize("session", ["s", "Gespräch 7: {a}", "語" * 128, "a:b"])
def test_a_session_id_may_be_any_words(session: str) -> None:
    # It never becomes a part of a key.
    assert check_session_id(session) == session


@pytest.mark.parametrize("key", ["", " ", "a b", "a\n", "ü", "x" * 201, "a\x7f", "a\u2028"])
def test_an_idempotency_key_is_printable_ascii(key: str) -> None:
    with pytest.raises(InvalidInputError, match="idempotency key"):
        check_idempotency_key(key)
    assert check_idempotency_key("~!{order:7}|" + "x" * 188)


def test_a_long_culprit_is_cut_in_the_message() -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_tenant_id("x" * 1_000_000)
    assert len(str(caught.value)) < 300


def test_new_ids_are_unique_and_their_order_is_age() -> None:
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert {len(i) for i in ids} == {24}
    before = time.time_ns() // 1_000_000
    assert int(new_id()[:12], 16) >= before
    assert max(ids)[:12] <= new_id()[:12]


def test_derived_ids_depend_on_their_cause_only() -> None:
    assert derived_id("a", 1) == derived_id("a", 1) == "2f70d784e1e330ab8dc9f39e"
    causes: list[tuple[str | int, ...]] = [("a", 1), ("a", 2), ("b", 1), ("a1",), ("a", "1", ""), (), ("",), ("", "")]
    assert len({derived_id(*cause) for cause in causes}) == len(causes) - 1  # () and ("",) are the same nothing
