"""Old versions of events: one upcaster for every step, for ever."""

from copy import deepcopy
from typing import Any

import pytest

from schemas.bodies import BODIES
from schemas.errors import UnreadableEventError
from schemas.upcast import UPCASTERS, upcast

OLD: dict[str, Any] = {"agent_id": "a", "call_id": "c", "delivery": 2, "seconds": 1.234567}


def test_every_old_version_has_its_upcaster_and_no_other_has() -> None:
    expected = {(name, version) for name, body in BODIES.items() for version in range(1, body.version)}
    assert set(UPCASTERS) == expected
    assert ("agent.completed", 1) in expected


@pytest.mark.parametrize(
    ("seconds", "duration_us"), [(0, 0), (1.234567, 1_234_567), (0.1 + 0.2, 300_000), (1e-9, 0), (7, 7_000_000)]
)
def test_seconds_became_microseconds(seconds: float, duration_us: int) -> None:
    newest = upcast("agent.completed", 1, OLD | {"seconds": seconds})
    assert newest == {"agent_id": "a", "call_id": "c", "delivery": 2, "duration_us": duration_us}
    BODIES["agent.completed"].model_validate(newest)


def test_the_newest_version_is_left_as_it_is() -> None:
    body = {"anything": 1}
    assert upcast("task.failed", 1, deepcopy(body)) == body


@pytest.mark.parametrize("version", [-1, 0, 3, 99])
def test_a_version_that_never_was_or_is_not_known_yet_is_named(version: int) -> None:
    with pytest.raises(UnreadableEventError, match=rf"agent.completed has version {version}, .* knows 1 to 2"):
        upcast("agent.completed", version, {})


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(UnreadableEventError, match=r"'agent\.dreamt'.*upgrade Headwater, or fix the entry"):
        upcast("agent.dreamt", 1, {})
