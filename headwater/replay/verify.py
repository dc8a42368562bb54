"""Proving a recorded log: the deciders run again over the recorded facts, and every decision is compared (I5).

No model is asked: what models answered is recorded. So it shows what another routing rule or strictness table would
have *decided* on the same facts, and not what agents would have done then.

Tasks do not depend on each other, so each is decided when it ends and then forgotten: memory holds the open tasks.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from handlers.decider import Divergence, redecide
from handlers.state import looked_at
from handlers.supervisor import WANTED, Rules
from headwater.replay.moments import read
from headwater.replay.recording import Recording
from projections.projection import START, Position
from schemas.bodies import DECISIONS, TaskForked, TaskSubmitted
from schemas.content import blob_of
from schemas.event import AgentEvent, encode_body

_READ = DECISIONS | frozenset(WANTED)
Progress = Callable[[int, int], None]
"""(tasks verified, decisions compared)"""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a decision would be another one now. `pointer` is the first JSON pointer at which the two differ."""

    tenant_id: str
    task_id: str
    event_id: str
    position: str | None
    cause_id: str
    pointer: str
    recorded: Any
    now: Any

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "tenant": self.tenant_id,
            "task": self.task_id,
            "event": self.event_id,
            "position": self.position,
            "cause": self.cause_id,
            "pointer": self.pointer,
            "recorded": self.recorded,
            "now": self.now,
        }


@dataclass(slots=True)
class Report:
    """What a verification found. `skipped` tasks had begun before the log did, so nothing can be said of them."""

    tasks: int = 0
    decisions: int = 0
    skipped: int = 0
    open_tasks: int = 0
    diverged: int = 0
    """Tasks with a difference."""
    differences: list[Difference] = field(default_factory=list)
    """The first difference of each task that has one, up to the limit that was asked for."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "tasks": self.tasks,
            "decisions": self.decisions,
            "skipped": self.skipped,
            "open_tasks": self.open_tasks,
            "diverged": self.diverged,
            "differences": [difference.as_dict() for difference in self.differences],
        }


async def verify(
    recording: Recording,
    tenants: list[str],
    rules: Rules,
    *,
    task_id: str | None = None,
    since: Position = START,
    limit: int = 1,
    progress: Progress = lambda tasks, decisions: None,
) -> Report:
    """Decide every task again that was submitted after `since`. Keeps the first `limit` differences."""
    report = Report()
    for tenant_id in tenants:
        async for events, ended in _tasks(recording, tenant_id, task_id, since, report):
            blobs = await _blobs(recording, tenant_id, events)
            found = list(redecide(events, rules, blobs))
            report.tasks += 1
            report.open_tasks += not ended
            report.decisions += sum(event.body.decision for event in events)
            # In a task that goes on, the supervisor may just not have got to the newest facts yet.
            found = [one for one in found if ended or one.recorded is not None]
            if found:
                report.diverged += 1
                if len(report.differences) < limit:
                    report.differences.append(_difference(found[0]))
            progress(report.tasks, report.decisions)
    return report


async def _tasks(
    recording: Recording, tenant_id: str, task_id: str | None, since: Position, report: Report
) -> AsyncIterator[tuple[list[AgentEvent], bool]]:
    """(events, has it ended) of each task: when it ends, and of those still open at the end of the log."""
    running: dict[str, list[AgentEvent]] = {}
    unknown: set[str] = set()
    ended: set[str] = set()
    async for position, fields in recording.entries(tenant_id, task_id=task_id, types=_READ, after=since):
        event = read(tenant_id, position, fields)
        if event is None or event.task_id in ended:
            continue
        if event.task_id not in running:
            if not isinstance(event.body, TaskSubmitted | TaskForked):
                unknown.add(event.task_id)
                continue
            running[event.task_id] = []
        running[event.task_id].append(event)
        if event.body.terminal:
            ended.add(event.task_id)
            yield running.pop(event.task_id), True
    report.skipped += len(unknown - ended)
    for events in running.values():
        yield events, False


async def _blobs(recording: Recording, tenant_id: str, events: list[AgentEvent]) -> dict[str, bytes]:
    """The large contents that the decisions may have looked at."""
    found: dict[str, bytes] = {}
    for event in events:
        for value in looked_at(event.body):
            if (sha := blob_of(value)) is not None:
                found[sha] = await recording.blob(tenant_id, sha)
    return found


def _difference(found: Divergence) -> Difference:
    recorded, now = _json(found.recorded), _json(found.now)
    pointer, was, would_be = first_difference(recorded, now)
    event = found.recorded or found.now or found.cause
    return Difference(
        tenant_id=found.cause.tenant_id,
        task_id=found.cause.task_id,
        event_id=event.id,
        position=None if found.recorded is None else found.recorded.position,
        cause_id=found.cause.id,
        pointer=pointer,
        recorded=was,
        now=would_be,
    )


def _json(event: AgentEvent | None) -> Any:
    if event is None:
        return None
    body = orjson.loads(encode_body(event.body, {}))
    return {"type": event.type, "call_chain": list(event.call_chain), "body": body}


def first_difference(a: Any, b: Any, pointer: str = "") -> tuple[str, Any, Any]:
    """(JSON pointer, value in `a`, value in `b`) of the first difference; a missing value is None."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            if a.get(key) != b.get(key) or (key in a) != (key in b):
                escaped = str(key).replace("~", "~0").replace("/", "~1")
                return first_difference(a.get(key), b.get(key), f"{pointer}/{escaped}")
    if isinstance(a, list) and isinstance(b, list):
        for index in range(max(len(a), len(b))):
            old = a[index] if index < len(a) else None
            new = b[index] if index < len(b) else None
            if old != new:
                return first_difference(old, new, f"{pointer}/{index}")
    return pointer, a, b
