"""What the commands share: consoles, options, connecting, and printing."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from headwater.client import Headwater
from headwater.gateway import Gateway
from headwater.logs import configure_logging
from headwater.node import find_endpoints
from headwater.remote import RemoteHeadwater
from headwater.settings import Settings
from schemas.errors import ConfigurationError, InvalidInputError

T = TypeVar("T")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

DataOption = Annotated[Path | None, typer.Option("--data", "--data-dir", help="Data directory. [default: .headwater]")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON: one object, or one a line for a list.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="A remote Headwater, over HTTP. [default: HEADWATER_URL, or the local one]")
]
KeyOption = Annotated[
    str | None, typer.Option("--key", help="API key for --url; HEADWATER_KEY is better: others see a command line.")
]
TenantOption = Annotated[str, typer.Option("--tenant", "-t", help="Tenant id.")]


def read_settings(**given: Any) -> Settings:
    """The environment's settings, with the options that were given on top."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"setting {name!r}: {first['msg']} (got {first['input']!r})") from error


def connected(settings: Settings, work: Callable[[Headwater], Awaitable[T]]) -> T:
    """Run `work` with a connection to the running Headwater."""
    configure_logging(settings.log_level)

    async def run() -> T:
        async with Headwater(settings, find_endpoints(settings)) as hw:
            return await work(hw)

    return run_async(run())


def reached(data: Path | None, url: str | None, key: str | None, work: Callable[[Gateway], Awaitable[T]]) -> T:
    """Run `work` with the Headwater that `--url` or HEADWATER_URL names, or without one with the local one.

    `--data` without `--url` means the local one, whatever the environment says.
    """
    settings = read_settings(data=data, url=url, key=key)
    if settings.url is None or not is_remote(data, url):
        if key is not None:
            raise InvalidInputError("--key goes with --url: the Headwater on this machine needs none")
        return connected(settings, work)
    remote = RemoteHeadwater(settings.url, settings.key)

    async def run() -> T:
        async with remote as hw:
            return await work(hw)

    return run_async(run())


def is_remote(data: Path | None, url: str | None) -> bool:
    """Is the Headwater that is meant behind a URL? `--data` means the local one, whatever the environment says."""
    return url is not None or (data is None and read_settings().url is not None)


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, in one place."""
    return asyncio.run(work)


def table_of(*columns: str, id_first: bool = False) -> Table:
    """A table that folds what is too long and shortens nothing: digests are compared, and ids copied.

    `id_first` keeps the first column in one piece for that.
    """
    table = Table()
    for number, name in enumerate(columns):
        table.add_column(name, overflow="fold", no_wrap=id_first and number == 0)
    return table


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout."""
    typer.echo(orjson.dumps(value).decode())
