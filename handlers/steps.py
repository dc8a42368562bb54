"""Durable steps: work that is done once per call, recorded, and given back when the agent is run again."""

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pydantic_core import PydanticSerializationError, to_jsonable_python

from handlers.journal import Journal
from schemas.bodies import EventBody, StepRecorded
from schemas.content import Json, canonical_json, content_hash, seal
from schemas.errors import InvalidInputError
from schemas.event import AgentEvent

B = TypeVar("B", bound=EventBody)


async def durable_step(
    journal: Journal, ordinal: int, name: str, asked: str, work: Callable[[], Awaitable[Json]]
) -> Json:
    """What `work` gave when this was first asked at `ordinal`, or else gives now; then it is recorded.

    `asked` is the hash of the request. Raises what `work` raises (nothing is recorded then), and `StaleLeaseError` if
    this worker lost the call.
    """
    found = recorded(journal, ordinal, asked, StepRecorded)
    if found is not None:
        return await journal.resolve(found[1].result)
    clock = time.perf_counter_ns()
    value = await work()
    body = StepRecorded(
        **stamp(journal, ordinal, asked),
        name=name,
        result=seal(value),
        duration_us=(time.perf_counter_ns() - clock) // 1000,
    )
    await journal.record_step(body)
    return value


def recorded(journal: Journal, ordinal: int, asked: str, kind: type[B]) -> tuple[AgentEvent, B] | None:
    """The fact of this kind that an earlier delivery recorded for the same request, noted as given; or None."""
    for event in journal.recorded(ordinal):
        if isinstance(event.body, kind) and getattr(event.body, "request_hash", None) == asked:
            journal.reuse(event)
            return event, event.body
    return None


def stamp(journal: Journal, ordinal: int, asked: str) -> dict[str, Any]:
    """What every fact that is recorded within a call says about its place there."""
    return {
        "call_id": journal.call.call_id,
        "ordinal": ordinal,
        "delivery": journal.delivery.delivery,
        "agent_id": journal.call.agent_id,
        "request_hash": asked,
        "diverged": bool(journal.recorded(ordinal)),
    }


def request_hash(*asked: Json) -> str:
    """The hash by which a repeated request is recognised. Raises `InvalidInputError` if JSON cannot express it."""
    return content_hash(canonical_json(list(asked)))[:24]


def jsonable(value: Any) -> Json:
    """`value` as plain JSON types (pydantic models, dates, decimals and tuples included).

    Raises:
        InvalidInputError: some part of it cannot be expressed in JSON.
    """
    try:
        plain = to_jsonable_python(value)
        canonical_json(plain)
    except (PydanticSerializationError, ValueError) as error:
        raise InvalidInputError(f"an agent's value must be JSON-able: {error}") from error
    return plain
