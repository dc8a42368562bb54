"""The command `headwater`."""

import sys

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
from schemas.errors import HeadwaterError, InvalidInputError, SettingError

app = typer.Typer(
    name="headwater",
    help="Event-sourced stream processor for multi-tenant teams of LLM agents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
running.register(app)
submitting.register(app)
reading.register(app)
costs.register(app)
replaying.register(app)
proving.register(app)
forking.register(app)
comparing.register(app)
admin.register(app)
dead_letters.register(app)
keys.register(app)


def main() -> None:
    """Entry point: errors of ours are one message on stderr; exit 2 for a usage error, 1 for a failure."""
    try:
        app()
    except BrokenPipeError:
        # The reader of our output, such as `head`, has seen enough.
        sys.stderr.close()
        sys.exit(0)
    except HeadwaterError as error:
        err.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, markup=True, soft_wrap=True)
        sys.exit(2 if isinstance(error, InvalidInputError | SettingError) else 1)
