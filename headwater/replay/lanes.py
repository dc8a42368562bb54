"""Forks by another team, served by who asks for them."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from headwater.client import Headwater
from headwater.gateway import Gateway
from headwater.lane import serving
from headwater.node import find_endpoints
from headwater.replay.fork import ForkOptions
from schemas.errors import InvalidInputError, NotFoundError
from schemas.task import Accepted


@contextlib.asynccontextmanager
async def in_lane(options: ForkOptions, hw: Gateway, lane: str) -> AsyncIterator[ForkOptions]:
    """The options for forks that are made here; with a team in them, it is served until the block ends."""
    if options.team is None:
        yield options
        return
    if not isinstance(hw, Headwater):
        raise InvalidInputError("another team can only serve beside the servers themselves, not over a URL")
    async with serving(lane, options.team.team, hw, hw.settings, find_endpoints(hw.settings)):
        yield replace(options, lane=lane)


@contextlib.asynccontextmanager
async def cancelling_left_over(
    hw: Gateway, tenant_id: str, forks: Sequence[Accepted], lane: str | None
) -> AsyncIterator[None]:
    """With the block, nobody is left to work on the forks of a lane: those that are open then are cancelled (I1)."""
    try:
        yield
    finally:
        for one in forks if lane is not None else ():
            with contextlib.suppress(NotFoundError):
                await hw.cancel(tenant_id, one.task_id, "nobody serves its team any more")
