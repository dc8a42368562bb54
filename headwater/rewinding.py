"""Comparing PostgreSQL with Redis' checkpoints, at the projector's start and whenever there is a doubt."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog

from headwater.background import in_background
from projections.db import Pool
from projections.rewinding import rewind_all
from projections.runner import Runner
from streams.connection import Streams

logger = structlog.get_logger(__name__)

CHECK_S = 2.0


@contextlib.asynccontextmanager
async def rewinding(streams: Streams, pool: Pool, runner: Runner) -> AsyncIterator[None]:
    """Have what a replaced PostgreSQL lacks read again, also of tenants for whom nothing new comes in."""
    async with in_background(_rewind_for_ever(streams, pool, runner)):
        yield


async def _rewind_for_ever(streams: Streams, pool: Pool, runner: Runner) -> None:
    while True:
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(runner.doubt.wait(), CHECK_S)
            await runner.check_database()
            if runner.doubt.is_set():
                runner.doubt.clear()
                if rewound := await rewind_all(streams, pool, runner.names):
                    logger.warning("reading_again", tenants=len(rewound))
        except Exception as error:
            # Whatever it is, such as a database without any table: this goes on until it is mended.
            runner.doubt.set()
            logger.warning("not_compared", error=str(error), retry_in_s=CHECK_S)
            await asyncio.sleep(CHECK_S)
