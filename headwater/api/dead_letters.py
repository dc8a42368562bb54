"""Dead letters over HTTP: what could not be handled, and what to do about it."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import Path, Query

from headwater.api.access import Admin, Reader
from headwater.api.models import POSITION_PATTERN, DeadLetterOut, DeadLettersOut
from headwater.api.parts import Connection, router
from headwater.api.problems import problems

dead_letters = router("dead letters")

LetterId = Annotated[str, Path(pattern=POSITION_PATTERN, description="The dead letter's id.")]


@dead_letters.get("/dead-letters", summary="List what could not be handled")
async def page(
    caller: Reader,
    hw: Connection,
    after: Annotated[str, Query(pattern=POSITION_PATTERN, description="Only after this id.")] = "0-0",
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 100,
) -> DeadLettersOut:
    """The tenant's dead letters, oldest first."""
    found = await hw.dead_letters.page(caller.tenant_id, after=after, limit=limit)
    more = urlencode({"after": found[-1].id, "limit": limit}) if len(found) == limit else None
    return DeadLettersOut(
        dead_letters=[DeadLetterOut(**letter.as_dict()) for letter in found],
        next=more and f"/v1/dead-letters?{more}",
    )


@dead_letters.get("/dead-letters/{letter_id}", summary="Look at a dead letter", responses=problems(404))
async def show(caller: Reader, hw: Connection, letter_id: LetterId) -> DeadLetterOut:
    """One dead letter with its origin, its error and all its fields."""
    return DeadLetterOut(**(await hw.dead_letters.show(caller.tenant_id, letter_id)).as_dict())


@dead_letters.post("/dead-letters/{letter_id}/redrive", summary="Have it handled again", responses=problems(404))
async def redrive(caller: Admin, hw: Connection, letter_id: LetterId) -> DeadLetterOut:
    """Have it handled again, and after it what waited behind it in its task. Of many who press, one does it; for the
    others it is not there any more (404). A call can not be redriven (422): its task went on without it."""
    return DeadLetterOut(**(await hw.dead_letters.redrive(caller.tenant_id, letter_id)).as_dict())


@dead_letters.delete("/dead-letters/{letter_id}", summary="Give it up", responses=problems(404))
async def drop(
    caller: Admin,
    hw: Connection,
    letter_id: LetterId,
    reason: Annotated[
        str, Query(max_length=2000, pattern=r"^[^\x00]*$", description="Why; part of the task's reason to fail.")
    ] = "",
) -> DeadLetterOut:
    """Give it up for good. Its task fails if it is still open."""
    return DeadLetterOut(**(await hw.dead_letters.drop(caller.tenant_id, letter_id, reason=reason)).as_dict())
