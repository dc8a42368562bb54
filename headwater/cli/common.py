"""What the commands share: consoles, options, connecting, and printing."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from rich.console import Console

from headwater.client import Headwater
from headwater.logs import configure_logging
from headwater.node import find_endpoints
from headwater.settings import Settings, variable_of
from schemas.complaints import complaint
from schemas.errors import SettingError

T = TypeVar("T")

UNLIMITED = 100_000
"""Columns of what is no terminal, such as a pipe: lines there have no width."""


def _console(*, stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False)
    # COLUMNS is rich's own word for a width that was asked for.
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNLIMITED
    return console


out = _console()
err = Console(stderr=True, highlight=False)

PANEL = "Which Headwater"


def directory_option(*names: str) -> Any:
    """The option that names the data directory."""
    return typer.Option(
        *names, help="Data directory.", show_default="HEADWATER_DATA, or .headwater", rich_help_panel=PANEL
    )


DataOption = Annotated[Path | None, directory_option("--data", "--data-dir")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON: one object, or one a line for a list.")]
TenantOption = Annotated[str, typer.Option("--tenant", "-t", help="Tenant id.")]


def read_settings(**given: Any) -> Settings:
    """The environment's settings, with the options that were given on top."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingError(_unusable(error.errors(include_url=False)[0], given)) from error


def _unusable(error: ErrorDetails, given: dict[str, Any]) -> str:
    name = str(error["loc"][0])
    shown = f"--{name}" if given.get(name) is not None else variable_of(name)
    field = Settings.model_fields.get(name)
    value = "" if field is not None and not field.repr else f" {str(error['input'])!r}"
    return f"{shown}{value} cannot be used: it {complaint(error)} (docs/settings.md has every setting)"


def connected(settings: Settings, work: Callable[[Headwater], Awaitable[T]]) -> T:
    """Run `work` with a connection to the running Headwater."""
    configure_logging(settings.log_level)

    async def run() -> T:
        async with Headwater(settings, find_endpoints(settings)) as hw:
            return await work(hw)

    return run_async(run())


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, in one place."""
    return asyncio.run(work)


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout."""
    typer.echo(orjson.dumps(value).decode())
