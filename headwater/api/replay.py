"""Replay over HTTP: a task's story, how it stood at a moment, what its log proves, and the task run again."""

from typing import Annotated, Any

from fastapi import Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from handlers.supervisor import Rules
from headwater.api.access import Reader, Submitter
from headwater.api.models import TASK_ID_PATTERN, AcceptedOut
from headwater.api.parts import Configured, Connection, router
from headwater.api.problems import ApiProblem, problems
from headwater.api.tasks import Key, TaskId
from headwater.replay.compare import compare as compare_tasks
from headwater.replay.fork import ForkOptions, fork_task
from headwater.replay.moments import moment, position_of, task_events
from headwater.replay.story import story_of
from headwater.replay.verify import verify as verify_log
from headwater.settings import Settings
from headwater.teams import load_team
from schemas.content import Json
from schemas.errors import NotFoundError
from schemas.money import DecimalText

replay = router("replay")

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
At = Annotated[str, Query(min_length=1, max_length=64, pattern=r"^[!-~]+$")]


class StoryOut(BaseModel):
    """A task's story, or with `at` how it stood then: the same JSON as `headwater replay --json`."""

    model_config = ConfigDict(extra="allow")

    tenant: str
    session: str
    task: str
    status: str


class ForkOut(BaseModel):
    """A task that was forked from another one."""

    task: str
    fork_of: str
    status: str
    submitted_at: str | None
    ended_at: str | None
    cost_usd: str


class ForksOut(BaseModel):
    """The forks of a task: the same JSON as `headwater task --forks --json`. Exact decimals, in US dollars."""

    tenant: str
    task: str
    forks: list[ForkOut]
    cost_usd: str = Field(description="Of the task alone.")
    forks_usd: str
    total_usd: str


class VerifyOut(BaseModel):
    """What deciding a task again gave: the same JSON as `headwater replay --verify --json`."""

    model_config = ConfigDict(extra="allow")

    tasks: int
    decisions: int
    skipped: int
    open_tasks: int
    diverged: int = Field(description="Tasks with a difference.")
    differences: list[dict[str, Any]]


class SideOut(BaseModel):
    """One of two tasks that are compared."""

    model_config = ConfigDict(extra="allow")

    task: str
    status: str
    fork_of: str | None
    result: Json
    error: str | None
    cost_usd: str
    tokens: int
    attempts: int
    models: list[str]
    duration_ms: float


class CompareOut(BaseModel):
    """Two tasks side by side: the same JSON as `headwater compare --json`."""

    model_config = ConfigDict(extra="allow")

    tenant: str
    left: SideOut
    right: SideOut
    decisions: list[dict[str, Any]] = Field(description="In order, each {left, right}; what a fork took over, too.")
    first_difference: int | None = Field(description="Where in `decisions` the two part.")
    results: list[dict[str, Any]] = Field(description="Where the results differ, up to 100: {pointer, left, right}.")


class ForkIn(BaseModel):
    """How a task is to be run again."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"models": {"reasoning": ["openai/gpt-4o-mini"]}, "budget_usd": "0.05"}]},
    )

    at: Name | None = Field(
        default=None,
        description="The fact to decide anew, or a decision on it: event id or position. By default, the start.",
    )
    models: dict[str, list[Name]] = Field(default={}, description="Tier (fast, reasoning) → models, in order.")
    data: dict[str, Any] | None = Field(default=None, description="In the place of the task's data.")
    budget_usd: DecimalText | None = Field(
        default=None,
        description="What the fork may cost. It may go over by the requests that are in flight then.",
    )


@replay.get("/tasks/{task_id}/story", summary="Tell a task's story", responses=problems(404))
async def story(
    caller: Reader,
    hw: Connection,
    task_id: TaskId,
    at: Annotated[At | None, Query(description="How it stood then instead: a position, an event's id, a time.")] = None,
) -> StoryOut:
    """What led to what, why, by whom, and where the money went: a tree by causation.

    With `at`: the task's state, its session, what agents had been given, and the ledger, as they stood then.
    """
    await hw.caught_up(caller.tenant_id)
    recording = hw.history
    events = await task_events(recording, caller.tenant_id, task_id)
    if at is not None:
        return StoryOut(**await moment(recording, caller.tenant_id, events, position_of(at, events)))
    told = story_of(events)
    assert told is not None, "there are events"
    return StoryOut(**told.as_dict())


@replay.get("/tasks/{task_id}/verify", summary="Decide a task again", responses=problems(404, 409))
async def verify(request: Request, caller: Reader, hw: Connection, settings: Configured, task_id: TaskId) -> VerifyOut:
    """Every decision made again from the recorded facts, by the team of HEADWATER_AGENTS, and compared.

    No model is asked, and nothing is written. 409: this process has no team.
    """
    rules = _rules(request, settings)
    recording = hw.history
    await task_events(recording, caller.tenant_id, task_id)
    report = await verify_log(recording, [caller.tenant_id], rules, task_id=task_id, limit=20)
    return VerifyOut(**report.as_dict())


@replay.get("/tasks/{task_id}/compare/{other_id}", summary="Lay two tasks side by side", responses=problems(404))
async def compare(
    caller: Reader,
    hw: Connection,
    task_id: TaskId,
    other_id: Annotated[str, Path(pattern=TASK_ID_PATTERN, description="The other task's id, such as a fork's.")],
) -> CompareOut:
    """What was decided up to where the two part, their results, costs, latency and tokens."""
    await hw.caught_up(caller.tenant_id)
    return CompareOut(**await compare_tasks(hw.history, caller.tenant_id, task_id, other_id))


def _rules(request: Request, settings: Settings) -> Rules:
    if settings.agents is None:
        raise ApiProblem(409, "this process has no team to decide with: start it with HEADWATER_AGENTS=module:object")
    state = request.app.state
    if not hasattr(state, "rules"):
        team = load_team(settings.agents)
        state.rules = Rules(team, team.strictness)
    rules: Rules = state.rules
    return rules


@replay.get("/tasks/{task_id}/forks", summary="What was made of a task", responses=problems(404))
async def forks(caller: Reader, hw: Connection, task_id: TaskId) -> ForksOut:
    """The forks of a task, and theirs, with their costs: they are never in its own."""
    found = await hw.forks(caller.tenant_id, task_id)
    if found is None:
        raise NotFoundError(f"tenant {caller.tenant_id!r} has no task {task_id!r}")
    return ForksOut(**found)


@replay.post(
    "/tasks/{task_id}/fork",
    status_code=202,
    summary="Run a task again",
    responses={
        200: {"description": "Known already by its idempotency key: nothing new.", "model": AcceptedOut},
        **problems(400, 404, 409),
    },
)
async def fork(
    caller: Submitter,
    hw: Connection,
    task_id: TaskId,
    response: Response,
    how: ForkIn | None = None,
    key: Key = None,
) -> AcceptedOut:
    """A new task that takes over what was recorded before a point and lives on from there, with its own costs.

    What comes after the point is real: agents run, models are asked, and tools do what they do.
    """
    how = how or ForkIn()
    options = ForkOptions(
        at=how.at,
        models={tier: tuple(names) for tier, names in how.models.items()},
        data=how.data,
        budget_usd=how.budget_usd,
    )
    accepted = await fork_task(hw, caller.tenant_id, task_id, options, key=key)
    response.headers["Location"] = f"/v1/tasks/{accepted.task_id}"
    if accepted.duplicate:
        response.status_code = 200
    return AcceptedOut(**accepted.as_dict())
