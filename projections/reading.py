"""Reading one's own writes: waiting until the projections have applied what is in a tenant's log now."""

import asyncio

import asyncpg

from projections import queries
from projections.db import Pool
from projections.projection import parse_position
from schemas.errors import UnavailableError
from streams.log import Log

POLL_S = 0.01
MAX_POLL_S = 0.1
_NOT_PREPARED = (asyncpg.UndefinedTableError, asyncpg.InvalidParameterValueError)
"""What PostgreSQL says when the tables, or the role that reads them, are missing."""


async def caught_up(pool: Pool, log: Log, tenant_id: str, *, timeout_s: float) -> bool:
    """Wait until every projection has read what is in the tenant's log now. False: they are behind after `timeout_s`.

    Raises:
        UnavailableError: Redis or PostgreSQL is away.
    """
    end = parse_position(await log.end(tenant_id))
    deadline = asyncio.get_running_loop().time() + timeout_s
    delay_s = POLL_S
    while await queries.position(pool, tenant_id) < end:
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(delay_s)
        delay_s = min(delay_s * 1.5, MAX_POLL_S)
    return True


async def catch_up(pool: Pool, log: Log, tenant_id: str, *, timeout_s: float) -> None:
    """Wait like `caught_up`.

    Raises:
        UnavailableError: the projections are still behind after `timeout_s`, or nothing has prepared the database yet.
    """
    try:
        is_caught_up = await caught_up(pool, log, tenant_id, timeout_s=timeout_s)
    except _NOT_PREPARED as error:
        raise UnavailableError(
            f"the database is not prepared yet ({error}): the projector does it when it starts"
        ) from error
    if not is_caught_up:
        raise UnavailableError(
            f"the projections are more than {timeout_s:g} s behind the log of tenant {tenant_id!r}: "
            "is the projector running?"
        )
