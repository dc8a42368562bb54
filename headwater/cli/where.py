"""Where the Headwater is that a command asks: on this machine, or behind a URL."""

import functools
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from headwater.cli.common import PANEL, connected, directory_option, read_settings, run_async
from headwater.gateway import Gateway
from headwater.remote import RemoteHeadwater
from schemas.errors import InvalidInputError

T = TypeVar("T")

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="A Headwater elsewhere, over HTTP.",
        show_default="HEADWATER_URL, or this machine's",
        rich_help_panel=PANEL,
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        help="API key for --url. HEADWATER_KEY is better: others see a command line.",
        show_default="HEADWATER_KEY",
        rich_help_panel=PANEL,
    ),
]


@dataclass(frozen=True, slots=True)
class Where:
    """What `--data`, `--url` and `--key` say. `--data` alone means this machine, whatever the environment says."""

    data: Path | None = None
    url: str | None = None
    key: str | None = None

    @property
    def is_remote(self) -> bool:
        """Is it behind a URL?"""
        return self.url is not None or (self.data is None and read_settings().url is not None)

    def ask(self, work: Callable[[Gateway], Awaitable[T]]) -> T:
        """Run `work` with a connection to it."""
        settings = read_settings(data=self.data, url=self.url, key=self.key)
        if settings.url is None or not self.is_remote:
            if self.key is not None:
                raise InvalidInputError("--key goes with --url: the Headwater on this machine needs none")
            return connected(settings, work)
        remote = RemoteHeadwater(settings.url, settings.key)

        async def run() -> T:
            async with remote as hw:
                return await work(hw)

        return run_async(run())


HERE = Where()


def anywhere(command: Callable[..., None], *directory: str) -> Callable[..., None]:
    """`command` with the options --data (or those in `directory`), --url and --key in the place of `where`."""
    data = directory_option(*(directory or ("--data", "--data-dir")))
    options = {"data_": Annotated[Path | None, data], "url": UrlOption, "key": KeyOption}

    @functools.wraps(command)
    def run(**given: Any) -> None:
        data, url, key = (given.pop(name) for name in options)
        command(**given, where=Where(data, url, key))

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        parameters += (
            [parameter]
            if parameter.name != "where"
            else [inspect.Parameter(n, parameter.kind, default=None, annotation=o) for n, o in options.items()]
        )
    # Typer reads both.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # a function may have one
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
