"""Trimming: what is archived in PostgreSQL, read by everybody and old enough is removed from Redis (I10)."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog

from headwater.background import in_background
from headwater.settings import Settings
from projections.db import Pool
from projections.projection import format_position, parse_position
from projections.retention import archived_tenants, removable_blobs, trimmable
from schemas.errors import HeadwaterError
from streams.connection import Streams

logger = structlog.get_logger(__name__)

TRIM_EVERY_S = 300.0
HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What was removed of one tenant: log entries before `bound`, and contents that only they referred to."""

    tenant: str
    entries: int
    blobs: int
    bound: str


async def trim_logs(
    streams: Streams, pool: Pool, *, retention_hours: float, tenant_id: str | None = None
) -> list[Trimmed]:
    """Trim one tenant's log, or all. Reading a log (`headwater.history`) gives the same before and after."""
    tenants = [tenant_id] if tenant_id is not None else await archived_tenants(pool)
    before_ms = int(time.time() * 1000 - retention_hours * HOUR_MS)
    return [await _trim(streams, pool, tenant, before_ms) for tenant in tenants]


async def _trim(streams: Streams, pool: Pool, tenant_id: str, before_ms: int) -> Trimmed:
    upto = format_position(await trimmable(pool, tenant_id, before_ms=before_ms))
    entries = 0
    while True:
        removed, bound, unused = await streams.functions.trim(tenant_id, upto=upto)
        entries += removed
        if removed == 0:
            break
    blobs = 0
    if unused:
        removable = await removable_blobs(pool, tenant_id, unused, bound=parse_position(bound))
        blobs = await streams.functions.forget(tenant_id, removable, bound=bound)
    if entries or blobs:
        logger.info("log_trimmed", tenant=tenant_id, entries=entries, blobs=blobs, before=bound)
    return Trimmed(tenant_id, entries, blobs, bound)


@contextlib.asynccontextmanager
async def trimming(settings: Settings, streams: Streams, pool: Pool) -> AsyncIterator[None]:
    """Trim every few minutes, if the settings say how much to keep."""
    if settings.retention_hours == 0:
        yield
        return
    async with in_background(_trim_for_ever(settings, streams, pool)):
        yield


async def _trim_for_ever(settings: Settings, streams: Streams, pool: Pool) -> None:
    while True:
        try:
            await trim_logs(streams, pool, retention_hours=settings.retention_hours)
        except HeadwaterError as error:
            logger.warning("not_trimmed", error=str(error), retry_in_s=TRIM_EVERY_S)
        await asyncio.sleep(TRIM_EVERY_S)
