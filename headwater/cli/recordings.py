"""What the commands that read recordings share: which log, whose, and where to."""

import gzip
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from headwater.cli.common import connected, read_settings, run_async
from headwater.client import Headwater
from headwater.replay.recording import FileRecording, Recording
from schemas.errors import InvalidInputError
from schemas.ids import check_tenant_id

T = TypeVar("T")


async def one_tenant(recording: Recording, tenant: str | None) -> str:
    """The tenant that was named, or the only one there is. Raises `InvalidInputError` if that is not clear."""
    if tenant is not None:
        return check_tenant_id(tenant)
    known = await recording.tenants()
    if len(known) == 1:
        return known[0]
    raise InvalidInputError(f"name the tenant with --tenant; there are: {', '.join(known) or 'none'}")


def with_recording(file: Path | None, data: Path | None, work: Callable[[Recording], Awaitable[T]]) -> T:
    """Run `work` on a file, or on the running Headwater's log."""
    if file is not None:
        recording = FileRecording(file)

        async def on_file() -> T:
            return await work(recording)

        return run_async(on_file())

    async def on_log(hw: Headwater) -> T:
        return await work(hw.history)

    return connected(read_settings(data=data), on_log)


def sink(output: Path | None) -> Any:
    """An open file for bytes, or standard output. Raises `InvalidInputError`."""
    if output is None:
        return open(sys.stdout.fileno(), "wb", closefd=False)  # a descriptor is no path
    try:
        return gzip.open(output, "wb") if output.suffix == ".gz" else output.open("wb")
    except OSError as error:
        raise InvalidInputError(f"{output} cannot be written: {error.strerror}") from error
