"""What is wrong with a value is said in our words, whatever pydantic finds."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import BaseModel, Field, ValidationError, field_validator
from pydantic_core import core_schema

from headwater.settings import Settings
from schemas.complaints import complaint, complaints, first_complaint
from schemas.task import NewTask

PYDANTIC = ("Input should", "Field required", "Extra inputs", "should have at", "a valid ", "String should")


class Form(BaseModel):
    """Has one of everything."""

    model_config = {"extra": "forbid"}

    name: str = Field(default="x", min_length=1, max_length=3)
    code: str = Field(default="ab", min_length=2, pattern="^[a-z]+$")
    count: int = Field(default=1, ge=1, le=9)
    share: float = Field(default=0.5, gt=0, lt=1)
    kind: Literal["a", "b"] = "a"
    flag: bool = True
    items: list[int] = Field(default=[1], min_length=1, max_length=2)
    inner: dict[str, int] = {}
    when: datetime = datetime(2026, 1, 1)
    money: Annotated[Decimal, Field(max_digits=3)] = Decimal(1)

    @field_validator("name")
    @classmethod
    def _ours(cls, name: str) -> str:
        if name == "no":
            raise ValueError("'no' is taken: choose another")
        return name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": ""}, "name: is empty"),
        ({"name": "long"}, "name: must have 3 characters at most"),
        ({"name": 7}, "name: must be text"),
        ({"name": "no"}, "name: 'no' is taken: choose another"),
        ({"code": "a"}, "code: must have at least 2 characters"),
        ({"code": "A1"}, "code: must have the form ^[a-z]+$"),
        ({"count": 0}, "count: must be 1 or more"),
        ({"count": 10}, "count: must be 9 or less"),
        ({"count": "many"}, "count: must be a whole number"),
        ({"count": 1.5}, "count: must be a whole number"),
        ({"share": 0}, "share: must be over 0"),
        ({"share": 1}, "share: must be under 1"),
        ({"share": "half"}, "share: must be a number"),
        ({"kind": "c"}, "kind: must be 'a' or 'b'"),
        ({"flag": "perhaps"}, "flag: must be true or false"),
        ({"items": []}, "items: must have at least 1, and has 0"),
        ({"items": [1, 2, 3]}, "items: must have 2 at most, and has 3"),
        ({"items": [1, "b"]}, "items.1: must be a whole number"),
        ({"items": 1}, "items: must be a list"),
        ({"inner": []}, "inner: must be an object"),
        ({"when": "soon"}, "when: must be a time such as 2026-11-25T12:30:00Z"),
        ({"money": "1.234"}, "money: has more than 3 digits"),
        ({"colour": "red"}, "colour: is not known here: is it misspelled?"),
    ],
)
def test_each_has_its_words(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Form.model_validate(given)
    assert first_complaint(caught.value, "the form") == said


def test_nothing_at_all() -> None:
    with pytest.raises(ValidationError) as caught:
        NewTask.model_validate({})
    assert dict(complaints(caught.value)) == dict.fromkeys(("tenant", "session", "text"), "is missing")
    with pytest.raises(ValidationError) as caught:
        NewTask.model_validate([])
    assert first_complaint(caught.value, "the task") == "the task: must be an object"


def test_no_kind_of_error_speaks_as_pydantic_does() -> None:
    kinds = get_args(core_schema.ErrorType)
    assert len(kinds) > 80
    for kind in kinds:
        for context in ({}, {"expected": "'a'", "ge": 1, "min_length": 1, "error": "x"}):
            said = complaint({"type": kind, "msg": "Input should be another one", "ctx": context})
            if kind not in ("value_error", "assertion_error"):
                assert said, kind
                assert not any(words in said for words in PYDANTIC), (kind, said)


@pytest.mark.parametrize(
    "wrong", [{"workers": "-1"}, {"port": 99999}, {"log_level": "loud"}, {"retry_delays_s": "a,b"}]
)
def test_settings_too(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(**wrong)
    said = first_complaint(caught.value, "settings")
    assert not any(words in said for words in PYDANTIC), said
