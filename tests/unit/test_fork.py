"""A forked task: what it takes over, what it decides anew, and what it takes up again."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from handlers.decider import decided_event, redecide
from handlers.strictness import StrictnessConfig
from handlers.supervisor import decide, evolve
from headwater.replay.cohort import Cohort, quantiles
from headwater.replay.compare import differences
from headwater.replay.fork import ForkOptions, forking, moments_of
from headwater.testing.given import AT, Supervised, agent, rules, types_of
from schemas.bodies import TaskForked
from schemas.errors import InvalidInputError
from schemas.event import AgentEvent, decode, encode
from schemas.ids import derived_id

STEPS = "Please:\n1. find the facts\n2. find the figures\n3. write them up"
SPLIT = {
    "subtasks": [
        {"description": "find the facts"},
        {"description": "find the figures"},
        {"description": "write them up", "depends_on": [0, 1]},
    ]
}


class Fork:
    """A fork of an origin's log, under rules of its own."""

    def __init__(self, origin: Supervised, options: ForkOptions, by: Any = None) -> None:
        body = forking(origin.log, options, task_id="fork-1")
        event = AgentEvent(
            id="forked",
            tenant_id="acme",
            session_id="s1",
            task_id="fork-1",
            source_agent_id="user",
            call_chain=("user",),
            at=AT,
            body=body,
        )
        fields = ("id", "type", "v", "session", "task", "priority", "source", "chain", "parent", "at", "body")
        stored = [value.decode() if isinstance(value, bytes) else value for value in encode(event, {})]
        # As it comes back from the log.
        self.event = decode("acme", "1-1", dict(zip(fields, stored, strict=True)))
        assert isinstance(self.event.body, TaskForked)
        self.body = self.event.body
        self.rules = by or origin.rules
        self.decisions = decide(None, self.event, self.rules)
        self.state = evolve(None, self.event)
        self.log = [self.event]
        for ordinal, decision in enumerate(self.decisions):
            self.log.append(decided_event(self.event, ordinal, decision, AT))
            self.state = evolve(self.state, self.log[-1])

    @property
    def types(self) -> list[str]:
        return [decision.body.type for decision in self.decisions]


def split() -> Supervised:
    """A task in three steps, with the first two being worked on."""
    return Supervised(rules(agent("alpha"), agent("beta"), to=_by_text), STEPS).answers(SPLIT)


def _by_text(task: Any) -> str:
    return "beta" if "figures" in task.text else "alpha"


def test_a_fork_from_the_start_is_routed_by_todays_rules() -> None:
    origin = Supervised(rules(agent("alpha"), agent("beta"), to="alpha")).completes("alpha", "done")
    fork = Fork(
        origin,
        ForkOptions(models={"fast": ("m",)}, budget_usd="0.50"),
        rules(agent("alpha"), agent("beta"), to="beta"),
    )
    assert fork.types == ["task.routed"]
    assert fork.state is not None
    (call,) = fork.state.calls.values()
    assert call.agent_id == "beta"
    assert fork.body.state is None
    assert fork.body.point is None
    assert fork.body.origin_event_id is None
    assert (fork.body.models, fork.body.budget_usd) == ({"fast": ("m",)}, "0.5")
    assert fork.state is not None
    assert fork.state.fork_of == "task-1"


def test_a_fork_at_a_fact_decides_it_anew_and_keeps_what_was_before() -> None:
    origin = Supervised(rules(agent("alpha"), agent("beta"), to="alpha")).proposes("alpha", "beta")
    proposed = origin.log[-2]
    assert proposed.type == "handoff.proposed"
    fork = Fork(origin, ForkOptions(at=proposed.id))
    assert fork.types == ["handoff.accepted"]
    assert fork.log[-1].parent_event_id == "forked"
    assert fork.state is not None
    assert set(fork.state.agent_results) == {"alpha"}
    (call_id,) = fork.state.calls
    assert fork.state.calls[call_id].agent_id == "beta"
    assert call_id not in (origin.state.calls if origin.state else {}), "a call's id is one task's"
    # Under rules that do not know the target, the same fact is decided in another way.
    assert "handoff.rejected" in Fork(origin, ForkOptions(at=proposed.id), rules(agent("alpha"), to="alpha")).types


def test_a_decision_stands_for_its_cause() -> None:
    origin = Supervised(rules(agent("alpha"), agent("beta"), to="alpha")).proposes("alpha", "beta")
    accepted = origin.log[-1]
    assert accepted.type == "handoff.accepted"
    assert Fork(origin, ForkOptions(at=accepted.id)).body.origin_event_id == origin.log[-2].id
    assert Fork(origin, ForkOptions(at=origin.log[1].id)).body.point is None, "the routing's cause is the start"


def test_what_else_was_being_worked_on_is_taken_up_again() -> None:
    origin = split().completes("alpha", "facts", subtask=0)
    completed = origin.log[-1]
    assert completed.type == "agent.completed", "it led to no decision: the figures were still open"
    fork = Fork(origin, ForkOptions(at=completed.id))
    assert fork.types == ["task.resumed"]
    assert fork.state is not None
    (call_id,) = fork.state.calls
    call = fork.state.calls[call_id]
    assert (call.agent_id, call.subtask, call.ordered_by) == ("beta", 1, fork.log[-1].id)
    assert fork.state.done[0].result == "facts"
    assert call_id == derived_id("fork-1", "call", origin.call("beta", subtask=1).call_id)


