"""The state of a task from its recorded events alone: the log is the truth, the state in Redis only saves time."""

from collections.abc import Iterable

from handlers.state import evolve
from handlers.supervisor import WANTED, TaskState
from schemas.bodies import EventDropped, TaskForked, TaskSubmitted
from schemas.errors import NotFoundError
from schemas.event import AgentEvent
from streams.log import Log, readable

PAGE = 1000


def causes(events: Iterable[AgentEvent]) -> tuple[list[AgentEvent], dict[str, list[AgentEvent]]]:
    """The events that were decided on, in log order, and the recorded decisions by the id of their cause."""
    recorded: dict[str, list[AgentEvent]] = {}
    wanted: list[AgentEvent] = []
    dropped: set[tuple[str, str | None]] = set()
    for event in events:
        if event.body.decision:
            recorded.setdefault(event.parent_event_id or "", []).append(event)
        elif event.type in WANTED:
            wanted.append(event)
        if isinstance(event.body, EventDropped):
            dropped.add((event.tenant_id, event.body.position))
    return [event for event in wanted if (event.tenant_id, event.position) not in dropped], recorded


async def refold(log: Log, tenant_id: str, task_id: str, *, before: str) -> TaskState | None:
    """The state of a task as the event at the position `before` found it, from the stream.

    Raises:
        NotFoundError: the task's beginning is not in the stream any more.
    """
    events: list[AgentEvent] = []
    entries = await log.read(tenant_id, limit=PAGE)
    while entries:
        events += [event for event in readable(tenant_id, entries)[0] if event.task_id == task_id]
        entries = await log.read(tenant_id, after=entries[-1][0], limit=PAGE)
    wanted, recorded = causes(events)
    # A decision may stand behind events that came in while it was made: it belongs to its cause.
    earlier = [event for event in wanted if _place(event.position) < _place(before)]
    state: TaskState | None = None
    for cause in earlier:
        state = evolve(state, cause)
        for decision in recorded.get(cause.id, []):
            state = evolve(state, decision)
    if state is None and not any(isinstance(event.body, TaskSubmitted | TaskForked) for event in events):
        raise NotFoundError(f"the beginning of task {task_id} of tenant {tenant_id!r} is not in the stream any more")
    return state


def _place(position: str | None) -> tuple[int, int]:
    ms, _, seq = (position or "0-0").partition("-")
    return int(ms), int(seq)
