"""The envelope, and how an event stands in a stream entry and comes back."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import orjson
import pytest

from schemas.bodies import BODIES, AgentCompleted, HandoffProposed, TaskCompleted, TaskFailed, TaskSubmitted
from schemas.errors import InvalidInputError, UnreadableEventError
from schemas.event import FIELDS, AgentEvent, decode, encode, entry_fields
from schemas.handoff import HandoffProposal

AT = datetime(2026, 11, 25, 12, 0, 0, 123456, tzinfo=UTC)
LARGE = "x" * 5000


def event(**more: Any) -> AgentEvent:
    fields: dict[str, Any] = {
        "id": "e1",
        "tenant_id": "acme",
        "session_id": "s1",
        "task_id": "t1",
        "source_agent_id": "user",
        "call_chain": ("user", "supervisor"),
        "at": AT,
        "body": TaskFailed(reason="no"),
    }
    return AgentEvent(**fields | more)


def stored(original: AgentEvent, blobs: dict[str, bytes] | None = None) -> dict[str, str]:
    values = encode(original, {} if blobs is None else blobs)
    texts = [value.decode() if isinstance(value, bytes) else value for value in values]
    return dict(zip(FIELDS, texts, strict=True))


def test_an_entry_is_plain_and_readable() -> None:
    assert stored(event(parent_event_id="e0", priority="high")) == {
        "id": "e1",
        "type": "task.failed",
        "v": "1",
        "session": "s1",
        "task": "t1",
        "priority": "high",
        "source": "user",
        "chain": "user>supervisor",
        "parent": "e0",
        "at": "2026-11-25T12:00:00.123456Z",
        "body": stored(event())["body"],
    }
    assert orjson.loads(stored(event())["body"])["reason"] == "no"


def test_what_was_stored_comes_back() -> None:
    original = event(parent_event_id="e0", priority="critical")
    assert decode("acme", "1-2", stored(original)) == replace(original, position="1-2")
    assert original.type == "task.failed"
    assert original.correlation_id == "t1"


def test_times_are_utc_with_microseconds() -> None:
    elsewhere = event(at=AT.astimezone(timezone(timedelta(hours=5, minutes=30))))
    assert stored(elsewhere)["at"] == "2026-11-25T12:00:00.123456Z"
    assert stored(event(at=AT.replace(microsecond=0)))["at"] == "2026-11-25T12:00:00.000000Z"


def test_large_contents_and_nothing_else_are_moved_out() -> None:
    blobs: dict[str, bytes] = {}
    payload = HandoffProposal(
        source_agent_id="a",
        target_agent_id="b",
        tenant_id="acme",
        payload_type="research_result",
        content=LARGE,
        confidence=1,
        call_chain=("user", "a"),
        reason=LARGE,
    )
    back = decode("acme", "1-1", stored(event(body=HandoffProposed(call_id="c", payload=payload)), blobs)).body
    assert isinstance(back, HandoffProposed)
    assert back.payload.reason == LARGE
    assert set(blobs) == {back.payload.content["$blob"]}
    done = TaskCompleted(result=LARGE, routed_by="rules", agent_results={"a": "small", "b": LARGE})
    back = decode("acme", "1-1", stored(event(body=done), blobs)).body
    assert isinstance(back, TaskCompleted)
    # The same text is the same blob, and results are moved one by one.
    assert back.agent_results == {"a": "small", "b": back.result}
    assert len(blobs) == 1


@pytest.mark.parametrize("confidence", [float("nan"), float("inf"), float("-inf"), -0.0, 1e300])
def test_a_handoff_of_any_confidence_can_be_read_back_and_judged(confidence: float) -> None:
    payload = HandoffProposal(
        source_agent_id="a",
        target_agent_id="b",
        tenant_id="acme",
        payload_type="memo",
        content=1,
        confidence=confidence,
        call_chain=("user", "a"),
    )
    fields = stored(event(body=HandoffProposed(call_id="c", payload=payload)))
    orjson.loads(fields["body"])
    back = decode("acme", "1-1", fields).body
    assert isinstance(back, HandoffProposed)
    assert repr(back.payload.confidence) == repr(confidence)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tenant_id": "a:b"}, "tenant id"),
        ({"session_id": ""}, "session id"),
        ({"id": ""}, "1 to 64"),
        ({"id": "x" * 65}, "1 to 64"),
        ({"task_id": "x" * 65}, "1 to 64"),
        ({"task_id": ""}, "1 to 64"),
        ({"call_chain": ()}, "call chain"),
        ({"source_agent_id": ""}, "call chain"),
        ({"source_agent_id": "writer"}, r"'writer' is not in the call chain \['user', 'supervisor'\]"),
        ({"priority": "urgent"}, "'urgent'"),
        ({"at": AT.replace(tzinfo=None)}, "time zone"),
    ],
)
def test_a_broken_rule_of_the_envelope_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        event(**wrong)


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named(field: str) -> None:
    fields = stored(event())
    del fields[field]
    with pytest.raises(
        UnreadableEventError, match=rf"entry 1-1 of tenant 'acme': field '{field}' is missing"
    ) as caught:
        decode("acme", "1-1", fields)
    assert caught.value.reason == ("no_task" if field == "task" else "missing_field")


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        ({"type": "task.imagined"}, "unknown_type", "'task.imagined' is not known here: upgrade"),
        ({"v": "2"}, "unknown_version", "task.failed has version 2, but this code knows 1 to 1: upgrade"),
        ({"v": "0"}, "unknown_version", "version 0"),
        ({"v": "-1"}, "unknown_version", "version -1"),
        ({"v": "one"}, "unknown_version", "'one'"),
        ({"v": ""}, "unknown_version", "''"),
        ({"body": "{"}, "malformed_body", "task.failed|TaskFailed|JSON"),
        ({"body": ""}, "malformed_body", "JSON|EOF"),
        ({"body": "[]"}, "malformed_body", "object"),
        ({"body": "null"}, "malformed_body", "object"),
        ({"body": "{}"}, "malformed_body", "reason"),
        ({"body": '{"reason": 7}'}, "malformed_body", "reason"),
        ({"body": '{"reason": "no", "colour": "red"}'}, "malformed_body", "colour"),
        ({"type": "agent.completed", "v": "2", "body": "[1"}, "malformed_body", "AgentCompleted"),
        ({"type": "agent.completed", "v": "1", "body": "[1"}, "malformed_body", "unexpected end"),
        ({"type": "agent.completed", "v": "1", "body": "[1]"}, "malformed_body", "not a JSON object"),
        ({"type": "agent.completed", "v": "1", "body": "{}"}, "malformed_body", "seconds"),
        ({"type": "agent.completed", "v": "1", "body": '{"seconds": null}'}, "malformed_body", "NoneType"),
        ({"at": "yesterday"}, "malformed_envelope", "yesterday"),
        ({"at": "2026-11-25T12:00:00"}, "malformed_envelope", "time zone"),
        ({"chain": ""}, "malformed_envelope", "call chain"),
        ({"chain": "supervisor>writer"}, "malformed_envelope", "'user' is not in the call chain"),
        ({"source": "writer"}, "malformed_envelope", "'writer'"),
        ({"priority": ""}, "malformed_envelope", "priority"),
        ({"session": "a\nb"}, "malformed_envelope", "session id"),
        ({"id": ""}, "malformed_envelope", "1 to 64"),
        ({"task": ""}, "no_task", "1 to 64"),
        ({"type": "session.cleared", "body": "{}", "task": "", "id": ""}, "malformed_envelope", "1 to 64"),
        ({"body": '{"reason": "\udcff"}'}, "not_text", "not UTF-8"),
        ({"task": "t\x00"}, "not_text", "NUL"),
    ],
)
def test_an_unreadable_entry_names_itself_the_culprit_and_a_reason(
    change: dict[str, str], reason: str, said: str
) -> None:
    with pytest.raises(UnreadableEventError, match=said) as caught:
        decode("acme", "17-4", stored(event()) | change)
    assert "entry 17-4 of tenant 'acme'" in str(caught.value)
    assert caught.value.reason == reason
    # It can be printed and logged whatever was in the entry.
    str(caught.value).encode()


def test_more_fields_than_known_are_ignored() -> None:
    # Redis entries may carry somebody's own trace id; the event is in the known ones.
    assert decode("acme", "1-1", stored(event()) | {"trace": "abc"}).id == "e1"


def test_a_body_that_json_cannot_express_is_refused() -> None:
    bad = TaskSubmitted(task_type="task", text="ok", data={"x": {1, 2}})
    with pytest.raises(InvalidInputError, match=r"task\.submitted"):
        encode(event(body=TaskSubmitted(task_type="\ud800", text="ok")), {})
    encode(event(body=bad), {})  # a set has a JSON form in pydantic: a list


def test_an_old_version_is_read_as_todays() -> None:
    body = {"agent_id": "a", "call_id": "c", "delivery": 1, "result": None, "handed_over": False, "seconds": 0.25}
    fields = stored(event()) | {"type": "agent.completed", "v": "1", "body": orjson.dumps(body).decode()}
    back = decode("acme", "1-1", fields).body
    assert isinstance(back, AgentCompleted)
    assert back.duration_us == 250_000
    # Stored again, it is the newest version.
    assert stored(event(body=back))["v"] == "2"


def test_entry_fields_come_in_pairs() -> None:
    assert entry_fields(["a", "1", "b", "2"]) == {"a": "1", "b": "2"}
    with pytest.raises(ValueError, match="shorter"):
        entry_fields(["a", "1", "b"])


@pytest.mark.parametrize("name", BODIES)
def test_every_type_says_when_it_happens_and_is_frozen(name: str) -> None:
    body = BODIES[name]
    assert body.type == name
    assert body.version >= 1
    assert body.__doc__
    assert len(body.__doc__) > 20
    assert body.model_config["frozen"]
    assert body.model_config["extra"] == "forbid"
    assert {path.partition(".")[0] for path in body.contents} <= set(body.model_fields)
