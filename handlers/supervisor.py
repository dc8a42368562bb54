"""The supervisor: a pure decider. `decide(state, event) -> decisions`; the state is folded in `handlers/state.py`.

No I/O, no clock, no randomness: the same events always give the same decisions, which is what makes a recorded log
provable (I5). Where a judgement needs a model (who does it, in which steps, is a handoff grounded, what do all results
say), the decision is to ask (`supervisor.asked`), and the answer comes back as a fact.

A task goes: (decomposed →) routed → (handed over → checked → called)* → (synthesised →) completed; or failed → backup →
failed; or cancelled.
"""

from collections.abc import Mapping

from pydantic import ValidationError

from handlers.answers import CheckAnswer, DecomposeAnswer, RouteAnswer, SynthesisAnswer
from handlers.case import USER, Case, Decision, Rules
from handlers.decomposition import problems_of, ready
from handlers.handoffs import Verdict, accepted, judge_structure, rejected, verified
from handlers.lanes import decide_in_lane
from handlers.state import (
    SUPERVISOR,
    TaskState,
    agent_error,
    call_for,
    evolve,
    rejection_error,
    result_key,
    taken_over,
)
from schemas.bodies import (
    AgentCompleted,
    AgentError,
    AgentFailed,
    EventDropped,
    HandoffProposed,
    Subtask,
    SupervisorAnswered,
    TaskCancelled,
    TaskCancelRequested,
    TaskCompleted,
    TaskDecomposed,
    TaskFailed,
    TaskForked,
    TaskResumed,
    TaskRouted,
    TaskSubmitted,
)
from schemas.content import Json, resolve
from schemas.event import AgentEvent

__all__ = ["DECIDER", "SUPERVISOR", "WANTED", "Decision", "Rules", "TaskState", "call_for", "decide", "evolve"]

DECIDER = "decider"
"""The supervisor's name as a reader of the log."""
WANTED = (
    TaskSubmitted.type,
    TaskForked.type,
    TaskCancelRequested.type,
    SupervisorAnswered.type,
    AgentCompleted.type,
    AgentFailed.type,
    HandoffProposed.type,
    EventDropped.type,
)
"""The event types that the supervisor decides on. All others are read past."""


def decide(
    state: TaskState | None, event: AgentEvent, rules: Rules, blobs: Mapping[str, bytes] | None = None
) -> list[Decision]:
    """What the supervisor does about `event`, given the state before it.

    `blobs` has the large contents that the task and the event refer to, for routing rules and answers to be read.
    Events of tasks or calls that are not open (any more) lead to nothing.
    """
    body = event.body
    if isinstance(body, TaskSubmitted):
        submitted = evolve(None, event)
        return _submitted(Case(submitted, event, rules, blobs or {})) if state is None and submitted else []
    if isinstance(body, TaskForked):
        return _forked(event, body, rules, blobs or {}) if state is None else []
    if isinstance(body, EventDropped) and body.reader == DECIDER:
        return _dropped(state, body)
    if state is None:
        return []
    case = Case(state, event, rules, blobs or {})
    in_lane = decide_in_lane(case)
    return _react(case) if in_lane is None else in_lane


def _react(case: Case) -> list[Decision]:
    state, body = case.state, case.event.body
    match body:
        case AgentCompleted(handed_over=False) if body.call_id in state.calls:
            return _completed(case, body)
        case AgentFailed() if body.call_id in state.calls:
            call = state.calls[body.call_id]
            return [_replace(case, body.call_id, (*state.errors, agent_error(body, call)))]
        case HandoffProposed() if body.call_id in state.calls:
            return _proposed(case, body)
        case SupervisorAnswered() if body.call_id in state.calls:
            return _answered(case, body)
        case TaskCancelRequested():
            cancelled = TaskCancelled(
                reason=body.reason,
                routed_by=state.routed_by,
                decomposed=state.decomposed,
                agent_results=dict(state.agent_results),
                fork_of=state.fork_of,
            )
            return [Decision(cancelled, (USER, SUPERVISOR))]
    return []


def _forked(event: AgentEvent, body: TaskForked, rules: Rules, blobs: Mapping[str, bytes]) -> list[Decision]:
    """A task is run again: from the start like a submitted one, or from a point, whose fact is decided anew.

    What else was being worked on at the point is taken up again, unless the task ends with the decision.
    """
    before, point = taken_over(event, body)
    if body.lane is not None:
        return [Case(before, event, rules, blobs).ask("decide", "decide", about=event.id)]
    if point is None:
        return _submitted(Case(before, event, rules, blobs))
    decisions = decide(before, point, rules, blobs)
    # A sender whose handoff is being checked is done with its work, and waits for the verdict only.
    settled = {getattr(point.body, "call_id", None), *(proposed.call_id for proposed in before.proposals.values())}
    calls = {call_id: call for call_id, call in before.calls.items() if call_id not in settled}
    if not calls or any(decision.body.terminal for decision in decisions):
        return decisions
    for call in calls.values():
        if call.agent_id != SUPERVISOR and call.agent_id not in rules.team.registry:
            reason = f"agent {call.agent_id!r}, which was at work at the point, is not registered"
            return [Case(before, event, rules, blobs).fail(reason)]
    return [Decision(TaskResumed(call_ids=tuple(calls)), (USER, SUPERVISOR)), *decisions]


