"""What the commands that read recordings share: which log, whose, and where to."""

import gzip
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from headwater.cli.common import run_async
from headwater.cli.where import Where
from headwater.client import Headwater
from headwater.gateway import Gateway
from headwater.remote import RemoteHeadwater
from headwater.remote_history import RemoteHistory
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


def read_log(where: Where, file: Path | None, work: Callable[[Recording], Awaitable[T]]) -> T:
    """Run `work` on a file, or on the log of the Headwater that is asked."""
    if file is None:
        return where.ask(lambda hw: work(_log_of(hw)))
    if where.url is not None or where.key is not None:
        raise InvalidInputError(f"{file} needs no server: leave out --url and --key, or the file")
    recording = FileRecording(file)

    async def on_file() -> T:
        return await work(recording)

    return run_async(on_file())


def _log_of(hw: Gateway) -> Recording:
    if isinstance(hw, Headwater):
        return hw.history
    assert isinstance(hw, RemoteHeadwater), hw
    return RemoteHistory(hw)


def sink(output: Path | None) -> Any:
    """An open file for bytes, or standard output. Raises `InvalidInputError`."""
    if output is None:
        return open(sys.stdout.fileno(), "wb", closefd=False)  # a descriptor is no path
    try:
        return gzip.open(output, "wb") if output.suffix == ".gz" else output.open("wb")
    except OSError as error:
        raise InvalidInputError(f"{output} cannot be written: {error.strerror}") from error
