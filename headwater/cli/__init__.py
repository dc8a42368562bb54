"""The command `headwater`."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.markup import escape

from headwater.cli import (
    admin,
    comparing,
    costs,
    dead_letters,
    forking,
    keys,
    proving,
    reading,
    replaying,
    running,
    submitting,
)
from headwater.cli.common import err
from headwater.cli.help import arrange
from schemas.errors import HeadwaterError, InvalidInputError, SettingError

PANELS = {
    "Run": ("up", "api", "worker", "projector", "simulator"),
    "Tasks": ("submit", "cancel", "task", "session", "events", "costs"),
    "Replay": ("replay", "fork", "compare", "reprice", "export", "fixture"),
    "Operate": ("digest", "missing", "rebuild", "trim", "dead-letters", "keys"),
}
"""How the commands are listed: by what they are for, in the order in which they are met."""

app = typer.Typer(
    name="headwater",
    help="Event-sourced stream processor for multi-tenant teams of LLM agents.",
    epilog="Settings come from the environment (docs/settings.md); an option goes before its setting.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for part in (
    running,
    submitting,
    reading,
    costs,
    replaying,
    proving,
    forking,
    comparing,
    admin,
    dead_letters,
    keys,
):
    part.register(app)
arrange(app, PANELS)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headwater {version('headwater')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command: errors of ours are one message on stderr; exit 2 for a usage error, 1 for a failure."""
    try:
        app(prog_name="headwater")
    except BrokenPipeError:
        # The reader of our output, such as `head`, has seen enough.
        sys.stderr.close()
        sys.exit(0)
    except HeadwaterError as error:
        err.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, markup=True, soft_wrap=True)
        sys.exit(2 if isinstance(error, InvalidInputError | SettingError) else 1)
