"""Waiting for read models: PostgreSQL or the projector may be away, and work goes on when they are back (I9)."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from handlers.journal import Journal
from schemas.errors import UnavailableError

logger = structlog.get_logger(__name__)

T = TypeVar("T")
FIRST_DELAY_S = 0.1
MAX_DELAY_S = 5.0


async def patiently(journal: Journal, read: Callable[[], Awaitable[T]]) -> T:
    """What `read` gives, asked again for as long as it is unavailable and this worker holds the call.

    The lease is renewed meanwhile, and a cancelled task ends the wait. So an outage of any length costs no delivery.

    Raises:
        StaleLeaseError: this worker may have lost the call.
    """
    delay_s = FIRST_DELAY_S
    while True:
        try:
            return await read()
        except UnavailableError as error:
            call = journal.call
            logger.warning("waiting_for_read_models", tenant=call.tenant_id, call=call.call_id, error=str(error))
        await asyncio.sleep(delay_s)
        delay_s = min(delay_s * 2, MAX_DELAY_S)
        journal.check_lease()
