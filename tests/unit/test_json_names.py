"""One word for one thing in JSON: `tenant`, `session`, `task`, `event`, `agent`, `call`, and none of them with `_id`.

What stands in the log keeps the names that are stored, such as `agent_id` in an event's body.
"""

from datetime import UTC, datetime
from typing import Any

from headwater.app import create_app
from headwater.settings import Settings
from schemas.task import Accepted, TaskOutcome
from streams.parked import DeadLetter

LONG = {f"{name}_id" for name in ("tenant", "session", "task", "event", "agent", "call")}


def test_what_http_answers_has_short_names() -> None:
    schemas: dict[str, Any] = create_app(Settings()).openapi()["components"]["schemas"]
    named = {(name, field) for name, schema in schemas.items() for field in schema.get("properties", ())}
    assert ("AcceptedOut", "task") in named
    assert [pair for pair in named if pair[1] in LONG] == []
    examples = [schema["examples"] for schema in schemas.values() if "examples" in schema]
    assert examples
    assert [field for given in examples for example in given for field in example if field in LONG] == []


def test_what_the_command_line_prints_has_the_same() -> None:
    accepted = Accepted(tenant_id="acme", session_id="s", task_id="t", position="1-0")
    assert accepted.as_dict() == {"tenant": "acme", "session": "s", "task": "t", "position": "1-0", "duplicate": False}
    outcome = TaskOutcome(tenant_id="acme", task_id="t", status="completed", call_chain=("user",)).as_dict()
    assert (outcome["tenant"], outcome["task"], LONG & set(outcome)) == ("acme", "t", set())
    letter = DeadLetter(
        id="1-0",
        tenant_id="acme",
        parked_at=datetime(2026, 1, 1, tzinfo=UTC),
        reader="decider",
        position="1-0",
        attempts=4,
        error="no",
        event_id="e",
        event_type="task.submitted",
        session_id="s",
        task_id="t",
        call_id=None,
        fields={"task": "t"},
    ).as_dict()
    assert [letter[name] for name in ("tenant", "event", "session", "task", "call")] == ["acme", "e", "s", "t", None]
    assert LONG & set(letter) == set()
