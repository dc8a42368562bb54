"""Input and output schemas of capabilities, enforced around an agent's run (contract row A1)."""

from itertools import islice
from typing import Any

from pydantic import BaseModel, ValidationError

from handlers.agents import AgentCapability, AgentRegistration
from schemas.complaints import complaints
from schemas.content import Json
from schemas.errors import InputSchemaError, OutputSchemaError
from schemas.handoff import HandoffProposal
from schemas.task import Task


def capability_for(
    registration: AgentRegistration, task: Task, handoff: HandoffProposal | None
) -> AgentCapability | None:
    """The capability that a run is about: the one named like the handoff's payload type or the task's type, else the
    agent's only one, else None (nothing is enforced)."""
    wanted = handoff.payload_type if handoff is not None else task.type
    named = [capability for capability in registration.capabilities if capability.name == wanted]
    if named:
        return named[0]
    return registration.capabilities[0] if len(registration.capabilities) == 1 else None


def check_input(capability: AgentCapability | None, task: Task, handoff: HandoffProposal | None) -> None:
    """Raises `InputSchemaError` if the handoff's content, or the task's data, breaks the capability's input schema."""
    if capability is not None and capability.input_schema is not None:
        value = handoff.content if handoff is not None else task.data
        problems = _problems(capability.input_schema, value)
        if problems:
            raise InputSchemaError(
                f"input of {capability.name!r} is not a {_name(capability.input_schema)}: {problems}"
            )


def check_output(capability: AgentCapability | None, result: Json) -> None:
    """Raises `OutputSchemaError` if a result breaks the capability's output schema."""
    if capability is not None and capability.output_schema is not None:
        problems = _problems(capability.output_schema, result)
        if problems:
            raise OutputSchemaError(
                f"result of {capability.name!r} is not a {_name(capability.output_schema)}: {problems}"
            )


def _name(schema: type[BaseModel]) -> str:
    return schema.__name__


def _problems(schema: type[BaseModel], value: Any) -> str:
    try:
        schema.model_validate(value)
    except ValidationError as error:
        return "; ".join(f"{where or 'the value'}: {what}" for where, what in islice(complaints(error), 10))
    return ""
