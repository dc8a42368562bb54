"""The story of a task: its events as a tree by causation, with what each branch cost and what was wasted. Pure.

An event's parent is its cause: an agent's facts hang on the decision that ordered its call, a decision hangs on the
fact that it reacts to. So the tree reads as "because of this, that", and a branch total is what a decision cost with
everything under it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

from headwater.replay.sentences import tell
from projections.outcomes import outcome_of
from schemas.bodies import (
    AgentCancelled,
    AgentFailed,
    HandoffAccepted,
    HandoffProposed,
    HandoffRejected,
    LlmAttempted,
    SupervisorAnswered,
    SupervisorAsked,
    TaskCancelled,
    TaskFailed,
    TaskRouted,
)
from schemas.event import AgentEvent
from schemas.money import plain

K = TypeVar("K")
ZERO = Decimal(0)


@dataclass(slots=True)
class Node:
    """One event in the story, with what it led to."""

    event: AgentEvent
    sentence: str
    after_us: int
    """Microseconds since the task was submitted."""
    outcome: str | None = None
    """Of an LLM attempt: "useful", or what kind of waste it was."""
    subtask: int | None = None
    """Of an LLM attempt: the step that it was for, None for the task as a whole."""
    cost_usd: Decimal = ZERO
    tokens: int = 0
    total_usd: Decimal = ZERO
    """With everything under it."""
    total_tokens: int = 0
    wasted_usd: Decimal = ZERO
    attempts: int = 0
    children: list["Node"] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        event = self.event
        return {
            "event": event.id,
            "position": event.position,
            "type": event.type,
            "at": event.at.isoformat().replace("+00:00", "Z"),
            "after_ms": self.after_us / 1000,
            "by": event.source_agent_id,
            "said": self.sentence,
            "outcome": self.outcome,
            "cost_usd": plain(self.cost_usd),
            "tokens": self.tokens,
            "total_usd": plain(self.total_usd),
            "total_tokens": self.total_tokens,
            "wasted_usd": plain(self.wasted_usd),
            "attempts": self.attempts,
            "children": [child.as_dict() for child in self.children],
        }


@dataclass(slots=True)
class Share:
    """A part of what a task cost."""

    cost_usd: Decimal = ZERO
    attempts: int = 0
    tokens: int = 0
    unknown: int = 0
    """Attempts of which nobody knows what they cost."""

    def add(self, node: Node) -> None:
        """Count one attempt."""
        assert isinstance(node.event.body, LlmAttempted)
        self.cost_usd += node.cost_usd
        self.attempts += 1
        self.tokens += node.tokens
        self.unknown += node.event.body.cost_usd is None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "cost_usd": plain(self.cost_usd),
            "attempts": self.attempts,
            "tokens": self.tokens,
            "unknown_attempts": self.unknown,
        }


@dataclass(slots=True)
class Story:
    """A task from its submission to its end, or as far as the log goes."""

    tenant_id: str
    session_id: str
    task_id: str
    status: str
    duration_us: int
    roots: list[Node]

    @property
    def total_usd(self) -> Decimal:
        """What the task cost."""
        return sum((root.total_usd for root in self.roots), ZERO)

    @property
    def wasted_usd(self) -> Decimal:
        """What of it came to nothing."""
        return sum((root.wasted_usd for root in self.roots), ZERO)

    @property
    def attempts(self) -> int:
        """LLM requests, failed ones too."""
        return sum(root.attempts for root in self.roots)

    def waste(self) -> dict[str, Decimal]:
        """US dollars by kind of waste, the dearest first."""
        found: dict[str, Decimal] = {}
        for node in _walk(self.roots):
            if node.outcome not in (None, "useful"):
                found[str(node.outcome)] = found.get(str(node.outcome), ZERO) + node.cost_usd
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def by_agent(self) -> dict[str, Share]:
        """What each agent's requests cost, the supervisor's questions too; the dearest first."""
        return self._shares(lambda node: node.event.source_agent_id)

    def by_step(self) -> dict[int | None, Share]:
        """What each step of a decomposed task cost, None being what was for all of it; empty if it was not split."""
        found = self._shares(lambda node: node.subtask)
        return found if found.keys() - {None} else {}

    def _shares(self, key: Callable[[Node], K]) -> dict[K, Share]:
        found: dict[K, Share] = {}
        for node in _walk(self.roots):
            if node.outcome is not None:
                found.setdefault(key(node), Share()).add(node)
        return dict(sorted(found.items(), key=lambda item: -item[1].cost_usd))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "tenant": self.tenant_id,
            "session": self.session_id,
            "task": self.task_id,
            "status": self.status,
            "duration_ms": self.duration_us / 1000,
            "total_usd": plain(self.total_usd),
            "wasted_usd": plain(self.wasted_usd),
            "waste": {kind: plain(usd) for kind, usd in self.waste().items()},
            "attempts": self.attempts,
            "by_agent": {agent: share.as_dict() for agent, share in self.by_agent().items()},
            "by_step": [{"step": step} | share.as_dict() for step, share in self.by_step().items()],
            "story": [root.as_dict() for root in self.roots],
        }


def story_of(events: Iterable[AgentEvent]) -> Story | None:
    """The story of the one task that `events` are about, in log order; None without events."""
    ordered = list(events)
    if not ordered:
        return None
    outcomes, steps = _outcomes(ordered), _steps(ordered)
    first = ordered[0]
    nodes: dict[str, Node] = {}
    roots: list[Node] = []
    earlier: list[AgentEvent] = []
    for event in ordered:
        if (shown := _beside(event)) is not None:
            # Which team decided is said once, at the fork: here stands what it decided.
            if shown in nodes:
                nodes[event.id] = nodes[shown]
            continue
        node = Node(event, tell(event, earlier), _microseconds(first, event))
        if isinstance(event.body, LlmAttempted):
            node.outcome = outcomes[event.id]
            node.subtask = steps.get(event.body.call_id)
            node.cost_usd = Decimal(event.body.cost_usd or 0)
            node.tokens = event.body.tokens.total if event.body.tokens else 0
        parent = nodes.get(event.parent_event_id or "")
        (parent.children if parent is not None else roots).append(node)
        nodes[event.id] = node
        earlier.append(event)
    for root in roots:
        _add_up(root)
    last = next((event for event in reversed(ordered) if event.body.terminal), ordered[-1])
    status = last.type.removeprefix("task.") if last.body.terminal else "running"
    return Story(first.tenant_id, first.session_id, first.task_id, status, _microseconds(first, last), roots)


def _beside(event: AgentEvent) -> str | None:
    """Of a question to another team what it decides, and of its answer: the event in whose place it stands."""
    match event.body:
        case SupervisorAsked(question="decide") as body:
            return body.about_event_id
        case SupervisorAnswered(question="decide", error=None):
            return event.parent_event_id
    return None


def _outcomes(events: list[AgentEvent]) -> dict[str, str]:
    """Attempt → outcome, by the rules of the cost ledger (`projections/outcomes.py`)."""
    calls: dict[str, str] = {}
    proposals: dict[str, str] = {}
    task: str | None = None
    for event in events:
        match event.body:
            case HandoffProposed() as body:
                proposals[event.id] = body.call_id
            case HandoffRejected() as body:
                judged = proposals.get(body.proposal_event_id or event.parent_event_id or "", "")
                calls.setdefault(judged, "rejected_handoff")
            case AgentFailed() as body:
                calls.setdefault(body.call_id, "failed_run")
            case SupervisorAnswered(error=str()) as body:
                calls.setdefault(body.call_id, "failed_run")
            case AgentCancelled() as body:
                calls.setdefault(body.call_id, "cancelled")
            case TaskFailed():
                task = task or "failed_task"
            case TaskCancelled():
                task = task or "cancelled"
    return {
        event.id: outcome_of(event.body.status, calls.get(event.body.call_id), task)
        for event in events
        if isinstance(event.body, LlmAttempted)
    }


def _steps(events: list[AgentEvent]) -> dict[str, int]:
    """Call → the step of the task that it is for."""
    steps: dict[str, int] = {}
    senders = {event.id: event.body.call_id for event in events if isinstance(event.body, HandoffProposed)}
    for event in events:
        match event.body:
            case TaskRouted(subtask=int() as step, call_id=str() as call_id):
                steps[call_id] = step
            case SupervisorAsked(subtask=int() as step, call_id=str() as call_id):
                steps[call_id] = step
            case HandoffAccepted(call_id=str() as call_id) | HandoffRejected(call_id=str() as call_id):
                # The receiver, or the sender again, works on the sender's step.
                sender = senders.get(event.body.proposal_event_id or event.parent_event_id or "")
                if sender in steps:
                    steps[call_id] = steps[sender]
    return steps


def _add_up(node: Node) -> None:
    # A stack, not recursion: a long chain of handoffs and repairs is deeper than Python's own stack is meant for.
    order = list(_walk([node]))
    for one in reversed(order):
        one.total_usd = one.cost_usd + sum((child.total_usd for child in one.children), ZERO)
        one.total_tokens = one.tokens + sum(child.total_tokens for child in one.children)
        one.attempts = (one.outcome is not None) + sum(child.attempts for child in one.children)
        own_waste = one.cost_usd if one.outcome not in (None, "useful") else ZERO
        one.wasted_usd = own_waste + sum((child.wasted_usd for child in one.children), ZERO)


def _walk(roots: list[Node]) -> Iterable[Node]:
    """Every node, each before its children."""
    stack = list(reversed(roots))
    while stack:
        node = stack.pop()
        yield node
        stack += reversed(node.children)


def _microseconds(first: AgentEvent, event: AgentEvent) -> int:
    return max(0, round((event.at - first.at).total_seconds() * 1_000_000))


def flat(story: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The nodes of a story's JSON in reading order, without their children."""
    found: list[dict[str, Any]] = []
    stack = list(reversed(story["story"]))
    while stack:
        node = stack.pop()
        found.append({name: value for name, value in node.items() if name != "children"})
        stack += reversed(node["children"])
    return found