def test_a_resumed_call_of_an_agent_that_is_gone_ends_the_task() -> None:
    origin = split().completes("alpha", "facts", subtask=0)
    fork = Fork(origin, ForkOptions(at=origin.log[-1].id), rules(agent("alpha"), to="alpha"))
    assert fork.types == ["task.failed"]
    assert "'beta'" in str(fork.decisions[0].body)


def test_a_sender_that_waits_for_a_verdict_is_not_run_again() -> None:
    by = rules(agent("alpha"), agent("beta"), agent("gamma"), to=_by_text, strictness=StrictnessConfig())
    origin = Supervised(by, STEPS).answers(SPLIT).proposes("alpha", "gamma").completes("beta", "figures", subtask=1)
    fork = Fork(origin, ForkOptions(at=origin.log[-1].id))
    assert fork.types == ["task.resumed"]
    assert fork.state is not None
    resumed = [fork.state.calls[call_id].kind for call_id in fork.log[-1].body.call_ids]  # type: ignore[attr-defined]
    assert resumed == ["check"], "the sender's work is done"


def test_a_fork_of_a_fork_takes_over_what_that_took_over() -> None:
    origin = Supervised(rules(agent("alpha"), agent("beta"), to="alpha")).proposes("alpha", "beta")
    first = Fork(origin, ForkOptions(at=origin.log[-2].id, models={"fast": ("m",)}))
    body = forking(first.log, ForkOptions(models={"reasoning": ("n",)}), task_id="fork-2")
    assert body.point is not None
    assert body.point["type"] == "handoff.proposed"
    assert (body.origin_task_id, body.root_task_id) == ("fork-1", "task-1")
    assert body.models == {"fast": ("m",), "reasoning": ("n",)}


def test_deciding_a_forks_log_again_gives_the_same() -> None:
    origin = split().completes("alpha", "facts", subtask=0)
    fork = Fork(origin, ForkOptions(at=origin.log[-1].id))
    assert list(redecide(fork.log, fork.rules, {})) == []
    changed = rules(agent("alpha"), to="alpha")
    assert [found.ordinal for found in redecide(fork.log, changed, {})] == [0], "other rules decide in another way"


def test_what_cannot_be_forked_at_is_named_with_the_choices() -> None:
    origin = Supervised(rules(agent("alpha"), to="alpha")).completes("alpha", "done")
    with pytest.raises(InvalidInputError, match=r"'nonsense' is no event of this task; fork at one of: .*agent.com"):
        forking(origin.log, ForkOptions(at="nonsense"), task_id="f")
    with pytest.raises(InvalidInputError, match="does not have the beginning"):
        forking(origin.log[2:], ForkOptions(), task_id="f")
    assert types_of([moment.event for moment in moments_of(origin.log)]) == ["task.submitted", "agent.completed"]


@pytest.mark.parametrize(
    "options",
    [{"models": {"slow": ("m",)}}, {"models": {"fast": ()}}, {"budget_usd": "0"}, {"budget_usd": "nan"},
     {"budget_usd": "much"}],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        ForkOptions(**options)


def test_differences_of_results_by_pointer() -> None:
    left, right = {"a": [1, {"b/c": True}], "same": 1, "old": 2}, {"a": [1, {"b/c": 1}, 3], "same": 1}
    assert differences(left, right) == [
        {"pointer": "/a/1/b~1c", "left": True, "right": 1},
        {"pointer": "/a/2", "left": None, "right": 3},
        {"pointer": "/old", "left": 2, "right": None},
    ]
    assert differences({"a": 1}, {"a": 1}) == []


def test_a_cohort_in_words() -> None:
    cohort = Cohort.parse("type=refund since=7d status=completed session=s1", now=AT)
    assert (cohort.task_type, cohort.status, cohort.session_id) == ("refund", "completed", "s1")
    assert cohort.since == AT - timedelta(days=7)
    assert Cohort.parse("since=2026-11-01").since == datetime(2026, 11, 1, tzinfo=UTC)
    other_order = Cohort.parse("session=s1 status=completed since=7d type=refund", now=AT)
    assert cohort.key(ForkOptions(), "t") == other_order.key(ForkOptions(), "t")
    keys = {cohort.key(options, task) for options in (ForkOptions(), ForkOptions(budget_usd="1")) for task in "tu"}
    assert len(keys) == 4, "other options or another task make another fork"


@pytest.mark.parametrize("words", ["kind=refund", "type=", "type=a type=b", "since=soon", "status=running", "refund"])
def test_words_that_are_no_cohort(words: str) -> None:
    with pytest.raises(InvalidInputError, match="--cohort"):
        Cohort.parse(words)


def test_quantiles_are_nearest_ranks() -> None:
    assert quantiles(list(range(1, 11))) == {"p50": 5, "p90": 9, "max": 10}
    assert quantiles([7]) == {"p50": 7, "p90": 7, "max": 7}
    assert quantiles([]) == {}