def _dropped(state: TaskState | None, body: EventDropped) -> list[Decision]:
    """A task that an event was taken from cannot be brought to its end as it should: it fails, with the reason (I1)."""
    if state is None and body.event_type not in (TaskSubmitted.type, TaskForked.type):
        return []
    why = f": {body.reason}" if body.reason else ""
    reason = f"{body.event_type} {body.event_id} could not be handled and was dropped{why} ({body.error})"
    if state is None:
        return [Decision(TaskFailed(reason=reason), (USER, SUPERVISOR))]
    failed = TaskFailed(
        reason=reason,
        errors=state.errors,
        routed_by=state.routed_by,
        decomposed=state.decomposed,
        agent_results=dict(state.agent_results),
        fork_of=state.fork_of,
    )
    return [Decision(failed, (USER, SUPERVISOR))]


def _submitted(case: Case) -> list[Decision]:
    team = case.rules.team
    if len(team.registry) == 0:
        return [case.fail("no agents are registered: start the workers with --agents module:object")]
    if team.decomposes(case.task()):
        return [case.ask("decompose")]
    return [_route(case)]


def _route(case: Case, index: int | None = None, step: Subtask | None = None) -> Decision:
    """Give the task, or one of its steps, to an agent by rule; where no rule matches, ask a model (row A3)."""
    which = () if index is None else (index,)
    team = case.rules.team
    chosen = team.router.match(case.task(step, index))
    if chosen is None:
        return case.ask("route", *which, subtask=index)
    if chosen.agent_id not in team.registry:
        return case.fail(f"{chosen.reasoning} names agent {chosen.agent_id!r}, which is not registered")
    routed = TaskRouted(call_id=case.call_id(*which), subtask=index, **chosen.model_dump())
    return Decision(routed, (USER, SUPERVISOR, chosen.agent_id))


def _route_ready(case: Case, subtasks: tuple[Subtask, ...], done: Mapping[int, object]) -> list[Decision]:
    """Route every step whose prerequisites are done. A step that cannot be routed ends the task."""
    decisions: list[Decision] = []
    for index in ready(subtasks, done, case.state.started):
        decision = _route(case, index, subtasks[index])
        if decision.body.terminal:
            return [decision]
        decisions.append(decision)
    return decisions


def _completed(case: Case, body: AgentCompleted) -> list[Decision]:
    state, call = case.state, case.state.calls[body.call_id]
    results = state.agent_results | {result_key(body.agent_id, call.subtask): body.result}
    if call.subtask is None:
        done = TaskCompleted(
            result=body.result, routed_by=state.routed_by or "rules", agent_results=results, fork_of=state.fork_of
        )
        return [Decision(done, call.call_chain)]
    finished: dict[int, object] = {**state.done, call.subtask: None}
    if len(finished) == len(state.subtasks):
        return [case.ask("synthesize")]
    return _route_ready(case, state.subtasks, finished)


def _replace(case: Case, call_id: str, errors: tuple[AgentError, ...]) -> Decision:
    """A call came to nothing: its agent's backup gets it, once; else the task fails with every reason (row A5)."""
    call, registry = case.state.calls[call_id], case.rules.team.registry
    backup = None if call.is_backup or call.agent_id not in registry else registry.get_backup(call.agent_id)
    if backup is not None and backup.agent_id not in call.call_chain:
        routed = TaskRouted(
            agent_id=backup.agent_id,
            call_id=case.call_id(),
            routed_by="backup",
            confidence=1.0,
            reasoning=f"{call.agent_id} failed: {errors[-1].error}",
            replaces_call_id=call_id,
            subtask=call.subtask,
        )
        return Decision(routed, (*call.call_chain[:-1], backup.agent_id))
    reason = "; ".join(f"{e.agent_id}: {e.error}" for e in errors if e.subtask == call.subtask)
    where = "" if call.subtask is None else f"subtask {call.subtask}: "
    return case.fail(where + reason, errors, call.call_chain)


def _proposed(case: Case, body: HandoffProposed) -> list[Decision]:
    """A handoff: structural check first; a STRICT one that is well-formed is then checked by a model (row C3)."""
    call, payload = case.state.calls[body.call_id], body.payload
    strictness = case.rules.strictness
    reasons = judge_structure(case.state.tenant_id, call, payload, case.rules.team)
    if reasons:
        return _verdict(case, case.event.id, body, Verdict(tuple(reasons), failed_check="structural"))
    if strictness.needs_semantic_check(payload.payload_type, case.state.tenant_id):
        return [case.ask("check", subtask=call.subtask, about=case.event.id)]
    return _verdict(case, case.event.id, body, Verdict())


