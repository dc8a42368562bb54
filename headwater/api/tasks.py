"""Tasks over HTTP: hand one in, look at it or wait for it, cancel it."""

from typing import Annotated

from fastapi import Header, Path, Query, Response

from headwater.api.access import Reader, Submitter, other_tenant
from headwater.api.models import TASK_ID_PATTERN, AcceptedOut, CancelIn, CancelOut, TaskIn, TaskOut
from headwater.api.parts import Configured, Connection, router
from headwater.api.problems import ApiProblem, problems
from schemas.errors import NotFoundError
from schemas.task import NewTask

tasks = router("tasks")

TaskId = Annotated[str, Path(pattern=TASK_ID_PATTERN, description="The task's id.")]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[!-~]{1,200}$",
        description="The same key with the same task is one task, however often it is sent, also all at once.",
    ),
]


@tasks.post(
    "/tasks",
    status_code=202,
    summary="Submit a task",
    responses={
        200: {
            "description": "Known already by its idempotency key: nothing new was submitted.",
            "model": AcceptedOut,
            "headers": {"Location": {"description": "Where the task is.", "schema": {"type": "string"}}},
        },
        202: {"headers": {"Location": {"description": "Where the task is.", "schema": {"type": "string"}}}},
        **problems(400, 409),
    },
)
async def submit(caller: Submitter, hw: Connection, task: TaskIn, response: Response, key: Key = None) -> AcceptedOut:
    """Accept a task. It will end, as completed, failed or cancelled, whatever happens to any process."""
    if task.tenant is not None and task.tenant != caller.tenant_id:
        raise other_tenant(task.tenant, "the body")
    if key is not None and task.idempotency_key not in (None, key):
        raise ApiProblem(422, "the header Idempotency-Key and the body's idempotency_key differ: send one of them")
    given = task.model_dump(exclude={"tenant", "idempotency_key"})
    accepted = await hw.submit(NewTask(tenant=caller.tenant_id, idempotency_key=key or task.idempotency_key, **given))
    response.headers["Location"] = f"/v1/tasks/{accepted.task_id}"
    if accepted.duplicate:
        response.status_code = 200
    return AcceptedOut(**accepted.as_dict())


@tasks.get("/tasks/{task_id}", summary="Look at a task, or wait for its end", responses=problems(404))
async def task(
    caller: Reader,
    hw: Connection,
    settings: Configured,
    task_id: TaskId,
    wait: Annotated[
        float,
        Query(ge=0, le=600, description="Seconds to wait for its end, cut to HEADWATER_MAX_WAIT_S (60 by default)."),
    ] = 0,
) -> TaskOut:
    """A task, its result, its call chain and its exact cost. With `wait`, as it stands at its end or after the wait."""
    found = await hw.task(caller.tenant_id, task_id, wait_s=min(wait, settings.max_wait_s))
    if found is None:
        raise NotFoundError(f"tenant {caller.tenant_id!r} has no task {task_id!r}")
    return TaskOut(**found)


@tasks.post(
    "/tasks/{task_id}/cancel",
    status_code=202,
    summary="Cancel a task",
    responses={200: {"description": "It is cancelled already.", "model": CancelOut}, **problems(400, 404, 409)},
)
async def cancel(
    caller: Submitter, hw: Connection, task_id: TaskId, response: Response, why: CancelIn | None = None
) -> CancelOut:
    """Ask for a task to be cancelled: what has not started does not start, and what runs is told to stop.

    202 says that it was asked for; the task ends as cancelled, unless it ends by itself first. 200: it is cancelled.
    409: it had completed or failed before.
    """
    status = await hw.cancel(caller.tenant_id, task_id, why.reason if why else "")
    if status in ("completed", "failed"):
        raise ApiProblem(409, f"task {task_id} is {status}: it can not be cancelled any more", task_status=status)
    if status == "cancelled":
        response.status_code = 200
    return CancelOut(task=task_id, status=status)
