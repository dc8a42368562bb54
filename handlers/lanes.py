"""Lanes: how a forked task is decided on and worked on by another team, beside the running one. Pure.

The running supervisor stays the one that writes. On a fact of a task in a lane its own rules are not asked: it orders
the question "decide" from the lane's team, whose worker answers with the decisions that *its* rules make, and those are
written. So the log keeps one order and one writer, a worker of the lane that dies is replaced like any other, and a
recorded lane is proven without its team. Facts that come in meanwhile wait for their turn (`TaskState.waiting`).

A lane's calls wait in queues of their own: no worker of another team takes them.
"""

import orjson
from pydantic import ValidationError

from handlers.case import Case, Decision
from handlers.state import TaskState, left_to_lane, waiting_fact
from schemas.bodies import BODIES, EventBody, HandoffAccepted, HandoffRejected, SupervisorAnswered, SupervisorAsked
from schemas.call import Undecided
from schemas.content import Json, resolve
from schemas.errors import UnreadableEventError
from schemas.event import AgentEvent, decode_body


def decide_in_lane(case: Case) -> list[Decision] | None:
    """What the running supervisor does about an event of a task in a lane. None: what it does about any other."""
    state, body = case.state, case.event.body
    if state.lane is None:
        return None
    if left_to_lane(state, body):
        return [] if state.waiting else [case.ask("decide", "decide", about=case.event.id)]
    if isinstance(body, SupervisorAnswered) and body.question == "decide":
        return _decided(case, body) if body.call_id in state.calls else []
    return None


def _decided(case: Case, body: SupervisorAnswered) -> list[Decision]:
    if body.error is not None:
        return [case.fail(f"the team that the task was forked to could not decide: {body.error}")]
    answer = resolve(body.answer, case.blobs)
    try:
        decisions = [_read(one) for one in answer["decisions"]]
    except (ValidationError, UnreadableEventError, KeyError, TypeError, ValueError) as error:
        return [case.fail(f"the decisions of the team that the task was forked to cannot be used: {error}")]
    behind = case.state.waiting[1:]
    if behind and not any(decision.body.terminal for decision in decisions):
        decisions.append(case.ask("decide", "decide", about=behind[0]["id"]))
    return decisions


def _read(one: Json) -> Decision:
    """A decision from a worker's answer. Its word is not enough: it must be one that a supervisor can make."""
    known = BODIES.get(one["type"])
    if known is None or not known.decision:
        raise ValueError(f"{one['type']!r} is no decision")
    body = decode_body(one["type"], one["v"], orjson.dumps(one["body"]))
    if isinstance(body, SupervisorAsked) and body.question == "decide":
        raise ValueError("the question was asked back")
    return Decision(body, tuple(one["chain"]))


def written(decisions: list[Decision], cause: AgentEvent) -> Json:
    """Decisions on `cause` as the answer to the question "decide"."""
    return {
        "decisions": [
            {
                "type": decision.body.type,
                "v": str(decision.body.version),
                "body": orjson.loads(_about(decision.body, cause).model_dump_json()),
                "chain": list(decision.call_chain),
            }
            for decision in decisions
        ]
    }


def _about(body: EventBody, cause: AgentEvent) -> EventBody:
    """A verdict without a word on which handoff is one on its cause; written by the answer, it has another cause."""
    if isinstance(body, HandoffAccepted | HandoffRejected) and body.proposal_event_id is None:
        return body.model_copy(update={"proposal_event_id": cause.id})
    return body


def read_undecided(tenant_id: str, undecided: Undecided) -> tuple[TaskState | None, AgentEvent]:
    """(the state before it, the fact) that a lane's worker is asked to decide on."""
    event = waiting_fact(tenant_id, undecided.entry)
    if undecided.state is None:
        return None, event
    return TaskState.model_validate(undecided.state), event