def _verdict(case: Case, proposal_id: str, body: HandoffProposed, verdict: Verdict) -> list[Decision]:
    """Accepted: the target is called. Rejected: back to the sender, once, then to the supervisor."""
    state, sender = case.state, case.state.calls[body.call_id]
    strictness = case.rules.strictness.strictness_of(body.payload.payload_type, state.tenant_id)
    about = (proposal_id if proposal_id != case.event.id else None, sender, body.payload, strictness, verdict)
    if not verdict.reasons:
        chain = (*sender.call_chain, body.payload.target_agent_id)
        return [Decision(accepted(*about, call_id=case.call_id()), chain)]
    # A sender cannot repair a check that could not run.
    repairable = verdict.verification != "unverified"
    if repairable and result_key(sender.agent_id, sender.subtask) not in state.repaired:
        return [Decision(rejected(*about, returned_to="sender", call_id=case.call_id()), sender.call_chain)]
    errors = (*state.errors, rejection_error(sender, verdict.reasons))
    refused = Decision(rejected(*about, returned_to="supervisor"), sender.call_chain)
    return [refused, _replace(case, body.call_id, errors)]


def _answered(case: Case, body: SupervisorAnswered) -> list[Decision]:
    """A model's judgement is here. What it says is checked again: a worker's word is not enough to be decided by."""
    answer = resolve(body.answer, case.blobs)
    if body.question == "check":
        return _checked(case, body, answer)
    if body.error is not None:
        return [case.fail(f"the supervisor's question {body.question!r} got no answer: {body.error}")]
    try:
        match body.question:
            case "route":
                return [_routed_by_model(case, body, RouteAnswer.model_validate(answer))]
            case "decompose":
                return _decomposed(case, DecomposeAnswer.model_validate(answer))
            case "synthesize":
                return [_synthesised(case, SynthesisAnswer.model_validate(answer))]
            case "decide":
                return []  # this task is in no lane: nobody asked
    except ValidationError as error:
        return [case.fail(f"the answer to the supervisor's question {body.question!r} cannot be used: {error}")]


def _routed_by_model(case: Case, body: SupervisorAnswered, answer: RouteAnswer) -> Decision:
    subtask = case.state.calls[body.call_id].subtask
    if answer.agent_id not in case.rules.team.registry:
        return case.fail(f"the model chose agent {answer.agent_id!r}, which is not registered")
    routed = TaskRouted(
        agent_id=answer.agent_id,
        call_id=case.call_id(),
        routed_by="llm",
        confidence=answer.confidence,
        reasoning=answer.reasoning,
        subtask=subtask,
    )
    return Decision(routed, (USER, SUPERVISOR, answer.agent_id))


def _decomposed(case: Case, answer: DecomposeAnswer) -> list[Decision]:
    if problems := problems_of(answer.subtasks):
        return [case.fail(f"the task cannot be decomposed: {'; '.join(problems)}")]
    if len(answer.subtasks) == 1:
        return [_route(case)]
    split = Decision(TaskDecomposed(subtasks=answer.subtasks, reasoning=answer.reasoning), (USER, SUPERVISOR))
    return [split, *_route_ready(case, answer.subtasks, {})]


def _synthesised(case: Case, answer: SynthesisAnswer) -> Decision:
    state = case.state
    cited = sorted({index for index in answer.sources if index in state.done}) or sorted(state.done)
    sources = [
        {"subtask": i, "agent_id": state.done[i].agent_id, "description": state.subtasks[i].description} for i in cited
    ]
    result: Json = {"answer": answer.answer, "sources": sources}
    done = TaskCompleted(
        result=result,
        routed_by=state.routed_by or "rules",
        decomposed=True,
        agent_results=dict(state.agent_results),
        fork_of=state.fork_of,
    )
    agents = dict.fromkeys(agent for i in sorted(state.done) for agent in state.done[i].call_chain[2:])
    return Decision(done, (USER, SUPERVISOR, *agents))


def _checked(case: Case, body: SupervisorAnswered, answer: Json) -> list[Decision]:
    proposal_id = case.state.calls[body.call_id].proposal_event_id or ""
    proposed = case.state.proposals[proposal_id]
    try:
        found = None if body.error is not None else CheckAnswer.model_validate(answer)
        why = body.error or ""
    except ValidationError as error:
        found, why = None, f"the answer cannot be used: {error}"
    policy = case.rules.strictness.on_unavailable(proposed.payload.payload_type)
    return _verdict(case, proposal_id, proposed, verified(found, why, policy))
