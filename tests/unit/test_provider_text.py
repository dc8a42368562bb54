"""An answer with half a character is a paid answer: it is kept, and recorded, with a mark in place of the half."""

from types import SimpleNamespace
from typing import Any

import pytest

from handlers.provider import _answer, _Gathered
from handlers.provider_errors import ProviderFailureError
from schemas.content import canonical_json, well_formed

HIGH, LOW = "\ud83d", "\ude00"


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("plain", "plain"),
        ("\N{GRINNING FACE} ü \x00", "\N{GRINNING FACE} ü \x00"),
        (HIGH + LOW, "\N{GRINNING FACE}"),
        (f"cut off {HIGH}", "cut off \N{REPLACEMENT CHARACTER}"),
        (f"{LOW}{HIGH} turned", "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} turned"),
        ("", ""),
    ],
)
def test_halves_are_joined_and_lone_ones_marked(text: str, stored: str) -> None:
    assert well_formed(text) == stored
    canonical_json(well_formed(text))


def _response(content: str, *calls: dict[str, Any]) -> Any:
    message = SimpleNamespace(
        content=content, tool_calls=[SimpleNamespace(model_dump=lambda call=call: call) for call in calls]
    )
    choice = SimpleNamespace(message=message, finish_reason="length")
    return SimpleNamespace(choices=[choice], model="m", id="r1", usage=None)


def test_an_answer_can_be_recorded() -> None:
    call = {"id": "c1", "function": {"name": "look_up", "arguments": f'{{"q": "{HIGH}"}}'}}
    answer = _answer(_response(f"so far {HIGH}", call))
    canonical_json(answer.response)
    assert answer.text == "so far \N{REPLACEMENT CHARACTER}"
    assert answer.tool_calls[0]["function"]["name"] == "look_up"


def test_a_streamed_answer_can_be_recorded() -> None:
    gathered = _Gathered()
    for piece in ("so", HIGH, LOW, " far"):
        choice = SimpleNamespace(delta=SimpleNamespace(content=piece), finish_reason=None)
        gathered.add(SimpleNamespace(model="m", id="r1", usage=None, choices=[choice]))
    canonical_json(gathered.answer(None).response)


def test_a_failure_can_be_recorded() -> None:
    failure = ProviderFailureError(f"it said {HIGH}", outcome="error", action="retry", error_class="E")
    canonical_json(str(failure))
