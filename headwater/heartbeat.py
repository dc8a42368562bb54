"""Is a worker or projector alive? It touches a file while its subscribers read: a ping would say nothing of that."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from headwater.background import in_background
from streams.subscriber import CallSubscriber, LogSubscriber

EVERY_S = 5.0
SILENT_S = 60.0
"""A subscriber that has read nothing for so long is stuck, or has no Redis. An idle one looks every few seconds."""


@contextlib.asynccontextmanager
async def beating(path: Path | None, subscribers: Iterable[object], *, every_s: float = EVERY_S) -> AsyncIterator[None]:
    """Touches `path` every few seconds while all subscribers read; the caller judges the file by its age."""
    if path is None:
        yield
        return
    ours = [one for one in subscribers if isinstance(one, LogSubscriber | CallSubscriber)]
    try:
        async with in_background(_beat(path, ours, every_s)):
            yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


async def _beat(path: Path, subscribers: list[LogSubscriber | CallSubscriber], every_s: float) -> None:
    loop = asyncio.get_running_loop()
    while True:
        if all(one.handled_at is not None and loop.time() - one.handled_at < SILENT_S for one in subscribers):
            _touch(path)
        await asyncio.sleep(every_s)


def _touch(path: Path) -> None:
    # Not in a thread: a blocked event loop is one of the things that shall stop the heart.
    path.touch()
