"""Which event, agent and attempt put a value into a result: the value is followed back through the log."""

from collections.abc import Iterator
from typing import Any

from headwater.replay.recording import Recording, resolved
from schemas.bodies import (
    AgentCompleted,
    HandoffProposed,
    LlmAttempted,
    StepRecorded,
    SupervisorAnswered,
    TaskCompleted,
    TaskForked,
    TaskSubmitted,
)
from schemas.content import Json
from schemas.errors import InvalidInputError, NotFoundError
from schemas.event import AgentEvent

MIN_TEXT_CHARS = 3
"""A shorter text is found everywhere, and proves nothing."""


async def blame(recording: Recording, events: list[AgentEvent], pointer: str) -> dict[str, Any]:
    """Where the value at a JSON pointer (RFC 6901, such as `/reply`) of a task's result came from.

    Returns {"pointer", "value", "origin", "path"}: `path` has every place that carried the value, oldest first, as
    {"position", "event_id", "type", "by", "attempt", "where", "how"}; `how` is "equal" (the same value), "contains" (a
    text that has it inside) or "part" (a piece of it). `origin` is the oldest place that is not the task itself, or
    the task's own input.

    Raises:
        InvalidInputError: the result has nothing at that pointer.
        NotFoundError: the task has no result yet.
    """
    tenant_id = events[0].tenant_id
    done = next((event for event in events if isinstance(event.body, TaskCompleted)), None)
    if done is None or not isinstance(done.body, TaskCompleted):
        raise NotFoundError(f"task {events[0].task_id} has no result: it was not completed")
    value = at_pointer(await resolved(recording, tenant_id, done.body.result), pointer)
    path: list[dict[str, Any]] = []
    for event in events:
        for name, content in _carried(event):
            shown = await resolved(recording, tenant_id, content)
            for where, how in _find(shown, value):
                path.append(
                    {
                        "position": event.position,
                        "event": event.id,
                        "type": event.type,
                        "by": event.source_agent_id,
                        "attempt": event.body.attempt if isinstance(event.body, LlmAttempted) else None,
                        "where": f"/{name}{where}",
                        "how": how,
                    }
                )
    made = [hop for hop in path if hop["type"] not in (TaskSubmitted.type, TaskForked.type, TaskCompleted.type)]
    given = [hop for hop in path if hop["type"] in (TaskSubmitted.type, TaskForked.type)]
    exact = [hop for hop in made if hop["how"] != "part"]
    origin = next(iter([*given, *exact, *made]), None)
    return {"pointer": pointer, "value": value, "origin": origin, "path": path}


def _carried(event: AgentEvent) -> list[tuple[str, Json]]:
    """The contents of an event that can hold a value of the result: (name in the body, value)."""
    match event.body:
        case TaskSubmitted() as body:
            return [("text", body.text), ("data", body.data)]
        case TaskForked() as body:
            return [("text", body.text), ("data", body.data), ("state", body.state), ("point", body.point)]
        case LlmAttempted(status="ok") as body:
            return [("response", body.response)]
        case StepRecorded() as body:
            return [("result", body.result)]
        case HandoffProposed() as body:
            return [("payload/content", body.payload.content)]
        case AgentCompleted(handed_over=False) as body:
            return [("result", body.result)]
        case SupervisorAnswered(error=None) as body if body.question != "decide":
            return [("answer", body.answer)]
        case TaskCompleted() as body:
            return [("result", body.result)]
    return []


def _find(carried: Json, value: Json) -> Iterator[tuple[str, str]]:
    """(JSON pointer, how) of every place in `carried` that has `value`."""
    for where, found in _leaves(carried):
        if found == value and type(found) is type(value):
            yield where, "equal"
        elif isinstance(found, str) and isinstance(value, str) and min(len(found), len(value)) >= MIN_TEXT_CHARS:
            if value in found:
                yield where, "contains"
            elif found in value:
                yield where, "part"


def _leaves(value: Json, where: str = "") -> Iterator[tuple[str, Json]]:
    yield where, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{where}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{where}/{index}")


def at_pointer(value: Json, pointer: str) -> Json:
    """The value at a JSON pointer. Raises `InvalidInputError` naming what there is instead."""
    if pointer and not pointer.startswith("/"):
        pointer = f"/{pointer}"
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            there = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise InvalidInputError(f"the result has nothing at {pointer!r}: at {part!r} there is {there}")
    return value
