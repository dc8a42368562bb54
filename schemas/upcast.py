"""Upcasters: how an event stored in an old version reads today. An upcaster stays for ever.

Each one takes the body of version n as a plain dict and returns it as version n+1. Readers apply them in order, so
the rest of the system only ever sees the newest version.
"""

from collections.abc import Callable
from typing import Any

from schemas.bodies import BODIES
from schemas.errors import UnreadableEventError

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]


def _agent_completed_1_to_2(body: dict[str, Any]) -> dict[str, Any]:
    seconds = body.pop("seconds")
    return {**body, "duration_us": round(seconds * 1_000_000)}


UPCASTERS: dict[tuple[str, int], Upcaster] = {("agent.completed", 1): _agent_completed_1_to_2}


def upcast(event_type: str, version: int, body: dict[str, Any]) -> dict[str, Any]:
    """`body` as the newest version of `event_type`.

    Raises:
        UnreadableEventError: the type is unknown, or the version is newer than this code.
    """
    known = BODIES.get(event_type)
    if known is None:
        raise UnreadableEventError(
            f"event type {event_type!r} is not known here: upgrade Headwater, or fix the entry", "unknown_type"
        )
    if not 1 <= version <= known.version:
        raise UnreadableEventError(
            f"{event_type} has version {version}, but this code knows 1 to {known.version}: upgrade Headwater first",
            "unknown_version",
        )
    for step in range(version, known.version):
        body = UPCASTERS[event_type, step](body)
    return body
