"""Reading a model's answer as JSON of a given form."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, RootModel

from handlers import structured
from handlers.structured import BadAnswerError, read


class Choice(BaseModel):
    """The form that the tests ask for."""

    agent_id: str
    confidence: float = Field(ge=0, le=1)


GOOD = {"agent_id": "writer", "confidence": 0.5}
JSON_TEXT = json.dumps(GOOD)


def _problem(text: str, **more: Any) -> str:
    with pytest.raises(BadAnswerError) as raised:
        read(text, Choice, None, **more)
    return str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        JSON_TEXT,
        f"  {JSON_TEXT}\n",
        f"```json\n{JSON_TEXT}\n```",
        f"```\n{JSON_TEXT}\n```",
        f"Here you are:\n\n```json\n{JSON_TEXT}\n```\nAnything else?",
        f"I would say {JSON_TEXT}, because it writes.",
        f"Not {{this}} one [1] but: {JSON_TEXT}",
        f'First I thought {{"agent_id": "x"}}, but now {JSON_TEXT}',
        f'```json\n{{"agent_id": 1}}\n```\nNo:\n```json\n{JSON_TEXT}\n```',
    ],
)
def test_json_is_found_wherever_it_stands(text: str) -> None:
    assert read(text, Choice, None) == Choice(**GOOD)


def test_a_list_can_be_asked_for() -> None:
    assert read("These: [1, 2]", RootModel[list[int]], None).root == [1, 2]


def test_what_is_wrong_is_named() -> None:
    assert "confidence: Input should be less than or equal to 1" in _problem('{"agent_id": "a", "confidence": 2}')
    assert "agent_id: Field required" in _problem('{"confidence": 1}')
    assert _problem("I cannot say.") == "the answer is not JSON"
    assert "cut off at the limit of tokens" in _problem('{"agent_id": "wri', finish_reason="length")


def test_many_errors_are_told_in_part() -> None:
    with pytest.raises(BadAnswerError, match=r"0: .*; and 15 more"):
        read(json.dumps(["x"] * 20), RootModel[list[int]], None)


def test_the_check_has_the_last_word() -> None:
    def registered(choice: Choice) -> str | None:
        return None if choice.agent_id == "reader" else f"there is no agent {choice.agent_id!r}"

    with pytest.raises(BadAnswerError, match="there is no agent 'writer'"):
        read(JSON_TEXT, Choice, registered)
    assert read(JSON_TEXT.replace("writer", "reader"), Choice, registered).agent_id == "reader"


def test_the_repair_keeps_roles_apart() -> None:
    said, asked = structured.repair("no idea", "the answer is not JSON")
    assert said == {"role": "assistant", "content": "no idea"}
    assert asked["role"] == "user"
    assert "the answer is not JSON" in asked["content"]


def test_the_form_is_told_in_words_and_as_a_parameter() -> None:
    assert '"agent_id"' in structured.instructions(Choice)
    told = structured.response_format(RootModel[list[int]])["json_schema"]
    assert told["name"] == "RootModel_list_int__"
    assert told["schema"]["type"] == "array"


@given(st.text(), st.text())
def test_any_text_is_read_or_refused(before: str, after: str) -> None:
    with contextlib.suppress(BadAnswerError):
        assert isinstance(read(before + JSON_TEXT + after, Choice, None), Choice)


@given(st.text(alphabet='{[]}",:0 \\`\n', max_size=400))
def test_brackets_without_end_are_no_trap(text: str) -> None:
    with pytest.raises(BadAnswerError):
        read(text, Choice, None)
