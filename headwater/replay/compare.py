"""Two tasks side by side: what was decided, what came of it, and what it cost. Such as a fork and its origin."""

from dataclasses import dataclass
from typing import Any

from handlers.refold import causes
from headwater.replay.moments import task_events
from headwater.replay.recording import Recording, resolved
from headwater.replay.story import story_of
from schemas.bodies import LlmAttempted, SupervisorAsked, TaskCancelled, TaskCompleted, TaskFailed, TaskForked
from schemas.content import Json
from schemas.event import AgentEvent
from schemas.money import plain

MAX_DIFFERENCES = 100
MAX_DEPTH = 50


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two tasks."""

    task_id: str
    status: str
    fork_of: str | None
    decisions: list[dict[str, Any]]
    result: Json
    error: str | None
    cost_usd: str
    tokens: int
    attempts: int
    models: list[str]
    duration_us: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "task": self.task_id,
            "status": self.status,
            "fork_of": self.fork_of,
            "result": self.result,
            "error": self.error,
            "cost_usd": self.cost_usd,
            "tokens": self.tokens,
            "attempts": self.attempts,
            "models": self.models,
            "duration_ms": self.duration_us / 1000,
        }


async def compare(recording: Recording, tenant_id: str, left: str, right: str) -> dict[str, Any]:
    """Two tasks of a tenant, as JSON: `left`, `right`, `decisions` with `first_difference`, and `results`.

    What a fork took over stands among its decisions, so that both can be read from the start.

    Raises:
        NotFoundError: the tenant has no such task.
    """
    one, two = await side(recording, tenant_id, left), await side(recording, tenant_id, right)
    rows = [
        {"left": _at(one.decisions, index), "right": _at(two.decisions, index)}
        for index in range(max(len(one.decisions), len(two.decisions)))
    ]
    first = next((index for index, row in enumerate(rows) if _said(row["left"]) != _said(row["right"])), None)
    return {
        "tenant": tenant_id,
        "left": one.as_dict(),
        "right": two.as_dict(),
        "decisions": rows,
        "first_difference": first,
        "results": differences(one.result, two.result),
    }


async def side(recording: Recording, tenant_id: str, task_id: str) -> Side:
    """One task, ready to be compared. Raises `NotFoundError`."""
    events = await task_events(recording, tenant_id, task_id)
    story = story_of(events)
    assert story is not None, "there are events"
    ended = next((event.body for event in events if event.body.terminal), None)
    first = events[0].body
    attempts = [event.body for event in events if isinstance(event.body, LlmAttempted)]
    return Side(
        task_id=task_id,
        status=story.status,
        fork_of=first.origin_task_id if isinstance(first, TaskForked) else None,
        decisions=[
            *(await _taken_over(recording, tenant_id, events[0])),
            *(_decision(event) for event in events if event.body.decision and not _delegates(event)),
        ],
        result=await resolved(recording, tenant_id, ended.result) if isinstance(ended, TaskCompleted) else None,
        error=ended.reason if isinstance(ended, TaskFailed | TaskCancelled) else None,
        cost_usd=plain(story.total_usd),
        tokens=sum(root.total_tokens for root in story.roots),
        attempts=story.attempts,
        models=sorted({body.requested_model for body in attempts}),
        duration_us=story.duration_us,
    )


async def _taken_over(recording: Recording, tenant_id: str, first: AgentEvent) -> list[dict[str, Any]]:
    """The decisions before a fork's point, of its origin, and before that one's point, of its origin."""
    found: list[dict[str, Any]] = []
    while isinstance(first.body, TaskForked) and first.body.point is not None:
        events = await task_events(recording, tenant_id, first.body.origin_task_id)
        wanted, recorded = causes(events)
        own = []
        for cause in wanted:
            if cause.id == first.body.origin_event_id:
                break
            own += [
                _decision(event) | {"taken_over": True} for event in recorded.get(cause.id, []) if not _delegates(event)
            ]
        found = own + found
        first = events[0]
    return found


def _delegates(event: AgentEvent) -> bool:
    """Is it the question to another team what it decides? Its answer leads to the decision."""
    return isinstance(event.body, SupervisorAsked) and event.body.question == "decide"


def _decision(event: AgentEvent) -> dict[str, Any]:
    body = event.body
    words = [
        *([body.reason] if isinstance(body, TaskFailed | TaskCancelled) else []),
        *getattr(body, "reasons", ()),
        *([why] if (why := getattr(body, "reasoning", "")) else []),
    ]
    return {
        "event": event.id,
        "type": event.type,
        "agent": getattr(body, "agent_id", None) or getattr(body, "target_agent_id", None),
        "subtask": getattr(body, "subtask", None),
        "question": getattr(body, "question", None),
        "why": "; ".join(words),
        "taken_over": False,
    }


def _at(decisions: list[dict[str, Any]], index: int) -> dict[str, Any] | None:
    return decisions[index] if index < len(decisions) else None


def _said(decision: dict[str, Any] | None) -> tuple[Any, ...] | None:
    """What of a decision counts: not in whose words a model gave its reasons."""
    return None if decision is None else tuple(decision[name] for name in ("type", "agent", "subtask", "question"))


def differences(left: Json, right: Json) -> list[dict[str, Any]]:
    """Where two JSON values differ: {pointer, left, right}, up to a hundred. A missing value is null."""
    found: list[dict[str, Any]] = []
    _differ(left, right, "", found, 0)
    return found[:MAX_DIFFERENCES]


def _differ(left: Json, right: Json, pointer: str, found: list[dict[str, Any]], depth: int) -> None:
    if len(found) >= MAX_DIFFERENCES:
        return
    if depth < MAX_DEPTH and isinstance(left, dict) and isinstance(right, dict):
        for key in [*left, *(key for key in right if key not in left)]:
            place = f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}"
            if key in left and key in right:
                _differ(left[key], right[key], place, found, depth + 1)
            else:
                found.append({"pointer": place, "left": left.get(key), "right": right.get(key)})
    elif depth < MAX_DEPTH and isinstance(left, list) and isinstance(right, list):
        for index in range(max(len(left), len(right))):
            old = left[index] if index < len(left) else None
            new = right[index] if index < len(right) else None
            _differ(old, new, f"{pointer}/{index}", found, depth + 1)
    elif left != right or isinstance(left, bool) != isinstance(right, bool):
        found.append({"pointer": pointer, "left": left, "right": right})
